"""Minutes divided into seeds and steps, after a warm-up that says how long these take here."""

import _thread
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from immiscible_diffusion.diffusion.samplers import start_noise
from immiscible_diffusion.experiments.compare.plan import Plan, Trial
from immiscible_diffusion.experiments.pilot.task import ArrayEvaluator
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.training.task import Task
from immiscible_diffusion.training.trainer import Trainer
from immiscible_diffusion.utils.checks import NonNegativeFloat, PositiveInt, check_fields

SHARE = 0.85  # of the minutes are planned: the rest is for what the warm-up did not see
MIN_STEPS, ENOUGH_STEPS, MAX_STEPS = 200, 1500, 5000
MIN_SEEDS, USUAL_SEEDS, MAX_SEEDS = 3, 5, 12
POINTS = (0.25, 0.5, 1.0)
EVALUATION_SHARE = 0.3  # of the time that a curve may cost
WARM_UP_SECONDS, WARM_UP_SHARE, LEFT_OUT, MAX_WARM_UP_STEPS = 3.0, 0.02, 3, 500
GENERATED = 512
# What a coupling of one's own may raise beside ValueError.
FAULTS = (RuntimeError, TypeError, AttributeError, LookupError, ArithmeticError)


@dataclass(frozen=True)
class Timing:
    """Seconds, measured in the warm-up."""

    steps: float  # one training step of every coupling, summed
    evaluation: float  # evaluating all couplings and starts once
    preparation: float  # what every seed needs first

    def seconds(self, seeds: int, steps: int, points: int) -> float:
        """Seconds of a whole pilot."""
        return seeds * (self.preparation + steps * self.steps + points * self.evaluation)

    def eval_points(self, steps: int) -> tuple[float, ...]:
        """Fractions of training to evaluate at: a curve if it costs little, else the end alone."""
        cheap = len(POINTS) * self.evaluation <= EVALUATION_SHARE * steps * self.steps
        return POINTS if cheap else POINTS[-1:]


@dataclass(frozen=True)
class Division:
    """How the minutes are spent; every coupling gets the same steps at every seed."""

    seeds: PositiveInt
    steps: PositiveInt  # of each training
    eval_steps: tuple[PositiveInt, ...]  # at which samples are evaluated; the last is ``steps``
    seconds: NonNegativeFloat  # expected

    def __post_init__(self) -> None:
        check_fields(self, "division.")

    @classmethod
    def of(cls, seeds: int, steps: int, timing: Timing) -> "Division":
        """``seeds`` and ``steps`` with the points that fit."""
        points = timing.eval_points(steps)
        eval_steps = tuple(sorted({max(1, round(point * steps)) for point in points}))
        return cls(seeds, steps, eval_steps, timing.seconds(seeds, steps, len(eval_steps)))


def divide(minutes: float, timing: Timing, *, seeds: int | None = None, steps: int | None = None) -> Division | None:
    """As many seeds as leave enough steps to each, if none were asked for; None where not even the fewest fit.

    Five at least where each gets ``MIN_STEPS``; more only beyond ``ENOUGH_STEPS``; fewer only where five do not fit.
    """
    if seeds is not None and steps is not None:
        return Division.of(seeds, steps, timing)
    counts = [seeds] if seeds is not None else range(MAX_SEEDS, MIN_SEEDS - 1, -1)
    for count in counts:
        fit = _steps_in(60 * minutes * SHARE / count, timing)
        enough = ENOUGH_STEPS if seeds is None and count > USUAL_SEEDS else MIN_STEPS
        if fit >= (enough if steps is None else steps):
            return Division.of(count, min(fit, MAX_STEPS) if steps is None else steps, timing)
    return None


def minutes_for(timing: Timing, seeds: int, steps: int = MIN_STEPS) -> int:
    """Minutes that so many seeds and steps need, rounded up."""
    return math.ceil(Division.of(seeds, steps, timing).seconds / 60 / SHARE)


