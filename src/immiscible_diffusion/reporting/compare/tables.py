"""Tables of a comparison as pandas frames: tidy ones for CSV, and those of the page and a paper."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import TYPE_CHECKING, Any

from immiscible_diffusion.reporting.compare.records import METRICS, Comparison, ExcessPoint, SampleMetrics
from immiscible_diffusion.reporting.compare.speedup import (
    SeedSpeedup,
    Speedup,
    Verdict,
    best_values,
    common_seeds,
    saved_from,
    speedups,
)
from immiscible_diffusion.reporting.html import number, render
from immiscible_diffusion.utils.optional_deps import require_extra
from immiscible_diffusion.utils.statistics import SMALLEST, Interval, mean_interval

if TYPE_CHECKING:
    from markupsafe import Markup
    from pandas import DataFrame

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "†": r"\dag{}",
    **{character: "\\" + character for character in "&%$#_{}"},
}
_RANGE = re.compile(r"(?<=\d) to (?=\d)")
_SPEEDUP_COLUMNS = (
    *("saves", "coupling", "sampling_steps", "seed", "horizon", "speedup", "low", "high", "bound"),
    *("time_speedup", "target", "baseline_final", "coupling_final", "quality_ratio"),
    *("quality_ratio_low", "quality_ratio_high", "resolved", "verdict", "p_value", "p_corrected"),
)


def new_frame(rows: Iterable[Any], columns: Iterable[str] | None = None, **options: Any) -> "DataFrame":
    """A frame of ``rows``: mappings, or tuples in the order of ``columns``."""
    with require_extra("train", "reports"):
        import pandas as pd
    return pd.DataFrame(list(rows), columns=None if columns is None else list(columns), **options)


def interval_text(interval: Interval | None, bound: str = "") -> str:
    """'2.1 (1.8 to 2.5)', '> 14', '1.9 (one seed)' or '-'."""
    text, ends = value_text(interval, bound), range_text(interval)
    return f"{text} ({ends})" if ends and bound != "~" else text


def value_text(interval: Interval | None, bound: str = "") -> str:
    """'2.1', '> 14' or '-'."""
    if interval is None:
        return "-"
    return "bounded from both sides" if bound == "~" else f"{bound} {number(interval.value)}".strip()


def range_text(interval: Interval | None) -> str:
    """'1.8 to 2.5', 'one seed', or '' where there is no interval."""
    if interval is None or not interval.is_known:
        return "one seed" if interval and interval.count == 1 else ""
    return f"{number(interval.low)} to {number(interval.high)}"


def listed(parts: Sequence[str]) -> str:
    """'a, b and c'."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def figure(value: str, *details: str, kind: str = "") -> "Markup":
    """A table entry for the page: a value, and details in small print below; ``kind`` helps or hurts colors it."""
    from markupsafe import Markup

    small = Markup("").join(Markup("<small>{}</small>").format(text) for text in details if text)
    return Markup('<span class="{}">{}</span>{}').format(kind, value, small)


def sub_label(text: str) -> "Markup":
    """The label of a row that belongs to the one above."""
    from markupsafe import Markup

    return Markup('<span class="control">{}</span>').format(text)


def ratio_kind(ratio: Interval | None) -> str:
    """'helps' or 'hurts' where the interval of a ratio of distances excludes 1, else ''."""
    if ratio is None or not ratio.excludes(1):
        return ""
    return (Verdict.HELPS if ratio.value < 1 else Verdict.HURTS).value


def ratio_figure(ratio: Interval | None) -> "Markup | str":
    """A ratio of distances with its interval below."""
    return figure(number(ratio.value), range_text(ratio), kind=ratio_kind(ratio)) if ratio else "-"


def steps_frame(comparison: Comparison, rows: Iterable[Any], numbers: Sequence[int] = ()) -> "DataFrame":
    """Rows of a label and an entry for each of ``numbers`` of sampling steps, by default all."""
    numbers = numbers or comparison.sampling_steps
    return new_frame(rows, ["Coupling", *map(comparison.steps_text, numbers)], dtype=object)


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


def speedups_frame(results: Iterable[Speedup]) -> "DataFrame":
    """One row per saving, coupling, sampling steps and seed, then one of all seeds: speedups.csv."""
    rows: list[dict[str, Any]] = []
    for result in results:
        names = ("saves", "coupling", "sampling_steps", "horizon")
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
            | {"verdict": result.verdict.value, "p_value": result.p_value, "p_corrected": result.corrected}
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


def saving_text(result: Speedup) -> str:
    """'1.4 (1.1 to 1.7)*', or 'as with 20'."""
    return f"as with {result.repeats}" if result.repeats else interval_text(result.steps, result.bound) + result.marks


def savings_table(comparison: Comparison, results: Iterable[Speedup], saves: str) -> "DataFrame":
    """How many times fewer steps every coupling needs, by number of sampling steps; colored where resolved."""
    found = {(r.coupling, r.sampling_steps): r for r in results if r.saves == saves}
    numbers = comparison.sampling_steps if saves == "training" else saved_from(comparison)
    rows = []
    for entry in (e for e in comparison.couplings if not e.baseline):
        row: list[Any] = [entry.label]
        for result in (found[entry.name, steps] for steps in numbers):
            if result.repeats:
                row.append(saving_text(result))
                continue
            text = value_text(result.steps, result.bound) + result.marks
            row.append(figure(text, range_text(result.steps), kind=result.verdict.value if result.is_resolved else ""))
        rows.append(row)
    return steps_frame(comparison, rows, numbers)


