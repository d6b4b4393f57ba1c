"""How many times fewer steps: speed-ups at equal quality, with intervals over seeds.

For one seed and sampling budget, the speed-up is steps(baseline) / steps(coupling) to the same
quality, on best-so-far curves that are linear in log step and log of the measure between
neighboring evaluations. The target is the worse of the two final qualities, so that both reach
it; below 1 the coupling is slower. A curve that is at the target when first evaluated got there at
an unknown earlier step: the ratio is then only a bound.
"""

import math
from dataclasses import dataclass
from statistics import fmean

from immiscible_diffusion.metrics.evaluate import Floor
from immiscible_diffusion.reporting.compare.estimate import (
    SMALLEST,
    Estimate,
    arithmetic,
    geometric,
)
from immiscible_diffusion.reporting.compare.results import Comparison, Trial


@dataclass(frozen=True)
class Curve:
    """Best value of the measure so far at ascending training steps."""

    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class SeedSpeedup:
    """One seed: steps of either run to ``target``; ``bound`` as in Estimate ('~': unknown)."""

    seed: int
    target: float
    baseline_steps: float
    coupling_steps: float
    bound: str
    baseline_final: float
    coupling_final: float
    time_ratio: float | None

    @property
    def ratio(self) -> float:
        """steps(baseline) / steps(coupling)."""
        return self.baseline_steps / self.coupling_steps


@dataclass(frozen=True)
class Speedup:
    """A coupling against the baseline at one sampling budget.

    ``steps`` is the speed-up in training steps, ``wall`` in training time; ``quality_ratio`` is
    final measure coupling / baseline (below 1: the coupling is better); finals are means
    of best-so-far values at ``horizon``, the last step that the seeds have in common. ``left_out``
    are seeds whose runs stop earlier or are missing. ``resolved`` is False where the floor hides
    the difference of the finals. All None without a seed in common.
    """

    coupling: str
    budget: int
    horizon: int | None
    seeds: tuple[SeedSpeedup, ...]
    left_out: tuple[int, ...]
    steps: Estimate | None
    wall: Estimate | None
    quality_ratio: Estimate | None
    baseline_final: Estimate | None
    coupling_final: Estimate | None
    resolved: bool | None

    @property
    def verdict(self) -> str:
        """'helps', 'hurts', 'unresolved', 'one seed' or 'missing', by the interval on steps.

        A bound has no interval: it counts if it holds on every seed, points away from 1, and the
        interval on final quality agrees. Where steps say nothing, because both were at the target
        when first evaluated: 'ends better' or 'ends worse', by the interval on final quality.
        """
        if self.quality_ratio is None:
            return "missing"
        if self.quality_ratio.seeds == 1:
            return "one seed"
        if self.steps is None:
            return _verdict_of_quality(self)
        if self.steps.excludes_one:
            return "helps" if self.steps.value > 1 else "hurts"
        if self.steps.bound in {">", "<"} and self.quality_ratio.excludes_one:
            return _verdict_of_bound(self)
        return "unresolved"


@dataclass(frozen=True)
class Kept:
    """The share of a coupling's gain in final quality that its shuffled control keeps.

    share = (baseline - control) / (baseline - coupling) in the measure at ``horizon``, a
    ratio of means over the seeds that all three have; ``share`` is None where the gain is not
    resolved: smaller than the width of the floor, or not positive on every seed.
    """

    coupling: str
    control: str
    budget: int
    horizon: int
    seeds: tuple[int, ...]
    baseline_final: float
    control_final: float
    coupling_final: float
    share: float | None


def best_so_far(cell: Trial, budget: int, until: int | None = None) -> Curve:
    """Return the running minimum of the measure at ``budget``, up to step ``until``."""
    points = sorted(
        (q.step, q.value) for q in cell.quality if q.budget == budget and q.value is not None
    )
    steps: list[int] = []
    values: list[float] = []
    for step, value in points:
        if until is None or step <= until:
            steps.append(step)
            values.append(min([value, *values[-1:]]))
    return Curve(tuple(steps), tuple(values))


def steps_to(curve: Curve, target: float) -> tuple[float, bool]:
    """Steps to reach ``target``, log-linear between evaluations; True if only an upper bound.

    Raises:
        ValueError: if the curve never reaches the target.
    """
    for i, value in enumerate(curve.values):
        if value > target:
            continue
        if i == 0:
            return float(curve.steps[0]), True
        before, after, wanted = (
            math.log(max(v, SMALLEST)) for v in (curve.values[i - 1], value, target)
        )
        share = (before - wanted) / (before - after) if before > after else 1.0
        left, right = math.log(curve.steps[i - 1]), math.log(curve.steps[i])
        return math.exp(left + share * (right - left)), False
    raise ValueError(f"target is {target}; expected at least the best value, {min(curve.values)}")


def compare_seed(baseline: Trial, coupling: Trial, budget: int, horizon: int) -> SeedSpeedup:
    """Compare two runs of one seed, both evaluated at ``horizon`` or later."""
    base, other = (best_so_far(cell, budget, horizon) for cell in (baseline, coupling))
    target = max(base.values[-1], other.values[-1])
    base_steps, base_bounded = steps_to(base, target)
    other_steps, other_bounded = steps_to(other, target)
    bound = {(0, 0): "", (0, 1): ">", (1, 0): "<", (1, 1): "~"}[base_bounded, other_bounded]
    times = (baseline.seconds_per_step, coupling.seconds_per_step)
    time_ratio = times[0] / times[1] if times[0] and times[1] else None
    return SeedSpeedup(
        baseline.seed,
        target,
        base_steps,
        other_steps,
        bound,
        base.values[-1],
        other.values[-1],
        time_ratio,
    )


