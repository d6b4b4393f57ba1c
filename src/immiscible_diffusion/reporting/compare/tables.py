"""Tables of a comparison as pandas frames: tidy ones for CSV, and those of the page and a paper."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from statistics import fmean
from typing import TYPE_CHECKING, Any

from immiscible_diffusion.reporting.compare.records import (
    METRICS,
    Comparison,
    ExcessPoint,
    SampleMetrics,
)
from immiscible_diffusion.reporting.compare.speedup import (
    Speedup,
    common_seeds,
    share_of_control,
    speedup,
    speedups,
)
from immiscible_diffusion.reporting.html import number
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


def new_frame(rows: Iterable[Mapping[str, Any]], columns: Iterable[str] = ()) -> "DataFrame":
    """A frame of ``rows``; ``columns`` for the case that there is none."""
    with require_extra("train", "reports"):
        import pandas as pd
    listed = list(rows)
    return pd.DataFrame(listed, columns=None if listed else list(columns))


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
    rows = [row for result in speedups(comparison) for row in _speedup_rows(result)]
    return new_frame(rows).astype({"horizon": "Int64"}) if rows else new_frame(rows)


def _speedup_rows(result: Speedup) -> list[dict[str, Any]]:
    steps, quality = (_ends(interval) for interval in (result.steps, result.quality_ratio))
    finals = (result.baseline_final, result.coupling_final)
    rows = []
    for row in result.seeds:
        ratio = None if row.bound == "~" else row.ratio
        time = ratio and row.time_ratio and ratio * row.time_ratio
        final = row.coupling_final / row.baseline_final if row.baseline_final else None
        values = (ratio, None, None, row.bound, time, row.target, row.baseline_final)
        rows.append((row.seed, *values, row.coupling_final, final, *[None] * 4))
    whole = (*steps, result.bound, _ends(result.wall)[0], None, *(_ends(f)[0] for f in finals))
    rows.append(("all", *whole, *quality, result.resolved, result.verdict.value))
    names = ["seed", "speedup", "low", "high", "bound", "time_speedup", "target"]
    names += ["baseline_final", "coupling_final", "quality_ratio", "quality_ratio_low"]
    names += ["quality_ratio_high", "resolved", "verdict"]
    start = {"coupling": result.coupling, "sampling_steps": result.sampling_steps}
    return [
        start | {"seed": row[0], "horizon": result.horizon} | dict(zip(names, row, strict=True))
        for row in rows
    ]


def _ends(interval: Interval | None) -> tuple[float | None, ...]:
    if interval is None:
        return None, None, None
    ends = (interval.low, interval.high) if interval.is_known else (None, None)
    return interval.value, *ends


def speedup_table(comparison: Comparison, sampling_steps: int) -> "DataFrame":
    """Every coupling: verdict, speed-ups in steps and time, final metric."""
    rows = []
    final_name = f"Final {comparison.metric.removesuffix(' distance')}"
    for entry in comparison.couplings:
        result = speedup(comparison, entry.name, sampling_steps)
        ratio = interval_text(result.quality_ratio) + (" *" if result.resolved is False else "")
        cells = {
            "Verdict": result.verdict.value,
            "Speed-up in steps": interval_text(result.steps, result.bound),
            "in time": interval_text(result.wall, result.bound),
            final_name: interval_text(result.coupling_final),
            "Ratio to baseline": ratio,
        }
        if entry.baseline:
            fixed = ("baseline", "1", "1", cells[final_name], "1")
            cells = dict(zip(cells, fixed, strict=True))
        rows.append({"Coupling": entry.label} | cells | {"Seeds": len(result.seeds)})
    return new_frame(rows)


def control_table(comparison: Comparison) -> "DataFrame":
    """What the shuffled controls keep of each gain; empty without a control."""
    rows = []
    for entry in comparison.treated:
        for steps in comparison.sampling_steps if comparison.control(entry.name) else ():
            kept = share_of_control(comparison, entry.name, steps)
            finals = kept.finals if kept else (None, None, None)
            names = (comparison.baseline.label, "shuffled", "paired")
            rows.append(
                {"Coupling": entry.label, "Sampling steps": steps}
                | dict(zip(names, map(number, finals), strict=True))
                | {"Share of the gain kept": share_text(kept.share) if kept else "not measured"}
                | {"Seeds": len(kept.seeds) if kept else 0}
            )
    return new_frame(rows)


def share_text(share: float | None) -> str:
    """A share of a gain: '46%', 'not resolved', or 'none' where the control is worse."""
    if share is None:
        return "not resolved"
    return f"{100 * share:.0f}%" if share >= 0 else "none"


def cost_table(comparison: Comparison) -> "DataFrame":
    """Time of a training step, of pairing, and of the step's waiting for it; means over trials."""
    columns = {
        "ms per step": ("seconds_per_step", 1000),
        "pairing, ms": ("pairing_ms", 1),
        "step waits for it, %": ("pairing_share", 100),
    }
    rows = []
    for entry in comparison.couplings:
        trials = comparison.trials_of(entry.name)
        row: dict[str, Any] = {"Coupling": entry.label}
        for title, (name, factor) in columns.items():
            values = [getattr(trial, name) for trial in trials]
            values = [factor * value for value in values if value is not None]
            row[title] = number(fmean(values) if values else None)
        rows.append(row | {"Trials": len(trials)})
    return new_frame(rows)


