"""How many times fewer steps: of training, and of the sampler, to equal metric, with intervals over seeds.

Both are the same mathematics on curves of a trial: the best metric up to so many steps, linear in log step and log of
the metric between neighboring evaluations; the ratio is steps(baseline) / steps(coupling) to the same target, and
below 1 the coupling is slower. Over training steps the target is the worse of the two best values, so that both
reach it. Over sampling steps, after the last training step, it is what the baseline reaches with a given number. Where
a curve is at the target when first evaluated, or never, the ratio is only a bound.

Either saving is a verdict by its interval over paired seeds. Where the floor hides the difference of the best values
(``resolved`` is False) it carries a mark wherever it is shown, and a bound is no verdict there.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from statistics import fmean
from typing import Literal

from immiscible_diffusion.reporting.compare.records import Comparison, Trial
from immiscible_diffusion.utils.statistics import (
    CONFIDENCE,
    SMALLEST,
    Interval,
    geometric_interval,
    holm,
    mean_interval,
    ratio_interval,
    ratio_p_value,
)


class Verdict(str, Enum):
    """Whether a coupling differs from the baseline over seeds; intervals are of 95%."""

    HELPS = "helps"
    HURTS = "hurts"
    UNRESOLVED = "unresolved"
    NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class SeedSpeedup:
    """One seed: ``ratio`` = steps(baseline) / steps(coupling) to ``target``."""

    seed: int
    target: float
    ratio: float
    bound: str
    baseline_final: float
    coupling_final: float
    time_ratio: float | None = None


@dataclass(frozen=True)
class Speedup:
    """A coupling against the baseline with one number of sampling steps."""

    coupling: str  # its name
    sampling_steps: int  # of the sampler; for ``saves="sampling"`` the baseline's
    saves: Literal["training", "sampling"] = "training"  # steps
    horizon: int | None = None  # the last training step that the seeds have in common
    seeds: tuple[SeedSpeedup, ...] = ()  # the seeds that reach it; others are left out
    steps: Interval | None = None  # geometric mean; None if no seed gives a speed-up
    wall: Interval | None = None  # speed-up in training time, the cost of pairing included
    bound: str = ""  # '>' or '<' where a seed gives only a bound, '~' where seeds give both
    quality_ratio: Interval | None = None  # final metric / the baseline's; below 1: better
    baseline_final: Interval | None = None  # mean of the best metric up to the horizon or the number
    coupling_final: Interval | None = None  # the same of the coupling
    resolved: bool | None = None  # False where the floor hides the difference of the finals
    corrected: float | None = None  # p-value after Holm's correction for all on the page
    repeats: int | None = (
        None  # the fewer sampling steps with which the baseline is as good on every seed: no new test
    )

    @property
    def evidence(self) -> Interval | None:
        """What decides: the interval on steps, or that on the final metric where steps give none.

        A bound counts if it holds on every seed, lies on one side of 1, and the final metric agrees. Where every
        curve is at the target when first evaluated, the final metric decides. Neither does where the floor hides the
        difference. None where nothing decides.
        """
        quality, ratios = self.quality_ratio, [row.ratio for row in self.seeds if row.bound != "~"]
        if quality is None or self.bound == "~" or (self.hidden and (self.bound or self.steps is None)):
            return None
        if self.bound == ">":
            return quality.reciprocal if min(ratios) >= 1 > quality.value else None
        if self.bound == "<":
            return quality.reciprocal if max(ratios) <= 1 < quality.value else None
        return self.steps or quality.reciprocal

    @property
    def hidden(self) -> bool:
        """Whether the floor hides the difference of the final values."""
        return self.resolved is False

    @property
    def marks(self) -> str:
        """'*' where the floor hides the difference, '†' where the verdict holds after Holm's correction."""
        return "*" * self.hidden + "†" * self.holds

    @property
    def verdict(self) -> Verdict:
        """By the interval of ``evidence``; one seed resolves nothing."""
        if self.quality_ratio is None or self.repeats:
            return Verdict.NOT_MEASURED
        if self.evidence is None or not self.evidence.excludes(1):
            return Verdict.UNRESOLVED
        return Verdict.HELPS if self.evidence.value > 1 else Verdict.HURTS

    @property
    def is_resolved(self) -> bool:
        """Whether the coupling helps or hurts."""
        return self.verdict in (Verdict.HELPS, Verdict.HURTS)

    @property
    def p_value(self) -> float | None:
        """Of the verdict: 1 where nothing decides, None where there are no two seeds or nothing new is tested."""
        if self.quality_ratio is None or self.quality_ratio.count < 2 or self.repeats:
            return None
        return 1.0 if self.evidence is None else ratio_p_value(self.evidence)

    @property
    def holds(self) -> bool:
        """Whether the coupling helps or hurts after the correction for the number of comparisons."""
        return self.is_resolved and self.corrected is not None and self.corrected <= 1 - CONFIDENCE + 1e-9


