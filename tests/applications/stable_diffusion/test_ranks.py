"""Stable Diffusion in two processes: equal to one, and killed and resumed."""

import random
import signal
import time

import pytest
import torch

from fixtures.two_processes import finish, start
from helpers import assert_same_weights, weights
from immiscible_diffusion.cli.train import main as train
from immiscible_diffusion.training.run_dir import RunDir

# What one process draws and pairs that two draw and pair together.
TOGETHER = """
import dataclasses
import torch
from immiscible_diffusion import LinearAssignment
from immiscible_diffusion.utils.random import RandomStreams

STEPS = []

@dataclasses.dataclass(frozen=True)
class Together(LinearAssignment):
    pool: int = 2

    def __call__(self, data, *, cond=None, mask=None, generator=None):
        step, half = len(STEPS), len(data) // 2
        STEPS.append(step)
        noise = [
            torch.randn(half, *data.shape[1:], generator=RandomStreams(42, step, chunk).noise)
            for chunk in range(2)
        ]
        return self.pair_here(data, torch.cat(noise), None, None, None)
"""


def options(folder, pipeline, *more):
    return [
        *("train", "imagenet-sd-scratch", "--tiny", "--device", "cpu", "--out", str(folder)),
        *("--codec.pretrained", str(pipeline), "--data.size", "8", "--batch-size", "8"),
        *("--optim.lr", "1e-3", "--preview-every", "0", "--log-every", "1", *more),
    ]


def losses(folder, kind="train"):
    return [record["loss"] for record in RunDir(folder).records(kind)]


LONG = ("--steps", "24", "--checkpoint-every", "3", "--coupling", "assignment:across_ranks=true")


@pytest.fixture(scope="module")
def whole(small_sd, tmp_path_factory):
    """Two processes that pair together, without an interruption."""
    folder = tmp_path_factory.mktemp("ranks") / "whole"
    finish(start(2, *options(folder, small_sd, *LONG)))
    return folder


@pytest.mark.subprocess
def test_two_processes_equal_one(small_sd, tmp_path):
    more = ("--coupling", "knn:k=4,center=mean")
    assert train(options(tmp_path / "one", small_sd, *more, "--gradient_accumulation_steps", "2")[1:]) == 0
    finish(start(2, *options(tmp_path / "two", small_sd, *more)))
    assert_equal(tmp_path / "one", tmp_path / "two")


def test_two_processes_that_pair_together_equal_one(small_sd, tmp_path, whole, monkeypatch):
    (tmp_path / "together.py").write_text(TOGETHER)
    monkeypatch.syspath_prepend(tmp_path)
    more = (*LONG[:-1], "together:Together()", "--gradient_accumulation_steps", "2")
    assert train(options(tmp_path / "one", small_sd, *more)[1:]) == 0
    assert_equal(tmp_path / "one", whole)


def assert_equal(one, two):
    """But for rounding."""
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert losses(two, "validation") == pytest.approx(losses(one, "validation"), rel=1e-5)
    left, right = weights(one), weights(two)
    for name in left:
        # Adam divides by gradients that may be nearly 0: a thousandth of what weights moved by.
        torch.testing.assert_close(left[name], right[name], rtol=1e-4, atol=1e-5)


@pytest.mark.subprocess
def test_two_processes_killed_and_resumed_equal_uninterrupted(small_sd, tmp_path, whole):
    killed = tmp_path / "killed"
    processes = start(2, *options(killed, small_sd, *LONG))
    wait_for_step(RunDir(killed), random.randrange(4, 18))
    for process in processes:
        process.kill()
    for process in processes:
        process.communicate()
    assert [process.returncode for process in processes] == [-signal.SIGKILL] * 2
    finish(start(2, *options(killed, small_sd, *LONG)))
    assert_same_weights(whole, killed)
    steps = [record["step"] for record in RunDir(killed).records("train")]
    assert steps == list(range(1, 25)), "every step is logged once"
    assert losses(whole) == losses(killed)


def wait_for_step(run, step):
    deadline = time.monotonic() + 180
    while max((record["step"] for record in run.records("train")), default=0) < step:
        assert time.monotonic() < deadline, "the run did not start"
        time.sleep(0.02)
