"""Tables of a comparison as pandas frames: tidy ones for CSV, and those of the page and a paper."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from statistics import fmean
from typing import TYPE_CHECKING, Any

from immiscible_diffusion.reporting.compare.records import METRICS, Comparison, ExcessPoint, SampleMetrics
from immiscible_diffusion.reporting.compare.speedup import (
    SeedSpeedup,
    common_seeds,
    share_of_control,
    speedup,
    speedups,
)
from immiscible_diffusion.reporting.html import number, render
from immiscible_diffusion.utils.optional_deps import require_extra
from immiscible_diffusion.utils.statistics import SMALLEST, Interval

if TYPE_CHECKING:
    from pandas import DataFrame

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{character: "\\" + character for character in "&%$#_{}"},
}
_RANGE = re.compile(r"(?<=\d) to (?=\d)")
_SPEEDUP_COLUMNS = (
    *("coupling", "sampling_steps", "seed", "horizon", "speedup", "low", "high", "bound"),
    *("time_speedup", "target", "baseline_final", "coupling_final", "quality_ratio"),
    *("quality_ratio_low", "quality_ratio_high", "resolved", "verdict"),
)


def new_frame(rows: Iterable[Any], columns: Iterable[str] | None = None) -> "DataFrame":
    """A frame of ``rows``: mappings, or tuples in the order of ``columns``."""
    with require_extra("train", "reports"):
        import pandas as pd
    return pd.DataFrame(list(rows), columns=None if columns is None else list(columns))


def interval_text(interval: Interval | None, bound: str = "") -> str:
    """'2.1 (1.8 to 2.5)', '> 14', '1.9 (one seed)' or '-'."""
    if interval is None:
        return "-"
    if bound == "~":
        return "bounded from both sides"
    text = f"{bound} {number(interval.value)}".strip()
    if interval.is_known:
        return f"{text} ({number(interval.low)} to {number(interval.high)})"
    return f"{text} (one seed)" if interval.count == 1 else text


def metrics_frame(comparison: Comparison) -> "DataFrame":
    """One row per coupling, seed, training step and number of sampling steps: results.csv."""
    rows = [
        {"coupling": entry.name, "label": entry.label, "seed": trial.seed} | asdict(metrics)
        for entry in comparison.couplings
        for trial in comparison.trials_of(entry.name)
        for metrics in sorted(trial.metrics, key=lambda m: (m.step, m.sampling_steps))
    ]
    names = ("coupling", "label", "seed", *SampleMetrics.__dataclass_fields__)
    return new_frame(rows, names).astype({"nfe": "Int64"})


def speedups_frame(comparison: Comparison) -> "DataFrame":
    """One row per coupling, sampling steps and seed, then one of all seeds: speedups.csv."""
    rows: list[dict[str, Any]] = []
    for result in speedups(comparison):
        names = ("coupling", "sampling_steps", "horizon")
        same = {name: getattr(result, name) for name in names}
        rows += [same | _seed_cells(row) for row in result.seeds]
        rows.append(
            same
            | {"seed": "all", "bound": result.bound, "resolved": result.resolved}
            | _interval_cells(result.steps, "speedup", "low", "high")
            | _interval_cells(result.wall, "time_speedup")
            | _interval_cells(result.baseline_final, "baseline_final")
            | _interval_cells(result.coupling_final, "coupling_final")
            | _interval_cells(result.quality_ratio, "quality_ratio", "quality_ratio_low", "quality_ratio_high")
            | {"verdict": result.verdict.value}
        )
    return new_frame(rows, _SPEEDUP_COLUMNS).astype({"horizon": "Int64"})


def _seed_cells(row: SeedSpeedup) -> dict[str, Any]:
    names = ("seed", "bound", "target", "baseline_final", "coupling_final")
    cells = {name: getattr(row, name) for name in names}
    if row.bound != "~":
        time = row.ratio * row.time_ratio if row.time_ratio else None
        cells |= {"speedup": row.ratio, "time_speedup": time}
    if row.baseline_final:
        cells["quality_ratio"] = row.coupling_final / row.baseline_final
    return cells


def _interval_cells(interval: Interval | None, value: str, *ends: str) -> dict[str, float]:
    if interval is None:
        return {}
    known = ends if interval.is_known else ()
    return {value: interval.value} | dict(zip(known, (interval.low, interval.high), strict=False))


def speedup_table(comparison: Comparison, sampling_steps: int) -> "DataFrame":
    """Every coupling: verdict, speed-ups in steps and time, final metric."""
    final = f"Final {comparison.metric.removesuffix(' distance')}"
    columns = ["Coupling", "Verdict", "Speed-up in steps", "in time", final, "Ratio to baseline"]
    rows = []
    for entry in comparison.couplings:
        result = speedup(comparison, entry.name, sampling_steps)
        ratio = interval_text(result.quality_ratio) + (" *" if result.resolved is False else "")
        times = [interval_text(mean, result.bound) for mean in (result.steps, result.wall)]
        verdict, value = result.verdict.value, interval_text(result.coupling_final)
        if entry.baseline:
            verdict, times, ratio = "baseline", ["1", "1"], "1"
        rows.append((entry.label, verdict, *times, value, ratio, len(result.seeds)))
    return new_frame(rows, [*columns, "Seeds"])


def control_table(comparison: Comparison) -> "DataFrame":
    """What the shuffled controls keep of each gain; empty without a control."""
    rows = []
    for entry in comparison.treated:
        for steps in comparison.sampling_steps if comparison.control(entry.name) else ():
            kept = share_of_control(comparison, entry.name, steps)
            cells: tuple[Any, ...] = ("-", "-", "-", "not measured", 0)
            if kept:
                cells = (*map(number, kept.finals), share_text(kept.share), len(kept.seeds))
            rows.append((entry.label, steps, *cells))
    finals = (comparison.baseline.label, "shuffled", "paired")
    return new_frame(rows, ["Coupling", "Sampling steps", *finals, "Share of the gain kept", "Seeds"])


def share_text(share: float | None) -> str:
    """A share of a gain: '46%', 'not resolved', or 'none' where the control is worse."""
    if share is None:
        return "not resolved"
    return f"{100 * share:.0f}%" if share >= 0 else "none"


def cost_table(comparison: Comparison) -> "DataFrame":
    """Time of a training step, of pairing, and of the step's waiting for it; means over trials."""
    factors = {"seconds_per_step": 1000, "pairing_ms": 1, "pairing_share": 100}
    rows = []
    for entry in comparison.couplings:
        trials = comparison.trials_of(entry.name)
        values = ([getattr(trial, name) for trial in trials] for name in factors)
        known = ([value for value in every if value is not None] for every in values)
        means = (fmean(some) if some else None for some in known)
        cells = (mean and factor * mean for mean, factor in zip(means, factors.values(), strict=True))
        rows.append((entry.label, *map(number, cells), len(trials)))
    columns = ["Coupling", "ms per step", "pairing, ms", "step waits for it, %", "Trials"]
    return new_frame(rows, columns)


