import itertools
import time

import pytest
import torch

from immiscible_diffusion.couplings import Independent
from immiscible_diffusion.training.metrics_log import TIMED_EVERY, StepMetrics, Timed


def ticking(monkeypatch, device: str) -> StepMetrics:
    """A meter whose clocks tick once a look: pairing takes 1 s whenever it is timed."""
    ticks = itertools.count()
    for name in ("clock", "stream_clock"):
        monkeypatch.setattr(StepMetrics, name, lambda self: float(next(ticks)))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    return StepMetrics(torch.device(device), began=0.0)


@pytest.mark.parametrize("steps", [1, 2, TIMED_EVERY - 1, TIMED_EVERY, 3 * TIMED_EVERY + 1])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("calls", [1, 3])
def test_pairing_is_per_step_however_many_calls_were_timed(monkeypatch, device, steps, calls):
    meter = ticking(monkeypatch, device)
    coupling = Timed(Independent(), meter)
    for _ in range(steps):
        for _ in range(calls):
            coupling(torch.zeros(2, 3))
        meter.steps += 1
    timed = steps * calls if device == "cpu" else -(-steps * calls // TIMED_EVERY)
    record = meter.record()
    assert record["pairing_ms"] == 1000 * calls
    assert record["seconds_per_step"] == pytest.approx(2 * timed / steps)
    assert record["pairing_share"] == 0.0, "nothing waited for it"
    assert (meter.steps, meter.pairings, meter.waited) == (0, [], 0.0)


@pytest.mark.parametrize("waits", [0, 1, 2, 5])
def test_the_share_is_of_what_was_both_paired_and_waited_for(monkeypatch, waits):
    meter = ticking(monkeypatch, "cpu")
    coupling = Timed(Independent(), meter)
    for _ in range(2):
        coupling(torch.zeros(2, 3))
    for _ in range(waits):
        with meter.waiting():
            pass
    meter.steps = 1
    record = meter.record()
    assert record["pairing_ms"] == 2000
    assert record["waiting_ms"] == 1000 * waits
    assert record["pairing_share"] == min(2, waits) / record["seconds_per_step"]


def test_steps_without_a_pairing_of_their_own_are_recorded(monkeypatch):
    """The thread may have paired for several steps before the last record."""
    meter = ticking(monkeypatch, "cpu")
    meter.steps, meter.began = 1, -1.0
    assert meter.record()["pairing_ms"] == 0


def test_a_timed_coupling_draws_what_the_coupling_draws():
    data = torch.zeros(4, 3)
    meter = StepMetrics(torch.device("cpu"))
    noise = Timed(Independent(), meter)(data, generator=torch.Generator().manual_seed(0))
    assert torch.equal(noise, Independent()(data, generator=torch.Generator().manual_seed(0)))
    assert meter.pairings[0] >= 0