def verdict_table(comparison: Comparison, results: Iterable[Speedup]) -> "DataFrame":
    """Every comparison: verdict, the same after Holm's correction, speed-ups in steps and time, best metric."""
    metric = comparison.metric.removesuffix(" distance")
    rows = []
    for result in (r for r in results if not r.repeats):
        corrected = result.verdict.value if result.holds or not result.is_resolved else Verdict.UNRESOLVED.value
        ratio = interval_text(result.quality_ratio) + " *" * result.hidden
        times = [interval_text(mean, result.bound) for mean in (result.steps, result.wall)]
        finals = [interval_text(mean) for mean in (result.baseline_final, result.coupling_final)]
        tests = [f"{p:.3f}" if p is not None else "-" for p in (result.p_value, result.corrected)]
        what = (comparison.entry(result.coupling).label, result.saves, result.sampling_steps)
        rows.append((*what, result.verdict.value, corrected, *tests, *times, *finals, ratio, len(result.seeds)))
    columns = ["Coupling", "Steps of", "Sampling steps", "Verdict", "Holm-corrected", "p", "p, corrected"]
    columns += ["Times fewer", "in time", f"Baseline's {metric}", f"Best {metric}", "Ratio to baseline", "Seeds"]
    return new_frame(rows, columns)


def paper_table(comparison: Comparison) -> "DataFrame":
    """Both savings and the best metric, by sampling steps and coupling, for LaTeX."""
    results = {(r.saves, r.coupling, r.sampling_steps): r for r in speedups(comparison)}
    best = f"Best {comparison.metric.removesuffix(' distance')}"
    columns = [f"{comparison.sampler_name} steps", "Coupling", "Training steps", "Sampling steps", best]
    rows = []
    for steps in comparison.sampling_steps:
        mark = " (headline)" if steps == comparison.headline_steps else ""
        for entry in comparison.couplings:
            if entry.baseline:
                value, count = baseline_best(comparison, steps)
                cells: tuple[Any, ...] = ("1", "1", interval_text(value), "1", count)
            else:
                result, saved = (results.get((saves, entry.name, steps)) for saves in ("training", "sampling"))
                assert result
                texts = [saving_text(r) if r else "-" for r in (result, saved)]
                ratio = interval_text(result.quality_ratio)
                cells = (*texts, interval_text(result.coupling_final), ratio, len(result.seeds))
            rows.append((f"{steps}{mark}", entry.label, *cells))
    return new_frame(rows, [*columns, "Ratio to baseline", "Seeds"])


def baseline_best(comparison: Comparison, sampling_steps: int) -> tuple[Interval | None, int]:
    """The baseline's mean best metric over the seeds that got furthest, and their number."""
    values = [v for [v] in best_values(comparison, [comparison.baseline.name], sampling_steps).values()]
    return (mean_interval(values, minimum=0) if values else None), len(values)


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
    """A ``table`` environment (package booktabs) of speed-ups and best metrics.

    Couplings whose difference from the baseline the floor hides carry an asterisk. The caption says
    what is compared, on what, and how sure it is; a comment names the command that made it.
    """
    frame = paper_table(comparison)
    frame.columns = [latex_escaped(name) for name in frame.columns]
    text = frame.map(latex_escaped).to_latex(
        index=False,
        column_format="llllllr",
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
    """Markdown for a README: how many times fewer steps of training and of sampling every coupling needs.

    In brackets the best metric; the headline column is bold. A line below says what it is and which command made it.
    """
    numbers = {"training": comparison.sampling_steps, "sampling": saved_from(comparison)}
    found: dict[tuple[str, str, int], Speedup]
    found = {(r.saves, r.coupling, r.sampling_steps): r for r in speedups(comparison)}

    def cell(result: Speedup) -> str:
        final = result.coupling_final if result.saves == "training" else None
        return markdown_escaped(saving_text(result) + (f" [{number(final.value)}]" if final else ""))

    rows = {
        saves: [
            [markdown_escaped(entry.label), *(cell(found[saves, entry.name, n]) for n in each)]
            for entry in comparison.couplings
            if each and not entry.baseline
        ]
        for saves, each in numbers.items()
    }
    bests = [baseline_best(comparison, steps)[0] for steps in comparison.sampling_steps]
    base = [f"1 [{number(best.value)}]" if best else "-" for best in bests]
    note = markdown_escaped(render("speedups_note.txt", c=comparison, dagger=any(r.holds for r in found.values())))
    baseline = markdown_escaped(comparison.baseline.label)
    return render("speedups.md", c=comparison, numbers=numbers, rows=rows, baseline=baseline, base=base, note=note)


def markdown_escaped(text: str) -> str:
    """``text`` as markdown prints it, on one line."""
    return " ".join(re.sub(r"([\\|<>*_`])", r"\\\1", text).split())
