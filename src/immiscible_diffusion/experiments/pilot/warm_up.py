"""The warm-up: how long steps and judging take here, so that the minutes can be divided."""

import time

from immiscible_diffusion.experiments.pilot.cells import Bench
from immiscible_diffusion.experiments.pilot.division import Timing
from immiscible_diffusion.experiments.pilot.training import AT_ONCE

# What a coupling of one's own may raise beside ValueError.
FAULTS = (RuntimeError, TypeError, AttributeError, LookupError, ArithmeticError)
SECONDS, SHARE, LEFT_OUT, LONGEST = 3.0, 0.02, 3, 500


class TimeUp(Exception):
    """The time is over."""


def measure(bench: Bench, seed: int, seconds: float) -> Timing:
    """Time steps of every coupling and judging once, on the data of ``seed``.

    Args:
        bench: what is trained.
        seed: of the data and weights.
        seconds: of the whole probe; the warm-up takes a small share.

    Raises:
        ValueError: a coupling fails on the data, or pairs several batches as one.
    """
    began = time.monotonic()
    try:
        ground = bench.ground(seed)
    except FAULTS as error:
        raise ValueError(f"coupling '{bench.coupling}' fails on the data: {error}") from error
    if ground.coupling.pool_size > 1:
        raise ValueError("a probe pairs one batch at a time; leave out pool=")
    preparing = time.monotonic() - began
    most = min(SECONDS, seconds * SHARE)
    steps = [_step_seconds(bench, coupling, seed, most) for coupling in bench.couplings]
    return Timing(sum(steps), _judging_seconds(bench, seed), preparing)


def _step_seconds(bench: Bench, coupling: str, seed: int, most: float) -> float:
    """Of one training step after the first few."""
    times: list[float] = []

    def watch(step: int) -> None:
        times.append(time.monotonic())
        if step > LEFT_OUT and times[-1] - times[LEFT_OUT - 1] > most:
            raise TimeUp

    try:
        bench.cell(coupling, seed, LONGEST, (), watch)
    except TimeUp:
        pass
    except FAULTS as error:
        raise ValueError(f"coupling '{coupling}' fails on the data: {error}") from error
    return (times[-1] - times[LEFT_OUT - 1]) / (len(times) - LEFT_OUT)


def _judging_seconds(bench: Bench, seed: int) -> float:
    """Of judging all arms once, from a part of the samples."""
    prepared = bench.prepared
    model = bench.network.build(prepared.shape, prepared.told(prepared.batch), seed)
    start = bench.ground(seed).start
    part, began = start[:AT_ONCE], time.monotonic()
    bench.samples(model.to(bench.device), seed, part, 1)
    one = (time.monotonic() - began) / len(part) * len(start)
    began = time.monotonic()
    bench.distance(start, seed)
    distance = time.monotonic() - began
    arms = sum(len(list(bench.arms(coupling, seed))) for coupling in bench.couplings)
    return arms * sum(one * budget + distance for budget in bench.sampling_steps)
