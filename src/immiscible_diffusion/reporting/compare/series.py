"""Means over seeds that plots draw as lines, with the smallest and largest seed as bands."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from immiscible_diffusion.reporting.compare.estimate import SMALLEST
from immiscible_diffusion.reporting.compare.results import Comparison, LossPoint
from immiscible_diffusion.reporting.compare.speedup import common_seeds


@dataclass(frozen=True)
class Series:
    """Mean over seeds and the smallest and largest, at ascending x."""

    x: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    seeds: tuple[int, ...]


def quality_series(comparison: Comparison, name: str, budget: int) -> Series | None:
    """The measure against steps, geometric mean over the seeds that got furthest."""
    horizon, seeds = common_seeds(comparison, (name,), budget)
    if horizon is None:
        return None
    runs = [
        {q.step: q.value for q in cell.quality if q.budget == budget and q.value is not None}
        for cell in comparison.cells_of(name)
        if cell.seed in seeds
    ]
    steps = sorted(set.intersection(*(set(run) for run in runs)))
    return _series(steps, [[run[step] for run in runs] for step in steps], seeds)


def final_quality_series(comparison: Comparison, name: str) -> Series | None:
    """The measure against sampling budget at the last step."""
    points = {b: quality_series(comparison, name, b) for b in sorted(comparison.sampling_steps)}
    known = {budget: series for budget, series in points.items() if series is not None}
    if not known:
        return None
    last = [(s.mean[-1], s.low[-1], s.high[-1]) for s in known.values()]
    mean, low, high = zip(*last, strict=True)
    return Series(tuple(known), mean, low, high, next(iter(known.values())).seeds)


def loss_series(comparison: Comparison, name: str, kind: str) -> Series | None:
    """Mean ``kind`` ('validation' or 'training') loss against steps over the longest runs."""
    if kind not in {"validation", "training"}:
        raise ValueError(f"kind is {kind!r}; expected 'validation' or 'training'")
    runs = {cell.seed: _finite(getattr(cell, kind)) for cell in comparison.cells_of(name)}
    runs = {seed: run for seed, run in runs.items() if run}
    if not runs:
        return None
    last = max(max(run) for run in runs.values())
    runs = {seed: run for seed, run in runs.items() if max(run) == last}
    steps = sorted(set.intersection(*(set(run) for run in runs.values())) - {0})
    values = [[run[step] for run in runs.values()] for step in steps]
    return _series(steps, values, tuple(runs), geometric=False) if steps else None


def _series(
    x: Sequence[float], values: list[list[float]], seeds: tuple[int, ...], geometric: bool = True
) -> Series:
    if geometric:
        mean = [math.exp(fmean([math.log(max(v, SMALLEST)) for v in row])) for row in values]
    else:
        mean = [fmean(row) for row in values]
    low, high = ([choose(row) for row in values] for choose in (min, max))
    return Series(tuple(x), tuple(mean), tuple(low), tuple(high), seeds)


def _finite(points: Sequence[LossPoint]) -> dict[int, float]:
    return {point.step: point.loss for point in points if point.loss is not None}