def metric_table(comparison: Comparison) -> "DataFrame":
    """Every metric at the last evaluated step: means over the seeds that got there."""
    frame, rows = metrics_frame(comparison), []
    names = ["nfe", *METRICS[:2], "kid_error", *METRICS[2:]]
    for entry in comparison.couplings:
        for steps in comparison.sampling_steps:
            horizon, seeds = common_seeds(comparison, (entry.name,), steps)
            same = (frame.coupling == entry.name) & (frame.sampling_steps == steps)
            chosen = frame[same & (frame.step == horizon) & frame.seed.isin(seeds)]
            means = chosen[names].astype(float).mean()
            rows.append((entry.label, steps, f"{horizon:,}", *map(number, means), len(seeds)))
    titles = (name.replace("_", " ") for name in names)
    return new_frame(rows, ["Coupling", "Sampling steps", "Step", *titles, "Seeds"])


def excess_table(comparison: Comparison) -> "DataFrame":
    """Means over t at the last step: loss, irreducible loss, excess loss."""
    basis, rows = comparison.excess, []
    known = {e.coupling: e for e in basis.couplings if not e.skipped} if basis else {}
    for name in trained_couplings(comparison):
        points, base = final_points(comparison, name), known.get(name.removeprefix("matched:"))
        if points and base and basis:
            loss = fmean(fmean(point.loss[: basis.averaged]) for point in points)
            irreducible = number(fmean(base.reached[: basis.averaged]))
            mean, error = (number(fmean(getattr(p, n) for p in points)) for n in ("mean", "mean_error"))
            estimated = " (estimated)" if base.estimate else ""
            cells = (number(loss), irreducible + estimated, f"{mean} ± {error}")
            rows.append((comparison.entry(name).label, *cells, f"{points[0].step:,}"))
    columns = ["Coupling", "Loss", "Irreducible loss", "Excess loss, mean over t", "Step"]
    return new_frame(rows, columns)


