"""probe.json: all that a probe asked, did and found, as JSON values."""

import math
import os
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from immiscible_diffusion.experiments.pilot.ratio import Ratio
from immiscible_diffusion.experiments.pilot.records import Trial
from immiscible_diffusion.experiments.pilot.run import Outcome, Probe
from immiscible_diffusion.experiments.pilot.verdict import BASELINE, MATCHED, SHUFFLED, Comparison
from immiscible_diffusion.reporting.compare.records import SampleMetrics
from immiscible_diffusion.reporting.compare.records import Trial as LoadedRun
from immiscible_diffusion.reporting.compare.speedup import compare_seed, mean_ratio

NO_PROMISE = (
    "No promise for large models: this is a small network after minutes of training, judged by a "
    "simple distance. What pairing does to it need not be what it does to a large network after "
    "days, in either direction. It says whether an effect shows on these data at all."
)


def summary(probe: Probe, outcome: Outcome, about: dict[str, Any]) -> dict[str, Any]:
    """The record of a probe; ``about`` holds command, date, hardware and versions."""
    prepared, settings, verdict = probe.prepared, probe.settings, outcome.verdict
    cells = probe.store.cells()
    division = None if outcome.division is None else asdict(outcome.division)
    return {
        "format": 1,
        **about,
        "sentence": verdict.sentence,
        "verdict": verdict.kind,
        "no_promise": NO_PROMISE,
        "data": {
            "name": prepared.name,
            "note": prepared.note,
            "count": len(prepared),
            "shape": list(prepared.shape),
            "original_shape": list(prepared.original),
            "conditions": list(prepared.seen),
            "masked": prepared.batch.mask is not None,
            "mirrored": prepared.mirrored,
            "held_out": prepared.held,
        },
        "asked": {name: value for name, value in probe.asked.items() if name != "data"},
        "coupling": settings.coupling,
        "network": str(probe.bench.network),
        "batch_size": probe.bench.network.batch_size,
        "plan": division,
        "seconds": sum(cell.seconds for cell in cells),
        "seeds_finished": _finished(cells, probe.bench.couplings),
        "features": None if outcome.floor is None else probe.bench.features.note,
        "floor": None if outcome.floor is None else asdict(outcome.floor),
        "untrained": outcome.untrained,
        "level": verdict.level,
        "seeds_needed": verdict.seeds_needed,
        "comparisons": [_comparison(c, cells) for c in verdict.comparisons],
        "cells": [asdict(cell) for cell in cells],
    }


def load() -> str:
    """How busy the machine is, where the system tells it."""
    if not hasattr(os, "getloadavg"):
        return ""
    return f"{os.getloadavg()[0]:.1f} processes on {os.cpu_count()} cores (mean of a minute)"


def _finished(cells: Iterable[Trial], couplings: tuple[str, ...]) -> list[int]:
    done = {(cell.coupling, cell.seed) for cell in cells}
    return sorted({s for _, s in done if all((c, s) in done for c in couplings)})


def _comparison(comparison: Comparison, cells: list[Trial]) -> dict[str, Any]:
    return {
        "arm": comparison.arm,
        "budget": comparison.budget,
        "verdict": comparison.verdict,
        "ratio": _ratio(comparison.ratio),
        "of_pairing": _ratio(comparison.pairing),
        "share_of_pairing": comparison.share_of_pairing,
        "baseline": comparison.baseline,
        "final": comparison.final,
        "above_floor": comparison.above_floor,
        "speed_up": _speed_up(cells, comparison),
    }


def _ratio(ratio: Ratio) -> dict[str, Any]:
    return {name: v if math.isfinite(v) else None for name, v in asdict(ratio).items()}


def _speed_up(cells: list[Trial], comparison: Comparison) -> dict[str, Any] | None:
    """Steps to the same distance, without pairing / with it; None without a curve."""
    base = _curves(cells, BASELINE, comparison.budget)
    mine = _curves(cells, comparison.arm, comparison.budget)
    seeds = sorted(base.keys() & mine.keys())
    if not seeds or len(base[seeds[0]].metrics) < 2:
        return None
    last = base[seeds[0]].metrics[-1].step
    found = [compare_seed(base[s], mine[s], comparison.budget, last) for s in seeds]
    known = [row for row in found if row.bound != "~"]
    interval, bound = mean_ratio([row.ratio for row in known], [row.bound for row in known])
    if interval is None:
        return None
    low, high = (interval.low, interval.high) if interval.is_known else (None, None)
    values = {"value": interval.value, "low": low, "high": high}
    return values | {"seeds": interval.count, "bound": bound}


def _curves(cells: list[Trial], arm: str, budget: int) -> dict[int, LoadedRun]:
    """The curve of an arm, by seed."""
    coupling = arm.removeprefix(MATCHED)
    return {
        cell.seed: LoadedRun(
            arm,
            cell.seed,
            tuple(
                SampleMetrics(p.step, p.budget, frechet=p.distance)
                for p in cell.points
                if p.arm == arm and p.budget == budget
            ),
        )
        for cell in cells
        if cell.coupling == coupling
    }


def arms_of(values: dict[str, Any]) -> list[str]:
    """Arms in the order shown: none, the coupling and its control, each with both starts."""
    name = values["coupling"]
    every = [BASELINE, name, MATCHED + name, SHUFFLED + name, MATCHED + SHUFFLED + name]
    known = {point["arm"] for cell in values["cells"] for point in cell["points"]}
    return [arm for arm in every if arm in known]