@dataclass(frozen=True)
class ControlShare:
    """The share of a coupling's gain in the final metric that its shuffled control keeps.

    share = (baseline - control) / (baseline - coupling) of ``finals``, their means over the seeds that all three
    have; None where the gain is not resolved: smaller than the width of the floor, or not positive on every seed.
    """

    sampling_steps: int
    seeds: tuple[int, ...]
    finals: tuple[float, float, float]
    share: float | None


def best_so_far(trial: Trial, sampling_steps: int, until: int | None = None) -> dict[int, float]:
    """The running minimum of the metric by ascending training step, up to step ``until``."""
    points = {m.step: m.value for m in trial.metrics if m.sampling_steps == sampling_steps}
    return running_minimum({step: v for step, v in points.items() if until is None or step <= until})


def running_minimum(points: Mapping[int, float | None]) -> dict[int, float]:
    """The best value up to each number of steps, ascending."""
    curve, best = {}, math.inf
    for step, value in sorted(points.items()):
        if value is not None:
            best = curve[step] = min(best, value)
    return curve


def steps_to(curve: Mapping[int, float], target: float) -> tuple[float, bool]:
    """Steps to reach ``target``, log-linear between evaluations; True if only an upper bound.

    Raises:
        ValueError: the curve never reaches the target.
    """
    points = list(curve.items())
    for i, (step, value) in enumerate(points):
        if value > target:
            continue
        if i == 0 or value == target:  # exactly, for a bound of exactly 1
            return float(step), i == 0
        step_before, value_before = points[i - 1]
        before, after, goal = (math.log(max(v, SMALLEST)) for v in (value_before, value, target))
        share = (before - goal) / (before - after) if before > after else 1.0
        left, right = math.log(step_before), math.log(step)
        return math.exp(left + share * (right - left)), False
    raise ValueError(f"target is {target}; expected at least the best value, {min(curve.values())}")


def compare_seed(baseline: Trial, coupling: Trial, sampling_steps: int, horizon: int) -> SeedSpeedup:
    """Compare two runs of one seed over training steps, both evaluated at ``horizon`` or later."""
    base, other = (best_so_far(trial, sampling_steps, horizon) for trial in (baseline, coupling))
    finals = min(base.values()), min(other.values())
    (base_steps, base_bounded), (steps, bounded) = (steps_to(c, max(finals)) for c in (base, other))
    bound = {(0, 0): "", (0, 1): ">", (1, 0): "<", (1, 1): "~"}[base_bounded, bounded]
    times = baseline.seconds_per_step, coupling.seconds_per_step
    time_ratio = times[0] / times[1] if times[0] and times[1] else None
    return SeedSpeedup(baseline.seed, max(finals), base_steps / steps, bound, *finals, time_ratio)


def compare_samplers(baseline: Trial, coupling: Trial, sampling_steps: int, horizon: int) -> SeedSpeedup | None:
    """Compare two runs of one seed over sampling steps at training step ``horizon``.

    The target is what the baseline reaches with up to ``sampling_steps``, at the fewest steps that reach it. None
    where a trial was not evaluated there.
    """
    points = [{m.sampling_steps: m.value for m in t.metrics if m.step == horizon} for t in (baseline, coupling)]
    shared = set.intersection(*({n for n, value in each.items() if value is not None} for each in points))
    if sampling_steps not in shared:
        return None
    base, other = (running_minimum({n: each[n] for n in shared}) for each in points)
    target, last = base[sampling_steps], max(shared)
    steps, bounded = steps_to(other, target) if other[last] <= target else (last, False)
    bound = "<" if other[last] > target else ">" if bounded else ""
    ratio = steps_to(base, target)[0] / steps
    return SeedSpeedup(baseline.seed, target, ratio, bound, target, other[sampling_steps])


def last_steps(comparison: Comparison, name: str, sampling_steps: int) -> dict[int, int]:
    """The last step with the metric, by seed; seeds without one are absent."""
    curves = {t.seed: best_so_far(t, sampling_steps) for t in comparison.trials_of(name)}
    return {seed: max(curve) for seed, curve in curves.items() if curve}


def common_seeds(comparison: Comparison, names: Sequence[str], sampling_steps: int) -> tuple[int, tuple[int, ...]]:
    """The last step that runs of all ``names`` share on some seed (0 if none), and those seeds."""
    lasts = [last_steps(comparison, name, sampling_steps) for name in names]
    shared = set.intersection(*(set(last) for last in lasts))
    horizons = {seed: min(last[seed] for last in lasts) for seed in shared}
    horizon = max(horizons.values(), default=0)
    return horizon, tuple(sorted(seed for seed in horizons if horizons[seed] == horizon))


