"""Minutes divided into seeds and steps."""

import math
from dataclasses import dataclass

SHARE = 0.85  # of the minutes are planned: the rest is for what the warm-up did not see
FEWEST_STEPS, ENOUGH_STEPS, MOST_STEPS = 200, 1500, 5000
FEWEST_SEEDS, USUAL_SEEDS, MOST_SEEDS = 3, 5, 12
POINTS = (0.25, 0.5, 1.0)
JUDGING = 0.3  # share of the time that a curve may cost


@dataclass(frozen=True)
class Timing:
    """Seconds, measured in the warm-up.

    Attributes:
        steps: of one training step of every coupling, summed.
        judging: of judging all arms once.
        preparing: of what every seed needs first.
    """

    steps: float
    judging: float
    preparing: float

    def seconds(self, seeds: int, steps: int, points: int) -> float:
        """Of a whole probe."""
        return seeds * (self.preparing + steps * self.steps + points * self.judging)


@dataclass(frozen=True)
class Division:
    """How the minutes are spent; every coupling gets the same steps at every seed.

    Attributes:
        seeds: trainings of every coupling.
        steps: of each.
        at: the steps at which samples are judged; the last is ``steps``.
        seconds: expected.
    """

    seeds: int
    steps: int
    at: tuple[int, ...]
    seconds: float


def divide(
    minutes: float, timing: Timing, *, seeds: int | None = None, steps: int | None = None
) -> Division | None:
    """As many seeds as leave enough steps to each; None where not even the fewest fit.

    Five seeds at least where each gets ``FEWEST_STEPS``; more only beyond ``ENOUGH_STEPS``; below
    five only where five do not fit.

    Args:
        minutes: in all that are left.
        timing: of the warm-up.
        seeds: asked for; None = by this rule.
        steps: asked for; None = what fits.
    """
    seconds = 60 * minutes * SHARE
    if seeds is not None and steps is not None:
        return _division(seeds, steps, timing)
    several = [seeds] if seeds is not None else [*range(MOST_SEEDS, FEWEST_SEEDS - 1, -1)]
    for count in several:
        fits = _steps(seconds / count, timing)
        wanted = ENOUGH_STEPS if seeds is None and count > USUAL_SEEDS else FEWEST_STEPS
        if fits >= (wanted if steps is None else steps):
            return _division(count, min(fits, MOST_STEPS) if steps is None else steps, timing)
    return None


def minutes_for(timing: Timing, seeds: int, steps: int = FEWEST_STEPS) -> int:
    """Minutes that so many seeds and steps need, rounded up."""
    return math.ceil(timing.seconds(seeds, steps, len(_points(timing, steps))) / 60 / SHARE)


def _steps(seconds: float, timing: Timing) -> int:
    """Steps that fit into the seconds of one seed."""
    left = seconds - timing.preparing
    whole = int((left - len(POINTS) * timing.judging) / max(timing.steps, 1e-9))
    if whole > 0 and len(_points(timing, whole)) > 1:
        return whole
    return int((left - timing.judging) / max(timing.steps, 1e-9))


def _points(timing: Timing, steps: int) -> tuple[float, ...]:
    """A curve if it costs little, else the end alone."""
    cheap = len(POINTS) * timing.judging <= JUDGING * steps * timing.steps
    return POINTS if cheap else POINTS[-1:]


def _division(seeds: int, steps: int, timing: Timing) -> Division:
    shares = _points(timing, steps)
    at = tuple(sorted({max(1, round(share * steps)) for share in shares}))
    return Division(seeds, steps, at, timing.seconds(seeds, steps, len(at)))
