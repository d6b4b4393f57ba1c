"""Training losses by time: sums by bin, over micro-batches and over ranks."""

import dataclasses
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch

from helpers import train
from immiscible_diffusion.diffusion.losses import RegressionLoss
from immiscible_diffusion.training.metrics_log import TIME_BINS, StepMetrics, loss_by_time
from immiscible_diffusion.training.run_dir import RunDir


@dataclass(frozen=True)
class TimeLoss(RegressionLoss):
    """The loss of a sample is its time."""

    def __call__(self, model, path, data, noise, t, cond, mask=None, *, progress=1.0):
        return t + 0 * model(data, t, cond).flatten(1).mean(dim=1)


def brute_force(losses: list[float], times: list[float]) -> list[float | None]:
    groups: list[list[float]] = [[] for _ in range(TIME_BINS)]
    for loss, t in zip(losses, times, strict=True):
        groups[min(TIME_BINS - 1, int(t * TIME_BINS))].append(loss)
    return [sum(group) / len(group) if group else None for group in groups]


@pytest.mark.parametrize("low", [0.0, 0.55])
def test_sums_by_bin_are_a_regrouping_of_all_losses(low):
    generator = torch.Generator().manual_seed(0)
    metrics, losses, times = StepMetrics(torch.device("cpu")), [], []
    for count in (7, 64, 1):
        loss = torch.rand(count, generator=generator)
        t = low + (1 - low) * torch.rand(count, generator=generator)
        metrics.add(loss, t)
        losses += loss.tolist()
        times += t.tolist()
    found = loss_by_time(metrics.by_time)
    expected = brute_force(losses, times)
    assert found["time_bins"] == [i / 10 for i in range(11)]
    assert [value is None for value in found["loss_by_time"]] == [v is None for v in expected]
    kept = [value for value in expected if value is not None]
    assert [v for v in found["loss_by_time"] if v is not None] == pytest.approx(kept, rel=1e-5)
    assert low == 0.0 or found["loss_by_time"][:5] == [None] * 5


def test_both_ends_of_t_have_a_bin():
    metrics = StepMetrics(torch.device("cpu"))
    metrics.add(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.0, 1.0, 0.95]))
    assert loss_by_time(metrics.by_time)["loss_by_time"] == [1.0, *[None] * 8, 3.0]


def test_two_metricss_added_are_one():
    losses, t = torch.rand(50), torch.rand(50)
    whole, left, right = (StepMetrics(torch.device("cpu")) for _ in range(3))
    whole.add(losses, t)
    left.add(losses[:20], t[:20])
    right.add(losses[20:], t[20:])
    both = left.by_time + right.by_time
    torch.testing.assert_close(both, whole.by_time)


def test_the_trainer_logs_each_loss_at_its_own_time(tiny, tmp_path):
    """A loss that is its time: every bin's mean lies within the bin, their mean is the loss."""
    recipe = dataclasses.replace(tiny, batch_size=64, steps=4, log_every=4, loss=TimeLoss(), preview_every=0)
    trainer = train(recipe, tmp_path)
    [record] = trainer.run_dir.records("train")
    edges = record["time_bins"]
    for low, high, value in zip(edges, edges[1:], record["loss_by_time"], strict=False):
        assert low <= value <= high
    times = torch.cat(
        [recipe.path.sample_time(64, generator=trainer.loader.streams(i).time) for i in range(4)]
    ).tolist()
    assert record["loss_by_time"] == pytest.approx(brute_force(times, times), rel=1e-5)


@pytest.mark.subprocess
def test_two_ranks_log_what_one_process_logs(tmp_path):
    base = ["-m", "immiscible_diffusion", "train", "digits-flow", "--tiny", "--device", "cpu"]
    base += ["--preview-every", "0", "--batch-size", "64", "--log-every", "4", "--out"]
    one = [sys.executable, *base, str(tmp_path / "one"), "--gradient_accumulation_steps", "2"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    two = [sys.executable, *launch, *base, str(tmp_path / "two"), "--gradient_accumulation_steps", "1"]
    for command in (one, two):
        subprocess.run(command, check=True, capture_output=True, timeout=300)
    left, right = (RunDir(tmp_path / name).records("train") for name in ("one", "two"))
    assert len(left) == len(right) == 2
    for mine, theirs in zip(left, right, strict=True):
        assert mine["loss_by_time"] == pytest.approx(theirs["loss_by_time"], rel=1e-4)
