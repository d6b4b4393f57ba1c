"""What a probe may say: helps or costs by so much, no effect above seed noise, or too little.

Pure arithmetic on the distances of finished trainings. A comparison is one start law and one number
of sampling steps: the log of distance(coupling) / distance(no pairing) at the end of training,
paired by seed, with a t-interval. The intervals hold together at 95%: each at 1 - 5% / comparisons
(Bonferroni). A gain counts if its interval excludes 1, the floor does not hide it, and the shuffled
control (same law of noise, same start, no pairing) does not explain it: then the interval of
distance(coupling) / distance(control) excludes 1 too, at the same level.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from immiscible_diffusion.experiments.pilot.ratio import FEWEST_SEEDS, Ratio, seeds_for
from immiscible_diffusion.metrics.evaluate import Floor
from immiscible_diffusion.reporting.compare.speedup import floor_resolves
from immiscible_diffusion.utils.statistics import CONFIDENCE

BASELINE, SHUFFLED, MATCHED = "independent", "shuffled:", "matched:"
LEARNT = 0.5  # of the distance of samples that took no training

Finals = Mapping[tuple[str, int], Mapping[int, float]]
"""(arm, sampling steps) -> seed -> distance at the end of training."""


@dataclass(frozen=True)
class Comparison:
    """A coupling, sampled from one law in ``budget`` steps, against no pairing.

    Attributes:
        arm: the coupling, with ``matched:`` where samples start from the law it was trained on.
        budget: sampling steps.
        ratio: distance / distance without pairing; below 1 the coupling is better.
        pairing: distance / distance of its control: what of it is pairing.
        baseline: mean distance without pairing.
        final: mean distance with the coupling.
        above_floor: the floor does not hide the difference.
    """

    arm: str
    budget: int
    ratio: Ratio
    pairing: Ratio
    baseline: float
    final: float
    above_floor: bool

    @property
    def verdict(self) -> str:
        """'helps', 'costs', 'law' (the control gains no less), 'none', 'floor' or 'open'."""
        if (self.ratio.below_one or self.ratio.above_one) and not self.above_floor:
            return "floor"
        if self.ratio.above_one:
            return "costs"
        if self.ratio.below_one and self.pairing.below_one:
            return "helps"
        if self.ratio.below_one:
            return "law" if self.pairing.is_narrow or self.pairing.above_one else "open"
        return "none" if self.ratio.is_narrow else "open"

    @property
    def share_of_pairing(self) -> float | None:
        """The share of the gain (in logs) that its control does not have."""
        if self.verdict != "helps":
            return None
        return math.log(self.pairing.value) / math.log(self.ratio.value)


@dataclass(frozen=True)
class Verdict:
    """How a probe ends.

    Attributes:
        kind: 'helps', 'costs', 'none' or 'too little'.
        sentence: the one sentence.
        comparisons: all that was looked at.
        level: of each interval.
        seeds_needed: that would tell, where too few did.
    """

    kind: str
    sentence: str
    comparisons: tuple[Comparison, ...] = ()
    level: float = CONFIDENCE
    seeds_needed: int | None = None


def compare(
    finals: Finals, coupling: str, floor: Floor | None
) -> tuple[tuple[Comparison, ...], float]:
    """Every comparison that ``finals`` allow, and the level of their intervals."""
    arms = [arm for arm in (MATCHED + coupling, coupling) if any(a == arm for a, _ in finals)]
    sampling_steps = sorted({budget for _, budget in finals})
    level = 1 - (1 - CONFIDENCE) / (len(arms) * len(sampling_steps))
    found = []
    for arm in arms:
        for budget in sampling_steps:
            mine, base = finals[arm, budget], finals[BASELINE, budget]
            control = finals[control_of(arm), budget]
            means = fmean(base.values()), fmean(mine.values())
            found.append(
                Comparison(
                    arm,
                    budget,
                    Ratio.of(mine, base, level),
                    Ratio.of(mine, control, level),
                    *means,
                    floor_resolves(None if floor is None else (floor.low, floor.high), *means),
                )
            )
    return tuple(found), level


def control_of(arm: str) -> str:
    """The shuffled control of an arm, which starts where the arm starts."""
    matched = MATCHED if arm.startswith(MATCHED) else ""
    return matched + SHUFFLED + arm.removeprefix(MATCHED)


def judge(finals: Finals, coupling: str, *, floor: Floor | None, untrained: float) -> Verdict:
    """The verdict on distances at the end of training.

    Args:
        finals: of every arm, at every number of sampling steps, on the same seeds.
        coupling: that is asked about.
        floor: distance between sets of real data; None = not known.
        untrained: distance of what takes no training: pure noise, or the mean of the data.
    """
    seeds = min(len(values) for values in finals.values()) if finals else 0
    if seeds < FEWEST_SEEDS:
        said = f"too little time to tell: {seeds} of at least {FEWEST_SEEDS} seeds were finished"
        return Verdict("too little", said, seeds_needed=FEWEST_SEEDS)
    comparisons, level = compare(finals, coupling, floor)
    if min(c.baseline for c in comparisons) > LEARNT * untrained:
        said = (
            "too little time to tell: without pairing the network has hardly learnt anything yet "
            f"(distance {min(c.baseline for c in comparisons):.3g}, without training "
            f"{untrained:.3g})"
        )
        return Verdict("too little", said, comparisons, level)
    kinds = {c.verdict for c in comparisons}
    for kind, say in (("helps", _helps), ("costs", _costs)):
        if kind in kinds:
            return Verdict(kind, say(comparisons), comparisons, level)
    if kinds & {"open", "floor"}:
        return _too_little(comparisons, level)
    return Verdict("none", _none(comparisons), comparisons, level)


def _helps(comparisons: tuple[Comparison, ...]) -> str:
    best = min((c for c in comparisons if c.verdict == "helps"), key=lambda c: c.ratio.value)
    share = best.share_of_pairing
    of_pairing = "" if share is None else f", {min(1.0, share):.0%} of it by pairing itself"
    said = f"helps by {_percent(best.ratio, 1)}: {_where(best)}{of_pairing}"
    costs = [c for c in comparisons if c.verdict == "costs"]
    worst = sorted(costs, key=lambda c: (c.arm != best.arm, -c.ratio.value))[:1]
    return said + "".join(f"; but costs {_percent(c.ratio, -1)}: {_where(c)}" for c in worst)


def _costs(comparisons: tuple[Comparison, ...]) -> str:
    worst = max((c for c in comparisons if c.verdict == "costs"), key=lambda c: c.ratio.value)
    by_law = 1 - math.log(worst.pairing.value) / math.log(worst.ratio.value)
    law = ", mostly by the changed law of the noise: its control costs as much or nearly"
    said = f"costs {_percent(worst.ratio, -1)}: {_where(worst)}{law if by_law > 0.5 else ''}"
    others = [c for c in comparisons if c.arm != worst.arm]
    if others and all(c.verdict != "costs" for c in others):
        said += f"; {_elsewhere(others)}"
    return said


def _elsewhere(others: list[Comparison]) -> str:
    """What is seen from the other start, where nothing helps and nothing costs."""
    start, by_law = _start(others[0].arm), [c for c in others if c.verdict == "law"]
    if not by_law:
        return f"{start} no effect is resolved"
    best = min(by_law, key=lambda c: c.ratio.value)
    return (
        f"{start} it is {1 - best.ratio.value:.0%} nearer to the data than none in "
        f"{_steps(best.budget)}, but so is its control: the changed law of the noise"
    )


def _none(comparisons: tuple[Comparison, ...]) -> str:
    law = [c for c in comparisons if c.verdict == "law"]
    widest = max(
        max(r.high, 1 / r.low) for r in (c.pairing if c in law else c.ratio for c in comparisons)
    )
    said = f"no effect above seed noise: any is smaller than {widest - 1:.0%} of the distance"
    # Of those whose control is resolved to be better still, if there are any.
    beaten = [c for c in law if c.pairing.above_one]
    if law:
        best = min(beaten or law, key=lambda c: c.ratio.value)
        start = "no effect to gain by" if beaten else "no effect of pairing above seed noise"
        so = (
            "its control with the noises shuffled is nearer still"
            if beaten
            else ("so is its control with the noises shuffled")
        )
        end = ", and pairing takes some of it back" if beaten else ""
        said = (
            f"{start}: {_where(best)} is {1 - best.ratio.value:.0%} nearer to the data than none, "
            f"but {so} ({1 - best.ratio.value / best.pairing.value:.0%}): the changed law of the "
            f"noise{end}"
        )
    return said


def _too_little(comparisons: tuple[Comparison, ...], level: float) -> Verdict:
    hidden = [c for c in comparisons if c.verdict == "floor"]
    wide = [_deciding(c) for c in comparisons if c.verdict == "open"]
    if hidden and not wide:
        said = (
            "too little data to tell: the difference is within what two sets of real data of this "
            "size differ by"
        )
        return Verdict("too little", said, comparisons, level)
    widest = max(max(r.high, 1 / r.low) for r in wide)
    needed = max(seeds_for(ratio.spread, level) for ratio in wide)
    said = (
        f"too little time to tell: {wide[0].seeds} seeds leave room for an effect of "
        f"{widest - 1:.0%} either way"
    )
    return Verdict("too little", said, comparisons, level, max(needed, wide[0].seeds + 1))


def _deciding(comparison: Comparison) -> Ratio:
    return comparison.pairing if comparison.ratio.below_one else comparison.ratio


def _percent(ratio: Ratio, sign: int) -> str:
    """The change of the distance, less (``sign`` 1) or more (-1), with its interval."""
    ends = sorted(sign * (1 - value) for value in (ratio.low, ratio.high))
    return f"{sign * (1 - ratio.value):.0%} ({ends[0]:.0%} to {ends[1]:.0%})"


def _where(comparison: Comparison) -> str:
    name = comparison.arm.removeprefix(MATCHED)
    return f"{name} sampled {_start(comparison.arm)} in {_steps(comparison.budget)}"


def _steps(budget: int) -> str:
    return f"{budget} Euler {'step' if budget == 1 else 'steps'}"


def _start(arm: str) -> str:
    return "from its own law" if arm.startswith(MATCHED) else "from N(0, I)"
