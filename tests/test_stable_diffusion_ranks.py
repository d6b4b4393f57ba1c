"""Stable Diffusion in two processes: equal to one, and killed and resumed."""

import random
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from immiscible_diffusion.runfolder import RunFolder
from two_processes import finish, start

# What one process draws and pairs that two draw and pair together.
TOGETHER = """
import dataclasses
import torch
from immiscible_diffusion import LinearAssignment
from immiscible_diffusion.rng import Streams

STEPS = []

@dataclasses.dataclass(frozen=True)
class Together(LinearAssignment):
    pool: int = 2

    def __call__(self, data, *, cond=None, mask=None, generator=None):
        step, half = len(STEPS), len(data) // 2
        STEPS.append(step)
        noise = [
            torch.randn(half, *data.shape[1:], generator=Streams(42, step, chunk).noise)
            for chunk in range(2)
        ]
        return self.pair_here(data, torch.cat(noise))
"""


def options(folder, pipeline, *more):
    return [
        *("train", "imagenet-sd-scratch", "--tiny", "--device", "cpu", "--out", str(folder)),
        *("--codec.pretrained", str(pipeline), "--data.size", "8", "--batch-size", "8"),
        *("--optimiser.lr", "1e-3", "--preview-every", "0", "--log-every", "1", *more),
    ]


def weights(folder):
    return load_file(folder / "weights" / "model.safetensors")


def losses(folder, kind="train"):
    return [record["loss"] for record in RunFolder(folder).records(kind)]


@pytest.mark.parametrize("kind", ["knn", "global assignment"])
def test_two_processes_equal_one(small_sd, tmp_path, kind):
    (tmp_path / "together.py").write_text(TOGETHER)
    one, two = {
        "knn": ("knn:k=4,center=mean", "knn:k=4,center=mean"),
        "global assignment": ("together:Together()", "assignment:across_ranks=true"),
    }[kind]
    alone = options(tmp_path / "one", small_sd, "--coupling", one, "--accumulation", "2")
    both = options(tmp_path / "two", small_sd, "--coupling", two)
    finish(start(1, *alone, path=tmp_path))
    finish(start(2, *both, path=tmp_path))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert losses(tmp_path / "two", "validation") == pytest.approx(
        losses(tmp_path / "one", "validation"), rel=1e-5
    )
    left, right = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in left:
        # Adam divides by gradients that may be nearly 0: a thousandth of what weights moved by.
        torch.testing.assert_close(left[name], right[name], rtol=1e-4, atol=1e-5)


def test_two_processes_killed_and_resumed_equal_uninterrupted(small_sd, tmp_path):
    more = (
        "--steps",
        "30",
        "--checkpoint-every",
        "3",
        "--coupling",
        "assignment:across_ranks=true",
    )
    finish(start(2, *options(tmp_path / "whole", small_sd, *more)))
    processes = start(2, *options(tmp_path / "killed", small_sd, *more))
    wait_for_step(RunFolder(tmp_path / "killed"), random.randrange(4, 22))
    for process in processes:
        process.kill()
    for process in processes:
        process.communicate()
    assert [process.returncode for process in processes] == [-signal.SIGKILL] * 2
    finish(start(2, *options(tmp_path / "killed", small_sd, *more)))
    left, right = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    steps = [record["step"] for record in RunFolder(tmp_path / "killed").records("train")]
    assert steps == list(range(1, 31)), "every step is logged once"
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")


def wait_for_step(run, step):
    deadline = time.monotonic() + 180
    while max((record["step"] for record in run.records("train")), default=0) < step:
        assert time.monotonic() < deadline, "the run did not start"
        time.sleep(0.02)