def last_steps(comparison: Comparison, name: str, budget: int) -> dict[int, int]:
    """Last step with the measure at ``budget``, by seed; seeds without one are absent."""
    curves = {cell.seed: best_so_far(cell, budget) for cell in comparison.cells_of(name)}
    return {seed: curve.steps[-1] for seed, curve in curves.items() if curve.steps}


def common_seeds(
    comparison: Comparison, names: tuple[str, ...], budget: int
) -> tuple[int | None, tuple[int, ...]]:
    """The last step that runs of all ``names`` share on some seed, and the seeds that reach it."""
    lasts = [last_steps(comparison, name, budget) for name in names]
    shared = set.intersection(*(set(last) for last in lasts))
    horizons = {seed: min(last[seed] for last in lasts) for seed in shared}
    if not horizons:
        return None, ()
    horizon = max(horizons.values())
    return horizon, tuple(sorted(seed for seed in horizons if horizons[seed] == horizon))


def speedup(comparison: Comparison, name: str, budget: int) -> Speedup:
    """Compare the coupling ``name`` with the baseline at ``budget``, paired by seed."""
    baseline = comparison.baseline.name
    comparison.entry(name)
    horizon, seeds = common_seeds(comparison, (baseline, name), budget)
    left_out = tuple(seed for seed in comparison.seeds if seed not in seeds)
    if horizon is None:
        return Speedup(name, budget, None, (), left_out, *(None,) * 6)
    cells = {(cell.coupling, cell.seed): cell for cell in comparison.cells}
    rows = tuple(
        compare_seed(cells[baseline, seed], cells[name, seed], budget, horizon) for seed in seeds
    )
    base, other = [r.baseline_final for r in rows], [r.coupling_final for r in rows]
    steps, wall = _ratios(rows)
    return Speedup(
        name,
        budget,
        horizon,
        rows,
        left_out,
        steps,
        wall,
        geometric([_ratio(b, a) for a, b in zip(base, other, strict=True)]),
        arithmetic(base),
        arithmetic(other),
        floor_resolves(comparison.floor, fmean(base), fmean(other)),
    )


def speedups(comparison: Comparison) -> list[Speedup]:
    """Every coupling and control but the baseline, at every budget, in the order given."""
    names = [entry.name for entry in comparison.couplings if not entry.baseline]
    return [
        speedup(comparison, name, budget) for name in names for budget in comparison.sampling_steps
    ]


def kept_by_control(comparison: Comparison, name: str, budget: int) -> Kept | None:
    """How much of the gain is not pairing: None without a control or a seed in common."""
    control = comparison.control(name)
    if control is None:
        return None
    names = (comparison.baseline.name, control.name, name)
    horizon, seeds = common_seeds(comparison, names, budget)
    if horizon is None:
        return None
    cells = {(cell.coupling, cell.seed): cell for cell in comparison.cells}
    finals = [[best_so_far(cells[n, s], budget, horizon).values[-1] for s in seeds] for n in names]
    base, kept, gained = (fmean(values) for values in finals)
    width = comparison.floor.high - comparison.floor.low if comparison.floor else 0.0
    clear = base - gained > width and all(b > g for b, g in zip(finals[0], finals[2], strict=True))
    share = (base - kept) / (base - gained) if clear else None
    return Kept(name, control.name, budget, horizon, seeds, base, kept, gained, share)


def floor_resolves(floor: Floor | None, first: float, second: float) -> bool:
    """Whether two values differ by more than the floor hides (True without a floor)."""
    if floor is None:
        return True
    return not (max(first, second) < floor.high or abs(first - second) < floor.high - floor.low)


def _ratio(value: float, base: float) -> float:
    return max(value, SMALLEST) / max(base, SMALLEST)


def _ratios(rows: tuple[SeedSpeedup, ...]) -> tuple[Estimate | None, Estimate | None]:
    """Speed-up in steps and in time, over the seeds that say anything about it."""
    known = [row for row in rows if row.bound != "~"]
    if not known:
        return None, None
    bounds = [row.bound for row in known]
    steps = geometric([row.ratio for row in known], bounds)
    times = [row.time_ratio for row in known]
    if any(time is None for time in times):
        return steps, None
    return steps, geometric([r.ratio * (r.time_ratio or 1) for r in known], bounds)


def _verdict_of_quality(result: Speedup) -> str:
    ratio = result.quality_ratio
    if ratio is None or not ratio.excludes_one or not result.resolved:
        return "unresolved"
    return "ends better" if ratio.value < 1 else "ends worse"


def _verdict_of_bound(result: Speedup) -> str:
    steps, quality = result.steps, result.quality_ratio
    if steps is None or quality is None:
        return "missing"
    known = [row.ratio for row in result.seeds if row.bound != "~"]
    if steps.bound == ">" and min(known) > 1 and quality.value < 1:
        return "helps"
    if steps.bound == "<" and max(known) < 1 and quality.value > 1:
        return "hurts"
    return "unresolved"