def metric_table(comparison: Comparison) -> "DataFrame":
    """Every metric at the last evaluated step: means over the seeds that got there."""
    frame, rows = metrics_frame(comparison), []
    names = ("nfe", *METRICS[:2], "kid_error", *METRICS[2:])
    for entry in comparison.couplings:
        for steps in comparison.sampling_steps:
            horizon, seeds = common_seeds(comparison, (entry.name,), steps)
            same = (frame.coupling == entry.name) & (frame.sampling_steps == steps)
            chosen = frame[same & (frame.step == horizon) & frame.seed.isin(seeds)]
            means = chosen[list(names)].astype(float).mean()
            rows.append(
                {"Coupling": entry.label, "Sampling steps": steps, "Step": f"{horizon:,}"}
                | {name.replace("_", " "): number(means[name]) for name in names}
                | {"Seeds": len(seeds)}
            )
    return new_frame(rows)


def excess_table(comparison: Comparison) -> "DataFrame":
    """Means over t at the last step: loss, irreducible loss, excess loss."""
    basis, rows = comparison.excess, []
    known = {e.coupling: e for e in basis.couplings if not e.skipped} if basis else {}
    for name in trained_couplings(comparison):
        points, base = final_points(comparison, name), known.get(name.removeprefix("matched:"))
        if not points or base is None or basis is None:
            continue
        loss = fmean(fmean(point.loss[: basis.averaged]) for point in points)
        irreducible = number(fmean(base.reached[: basis.averaged]))
        mean, error = (number(fmean(getattr(p, n) for p in points)) for n in ("mean", "mean_error"))
        rows.append(
            {
                "Coupling": comparison.entry(name).label,
                "Loss": number(loss),
                "Irreducible loss": irreducible + (" (estimated)" if base.estimate else ""),
                "Excess loss, mean over t": f"{mean} ± {error}",
                "Step": f"{points[0].step:,}",
            }
        )
    return new_frame(rows)


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

    return new_frame(
        {
            "Coupling": comparison.entry(entry.coupling).label,
            "Score": text(entry.score),
            "less the baseline's": text(entry.gain, "+"),
            "Success": text(entry.success),
            "Mean of the last": f"{entry.last:.3f}",
            "Best": f"{entry.best:.3f}",
            "Plan, ms": f"{entry.latency_ms:.0f}",
            "Seeds": entry.seeds,
        }
        for entry in comparison.policies
    )


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
        caption=_latex_caption(comparison),
        label=f"tab:{re.sub(r'[^A-Za-z0-9-]', '-', comparison.recipe)}",
    )
    text = text.replace("\\begin{table}\n", "\\begin{table}\n\\centering\n")
    return f"% {' '.join(comparison.command.split())}\n{text}"


def latex_escaped(value: Any) -> str:
    """``value`` as LaTeX prints it, on one line; ranges of numbers with a dash."""
    text = " ".join(str(value).split())
    return _RANGE.sub("--", "".join(_LATEX.get(character, character) for character in text))


def _latex_caption(comparison: Comparison) -> str:
    text = (
        f"{comparison.recipe}: training steps to equal {comparison.metric} against "
        f"{comparison.baseline.label} (speed-up, above 1 is faster) and final {comparison.metric} "
        f"(lower is better); in brackets 95% intervals over {comparison.seeds_text}, not corrected "
        f"for the number of comparisons. {comparison.total_steps:,} steps of batch "
        f"{comparison.batch_size:,} on {comparison.dataset.name} "
        f"({comparison.dataset.count:,} samples); {comparison.samples:,} generated samples, "
        f"features {comparison.features}."
    )
    if comparison.floor is not None:
        text += f" Floor: {comparison.floor.note}; *: it hides the difference from the baseline."
    if comparison.sampling:
        text += f" Sampling: {comparison.sampling}."
    return latex_escaped(f"{text} {comparison.note}")


def speedup_markdown(comparison: Comparison) -> str:
    """A markdown table for a README: the speed-up of every coupling by sampling steps.

    In brackets the final metric; the headline column is bold. A line below says what it is and
    which command made it.
    """
    sampler, headline = comparison.sampler_name, comparison.headline_steps
    titles = [f"**{s}**" if s == headline else str(s) for s in comparison.sampling_steps]
    rows = [["coupling", *(f"{title} {sampler} steps" for title in titles)]]
    rows.append(["---"] * len(rows[0]))
    for entry in comparison.couplings:
        row = [entry.label]
        for steps in comparison.sampling_steps:
            result = speedup(comparison, entry.name, steps)
            text = "1" if entry.baseline else interval_text(result.steps, result.bound)
            mark = "*" if result.resolved is False and not entry.baseline else ""
            final = result.coupling_final
            row.append(f"{text} [{number(final.value)}{mark}]" if final else "-")
        rows.append([_markdown(text) for text in row])
    note = _markdown(
        f"Speed-up in training steps against {comparison.baseline.label} at equal "
        f"{comparison.metric} (95% interval, {comparison.seeds_text}; above 1 is faster), in "
        f"brackets the final {comparison.metric}, {comparison.samples:,} samples, features "
        f"{comparison.features}; * = not resolved from the baseline. {comparison.note}"
    )
    fence = "``" if "`" in comparison.command else "`"
    made = f"Made with {fence}{' '.join(comparison.command.split())}{fence}."
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", f"{note} {made}", ""])


def _markdown(text: str) -> str:
    for character in "\\|<>*_`":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())