def trained_couplings(comparison: Comparison) -> list[str]:
    """The couplings less those that share the training of another (``matched:``)."""
    names = [entry.name for entry in comparison.couplings]
    return [name for name in names if name.removeprefix("matched:") not in set(names) - {name}]


def final_points(comparison: Comparison, name: str) -> list[ExcessPoint]:
    """The excess losses of ``name`` at the last step that any of its seeds reached."""
    points = [point for trial in comparison.trials_of(name) for point in trial.excess]
    last = max((point.step for point in points), default=0)
    return [point for point in points if point.step == last]


def policy_table(comparison: Comparison) -> "DataFrame":
    """Scores of policies in the simulator, with their intervals."""

    def text(values: tuple[float, float, float] | None, sign: str = "") -> str:
        if values is None:
            return "-"
        value, low, high = (f"{part:{sign}.3f}" for part in values)
        return f"{value} ({low} to {high})"

    columns = ["Coupling", "Score", "less the baseline's", "Success", "Mean of the last", "Best"]
    rows = []
    for entry in comparison.policies:
        means = (text(entry.score), text(entry.gain, "+"), text(entry.success))
        cells = (f"{entry.last:.3f}", f"{entry.best:.3f}", f"{entry.latency_ms:.0f}", entry.seeds)
        rows.append((comparison.entry(entry.coupling).label, *means, *cells))
    return new_frame(rows, [*columns, "Plan, ms", "Seeds"])


def over_seeds(runs: Iterable[Mapping[Any, float]], *, geometric: bool = False) -> "DataFrame":
    """Mean, smallest and largest over the longest runs (x -> value), at every x they share."""
    import numpy as np

    runs = [run for run in runs if run]
    last = max((max(run) for run in runs), default=0)
    frame = new_frame(run for run in runs if max(run) == last).dropna(axis=1).sort_index(axis=1)
    mean = np.exp(np.log(frame.clip(lower=SMALLEST)).mean()) if geometric else frame.mean()
    return new_frame([]).assign(mean=mean, low=frame.min(), high=frame.max())


def latex_table(comparison: Comparison) -> str:
    """A ``table`` environment (package booktabs) of speed-ups and final metrics.

    Couplings whose difference from the baseline the floor hides carry an asterisk. The caption says
    what is compared, on what, and how sure it is; a comment names the command that made it.
    """
    import pandas as pd

    parts = []
    for steps in comparison.sampling_steps:
        part = speedup_table(comparison, steps).drop(columns=["Verdict", "in time"])
        mark = " (headline)" if steps == comparison.headline_steps else ""
        part.insert(0, f"{comparison.sampler_name} steps", f"{steps}{mark}")
        parts.append(part)
    frame = pd.concat(parts)
    frame.columns = [latex_escaped(name) for name in frame.columns]
    text = frame.map(latex_escaped).to_latex(
        index=False,
        column_format="lllllr",
        caption=latex_escaped(render("speedups_caption.txt", c=comparison)),
        label=f"tab:{re.sub(r'[^A-Za-z0-9-]', '-', comparison.recipe)}",
    )
    text = text.replace("\\begin{table}\n", "\\begin{table}\n\\centering\n")
    return f"% {' '.join(comparison.command.split())}\n{text}"


def latex_escaped(value: Any) -> str:
    """``value`` as LaTeX prints it, on one line; ranges of numbers with a dash."""
    text = " ".join(str(value).split())
    return _RANGE.sub("--", "".join(_LATEX.get(character, character) for character in text))


def speedup_markdown(comparison: Comparison) -> str:
    """A markdown table for a README: the speed-up of every coupling by sampling steps.

    In brackets the final metric; the headline column is bold. A line below says what it is and which command made it.
    """
    rows = []
    for entry in comparison.couplings:
        row = [entry.label]
        for result in (speedup(comparison, entry.name, s) for s in comparison.sampling_steps):
            text = "1" if entry.baseline else interval_text(result.steps, result.bound)
            mark = "*" if result.resolved is False and not entry.baseline else ""
            final = result.coupling_final
            row.append(f"{text} [{number(final.value)}{mark}]" if final else "-")
        rows.append([markdown_escaped(text) for text in row])
    note = markdown_escaped(render("speedups_note.txt", c=comparison))
    return render("speedups.md", c=comparison, rows=rows, note=note)


def markdown_escaped(text: str) -> str:
    """``text`` as markdown prints it, on one line."""
    return " ".join(re.sub(r"([\\|<>*_`])", r"\\\1", text).split())
