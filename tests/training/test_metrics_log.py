"""What a training step took: pairing per step, and the share of it that the step waited for."""

import itertools
import time

import pytest
import torch

from immiscible_diffusion.training.metrics_log import StepMetrics, bottleneck


@pytest.fixture
def metrics(monkeypatch) -> StepMetrics:
    """Metrics whose clock ticks a second a look."""
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    return StepMetrics(torch.device("cpu"), began=-1.0)


def add(metrics: StepMetrics, seconds: float | None) -> None:
    metrics.add(torch.zeros(2), torch.zeros(2), seconds)


@pytest.mark.parametrize("untimed", [0, 1, 9])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_pairing_is_per_step_however_few_batches_were_timed(metrics, untimed, micro_batches):
    for _ in range(4):
        for _ in range(micro_batches):
            add(metrics, 2.0)
            for _ in range(untimed):
                add(metrics, None)
        metrics.steps += 1
    times = metrics.times()
    assert times["pairing_ms"] == pytest.approx(2000 * micro_batches * (1 + untimed))
    assert times["pairing_share"] == 0.0, "nothing waited for it"


@pytest.mark.parametrize("waits", [0, 1, 2, 5])
def test_the_share_is_of_what_was_both_paired_and_waited_for(metrics, waits):
    add(metrics, 2.0)
    for _ in range(waits):
        with metrics.waiting():
            pass
    metrics.steps = 1
    times = metrics.times()
    assert times["waiting_ms"] == 1000 * waits
    assert times["pairing_share"] == pytest.approx(min(2, waits) / times["seconds_per_step"])


@pytest.mark.parametrize(("loading", "waits", "said"), [(4, 6, "1.0 of 2.0"), (9, 4, "1.0 of 2.0"), (4, 0, "")])
def test_a_step_that_waits_for_loading_says_how_far_it_is_behind(metrics, loading, waits, said):
    for _ in range(8):
        metrics.add(torch.zeros(2), torch.zeros(2), None, loading / 8)
    metrics.steps, metrics.waited, metrics.began = 1, waits, -8.0
    times = metrics.times()
    assert times["loading_ms"] == 1000 * loading
    assert times["loading_share"] == min(loading, waits) / 8
    assert bottleneck(times) == (said and f"loading is the bottleneck: {said} batches a second")


def test_no_batch_may_have_been_timed(metrics):
    add(metrics, None)
    metrics.steps = 1
    assert metrics.times()["pairing_ms"] == 0