def _steps_in(seconds: float, timing: Timing) -> int:
    """Steps that fit into the seconds of one seed."""
    left, step = seconds - timing.preparation, max(timing.steps, 1e-9)
    with_curve = int((left - len(POINTS) * timing.evaluation) / step)
    if with_curve > 0 and timing.eval_points(with_curve) == POINTS:
        return with_curve
    return int((left - timing.evaluation) / step)


def warm_up(plan: Plan, task: Task, evaluator: ArrayEvaluator, seconds: float) -> Timing:
    """Time training steps of every coupling of ``plan``, and one evaluation, in a small share of ``seconds``.

    ``plan``, ``task`` and ``evaluator`` are of one seed. ValueError if a coupling fails on the data.
    """
    began = time.monotonic()
    evaluator.reference  # noqa: B018 - features are fitted once for all trials of a seed
    preparation, steps, evaluation = time.monotonic() - began, 0.0, 0.0
    with TemporaryDirectory() as folder:
        _trainer(plan, plan.trials[0], task, Path(folder))  # the first one imports libraries
    for trial in (trial for trial in plan.trials if not trial.is_matched):
        starts = [trial, *([matched] if (matched := plan.matched_trial(trial)) else [])]
        try:
            with TemporaryDirectory() as folder:
                began = time.monotonic()
                # The matched start is what takes long to prepare: its noise is measured.
                trainer = _trainer(plan, starts[-1], task, Path(folder))
                preparation += time.monotonic() - began
                steps += _step_seconds(trainer, min(WARM_UP_SECONDS, seconds * WARM_UP_SHARE))
                evaluation += len(starts) * _evaluation_seconds(trainer, evaluator)
        except FAULTS as error:
            raise ValueError(f"coupling '{trial.coupling}' fails on the data: {error}") from error
    return Timing(steps, evaluation, preparation)


def _trainer(plan: Plan, trial: Trial, task: Task, folder: Path) -> Trainer:
    recipe = plan.trial_recipe(trial)
    return Trainer(recipe, RunDir(folder), device=task.device.type, dataset=task.dataset)


def _step_seconds(trainer: Trainer, most: float) -> float:
    """Seconds of one training step after the first few."""
    with trainer.paired_loader() as loader:
        batches, times = iter(loader), list[float]()
        while len(times) < MAX_WARM_UP_STEPS:
            trainer.train_step(batches)
            times.append(time.monotonic())
            if len(times) > LEFT_OUT and times[-1] - times[LEFT_OUT - 1] > most:
                break
    return (times[-1] - times[LEFT_OUT - 1]) / (len(times) - LEFT_OUT)


def _evaluation_seconds(trainer: Trainer, evaluator: ArrayEvaluator) -> float:
    """Seconds of evaluating one start once, from a part of the samples."""
    count = len(evaluator.samples.held_out)
    part, began = min(count, GENERATED), time.monotonic()
    trainer.pipeline.with_steps(1).sample(trainer.ema.model, range(part), seed=0)
    one = (time.monotonic() - began) / part * count
    noise, began = start_noise(0, range(count), evaluator.samples.shape), time.monotonic()
    evaluator.distance(noise)
    distance = time.monotonic() - began
    return sum(one * steps + distance for steps in trainer.recipe.task.eval.sampling_steps)


@contextmanager
def stop_after(seconds: float) -> Iterator[threading.Event]:
    """Stop training as a signal does once ``seconds`` are over; yields whether they are."""
    over, left = threading.Event(), threading.Event()

    def wait() -> None:
        if left.wait(max(0.0, seconds)):
            return
        over.set()
        while not left.wait(0.5):  # a training that begins later is stopped as well
            _thread.interrupt_main(signal.SIGTERM)

    thread = threading.Thread(target=wait, daemon=True, name="minutes")
    thread.start()
    try:
        yield over
    finally:
        left.set()
        thread.join()