def speedup(
    comparison: Comparison, name: str, sampling_steps: int, saves: Literal["training", "sampling"] = "training"
) -> Speedup:
    """Compare the coupling ``name`` with the baseline, paired by seed."""
    names = (comparison.baseline.name, comparison.entry(name).name)
    horizon, seeds = common_seeds(comparison, names, sampling_steps)
    base, other = ({t.seed: t for t in comparison.trials_of(name)} for name in names)
    compare = compare_seed if saves == "training" else compare_samplers
    rows = tuple(row for s in seeds if (row := compare(base[s], other[s], sampling_steps, horizon)))
    if not rows:
        return Speedup(name, sampling_steps, saves)
    known = [row for row in rows if row.bound != "~"]
    bounds = [row.bound for row in known]
    steps, bound = mean_ratio([row.ratio for row in known], bounds)
    times = [row.ratio * row.time_ratio for row in known if row.time_ratio is not None]
    wall = mean_ratio(times, bounds)[0] if len(times) == len(known) else None
    finals = [{r.seed: r.baseline_final for r in rows}, {r.seed: r.coupling_final for r in rows}]
    first, second = (mean_interval([*values.values()], minimum=0) for values in finals)
    floor = comparison.floor
    ends = None if floor is None else (floor.low, floor.high)
    resolved = floor_resolves(ends, first.value, second.value)
    result = Speedup(name, sampling_steps, saves, horizon, rows, steps, wall, bound)
    result = replace(result, quality_ratio=ratio_interval(finals[1], finals[0]), resolved=resolved)
    return replace(result, baseline_final=first, coupling_final=second)


def speedups(comparison: Comparison) -> list[Speedup]:
    """Every coupling and control but the baseline: both savings with every number of sampling steps, corrected.

    There is no sampling saving with the fewest steps: fewer could not show.
    """
    names = [entry.name for entry in comparison.couplings if not entry.baseline]
    every = [speedup(comparison, name, steps) for name in names for steps in comparison.sampling_steps]
    for name in names:
        known: dict[tuple[tuple[int, float], ...], int] = {}  # targets by seed, and where they first were
        for steps in sorted(comparison.sampling_steps):
            result = speedup(comparison, name, steps, "sampling")
            first = known.setdefault(tuple((row.seed, row.target) for row in result.seeds), steps)
            if steps in saved_from(comparison):
                every.append(replace(result, repeats=first if first != steps and result.seeds else None))
    p_values = {i: p for i, result in enumerate(every) if (p := result.p_value) is not None}
    corrected = dict(zip(p_values, holm([*p_values.values()]), strict=True))
    return [replace(result, corrected=corrected.get(i)) for i, result in enumerate(every)]


def saved_from(comparison: Comparison) -> list[int]:
    """The numbers of sampling steps that could be fewer, ascending: all but the least."""
    return sorted(comparison.sampling_steps)[1:]


def best_values(comparison: Comparison, names: Sequence[str], sampling_steps: int) -> dict[int, list[float]]:
    """The best metric of each of ``names`` up to the last step that they share, by seeds that reach it."""
    horizon, seeds = common_seeds(comparison, names, sampling_steps)
    trials = {(trial.coupling, trial.seed): trial for trial in comparison.trials}
    return {s: [min(best_so_far(trials[n, s], sampling_steps, horizon).values()) for n in names] for s in seeds}


def share_of_control(comparison: Comparison, name: str, sampling_steps: int) -> ControlShare | None:
    """How much of the gain is not pairing: None without a control or a seed in common."""
    control = comparison.control(name)
    if control is None:
        return None
    values = best_values(comparison, (comparison.baseline.name, control.name, name), sampling_steps)
    if not values:
        return None
    base, shuffled, paired = (fmean(column) for column in zip(*values.values(), strict=True))
    width = comparison.floor.high - comparison.floor.low if comparison.floor else 0.0
    clear = base - paired > width and all(b > p for b, _, p in values.values())
    share = (base - shuffled) / (base - paired) if clear else None
    return ControlShare(sampling_steps, tuple(values), (base, shuffled, paired), share)


def floor_resolves(floor: tuple[float, float] | None, first: float, second: float) -> bool:
    """Whether two values differ by more than the floor (low, high) hides; True without one."""
    if floor is None:
        return True
    low, high = floor
    return not (max(first, second) < high or abs(first - second) < high - low)


def mean_ratio(ratios: list[float], bounds: Sequence[str]) -> tuple[Interval | None, str]:
    """The geometric mean over seeds and its bound; no interval where a seed gives only a bound."""
    kinds = {bound for bound in bounds if bound}
    bound = kinds.pop() if len(kinds) == 1 else "~" if kinds else ""
    if not ratios:
        return None, bound
    interval = geometric_interval(ratios)
    return (replace(interval, low=0.0, high=math.inf) if bound else interval), bound
