"""Tables of a comparison: rows for CSV files and HTML, and a markdown table for a README."""

import csv
import io
from statistics import fmean
from typing import Any

from immiscible_diffusion.metrics.evaluate import METRICS
from immiscible_diffusion.reporting.compare.estimate import Estimate, arithmetic
from immiscible_diffusion.reporting.compare.findings import number, share, with_interval
from immiscible_diffusion.reporting.compare.results import Comparison
from immiscible_diffusion.reporting.compare.speedup import (
    Speedup,
    common_seeds,
    kept_by_control,
    speedup,
    speedups,
)

Table = tuple[list[str], list[list[str]]]
_QUALITY = ("nfe", "frechet", "kid", "kid_error", *METRICS[2:])


def results_csv(comparison: Comparison) -> str:
    """One row per coupling, seed, step and budget."""
    header = ["coupling", "label", "seed", "step", "budget", *_QUALITY]
    rows = []
    for entry in comparison.couplings:
        for cell in comparison.cells_of(entry.name):
            for q in sorted(cell.quality, key=lambda q: (q.step, q.budget)):
                row = [entry.name, entry.label, cell.seed, q.step, q.budget]
                rows.append(row + [getattr(q, name) for name in _QUALITY])
    return _csv(header, rows)


def speedups_csv(comparison: Comparison) -> str:
    """One row per coupling, budget and seed, then one with seed 'all' and the intervals."""
    header = ["coupling", "budget", "seed", "horizon", "speedup", "low", "high", "bound"]
    header += ["time_speedup", "target", "baseline_final", "coupling_final", "quality_ratio"]
    header += ["quality_ratio_low", "quality_ratio_high", "resolved", "verdict"]
    rows = [row for result in speedups(comparison) for row in _speedup_rows(result)]
    return _csv(header, rows)


def _speedup_rows(result: Speedup) -> list[list[Any]]:
    start = [result.coupling, result.budget]
    rows = []
    for seed in result.seeds:
        ratio = None if seed.bound == "~" else seed.ratio
        time = None if ratio is None or seed.time_ratio is None else ratio * seed.time_ratio
        ends = [seed.target, seed.baseline_final, seed.coupling_final]
        row = [seed.seed, result.horizon, ratio, None, None, seed.bound, time, *ends]
        quality = ends[2] / ends[1] if ends[1] else None
        rows.append([*start, *row, quality, None, None, None, None])
    steps, quality_ratio = _parts(result.steps), _parts(result.quality_ratio)
    bound = result.steps.bound if result.steps else None
    finals = [e.value if e else None for e in (result.baseline_final, result.coupling_final)]
    wall = _parts(result.wall)[0]
    last = ["all", result.horizon, *steps, bound, wall, None, *finals, *quality_ratio]
    return [*rows, [*start, *last, result.resolved, result.verdict]]


def speedup_table(comparison: Comparison, budget: int) -> Table:
    """Every coupling at one budget: speed-ups in steps and time, final qualities, verdict."""
    header = ["Coupling", "Verdict", "Speed-up in steps", "in time"]
    header += [f"Final {comparison.measure_name}", "Ratio to baseline", "Seeds"]
    rows = [_baseline_row(comparison, budget)]
    for entry in comparison.couplings:
        if entry.baseline:
            continue
        result = speedup(comparison, entry.name, budget)
        final = with_interval(result.coupling_final)
        ratio = with_interval(result.quality_ratio)
        if result.resolved is False:
            ratio += " *"
        cells = [with_interval(result.steps), with_interval(result.wall), final, ratio]
        rows.append([entry.label, result.verdict, *cells, str(len(result.seeds))])
    return header, rows


def _baseline_row(comparison: Comparison, budget: int) -> list[str]:
    baseline = comparison.baseline
    horizon, seeds = common_seeds(comparison, (baseline.name,), budget)
    final = _final(comparison, baseline.name, "value", budget, horizon, seeds, best=True)
    return [baseline.label, "baseline", "1", "1", with_interval(final), "1", str(len(seeds))]


def control_table(comparison: Comparison) -> Table | None:
    """What the shuffled controls keep of each gain, by budget; None without a control."""
    entries = [e for e in comparison.treated if comparison.control(e.name)]
    if not entries:
        return None
    rows = []
    for entry in entries:
        for budget in comparison.sampling_steps:
            kept = kept_by_control(comparison, entry.name, budget)
            if kept is None:
                rows.append([entry.label, str(budget), "-", "-", "-", "not measured", "0"])
                continue
            finals = (kept.baseline_final, kept.control_final, kept.coupling_final)
            values = [number(value) for value in finals]
            rows.append(
                [entry.label, str(budget), *values, share(kept.share), str(len(kept.seeds))]
            )
    header = ["Coupling", "Budget", comparison.baseline.label, "shuffled", "paired"]
    return [*header, "Share of the gain kept", "Seeds"], rows


def cost_table(comparison: Comparison) -> Table:
    """Time of a training step, of pairing, and of the step's waiting for it; means over runs."""
    header = ["Coupling", "ms per step", "pairing, ms", "step waits for it", "Runs"]
    rows = []
    for entry in comparison.couplings:
        cells = comparison.cells_of(entry.name)
        seconds = [c.seconds_per_step for c in cells]
        values = [
            _mean([None if s is None else 1000 * s for s in seconds]),
            _mean([c.pairing_ms for c in cells]),
            _mean([None if c.pairing_share is None else 100 * c.pairing_share for c in cells], "%"),
        ]
        rows.append([entry.label, *values, str(len(cells))])
    return header, rows


def metric_table(comparison: Comparison) -> Table:
    """Every metric at the last evaluated step: mean over the seeds that got there."""
    names = METRICS
    titles = {"frechet": "Frechet", "kid": "KID (± error)"}
    header = ["Coupling", "Budget", "NFE", "Step", *(titles.get(n, n) for n in names), "Seeds"]
    rows = []
    for entry in comparison.couplings:
        for budget in comparison.sampling_steps:
            horizon, seeds = common_seeds(comparison, (entry.name,), budget)
            if horizon is None:
                rows.append([entry.label, str(budget), *["-"] * (len(names) + 2), "0"])
                continue
            where = (comparison, entry.name)
            values = [_final(*where, n, budget, horizon, seeds) for n in ("nfe", *names)]
            shown = [number(v.value) if v else "-" for v in values]
            shown[0] = f"{values[0].value:g}" if values[0] else "-"
            error = _final(*where, "kid_error", budget, horizon, seeds)
            if error is not None:
                shown[2] += f" ± {number(error.value)}"
            steps = [shown[0], f"{horizon:,}", *shown[1:]]
            rows.append([entry.label, str(budget), *steps, str(len(seeds))])
    return header, rows


def speedup_markdown(comparison: Comparison) -> str:
    """A markdown table for a README: the speed-up of every coupling at every budget.

    In brackets the final measure; the headline budget is bold. A line below says what it
    is and which command made it.
    """
    sampler = comparison.sampler_name
    titles = [_bold(str(b), b == comparison.headline_steps) for b in comparison.sampling_steps]
    lines = [f"| coupling | {' | '.join(f'{title} {sampler} steps' for title in titles)} |"]
    lines.append("|---" * (len(comparison.sampling_steps) + 1) + "|")
    for entry in comparison.couplings:
        cells = [
            _markdown_cell(comparison, entry.name, budget) for budget in comparison.sampling_steps
        ]
        lines.append(f"| {_markdown(entry.label)} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", _markdown_note(comparison), ""])


def _markdown_cell(comparison: Comparison, name: str, budget: int) -> str:
    if name == comparison.baseline.name:
        final = _baseline_row(comparison, budget)[4].split(" (")[0]
        return f"1 [{final}]"
    result = speedup(comparison, name, budget)
    if result.coupling_final is None:
        return "-"
    mark = "*" if result.resolved is False else ""
    return _markdown(f"{with_interval(result.steps)} [{number(result.coupling_final.value)}{mark}]")


def _markdown_note(comparison: Comparison) -> str:
    seeds = len(comparison.seeds)
    note = (
        f"Speed-up in training steps against {_markdown(comparison.baseline.label)} at equal "
        f"quality (95% interval, {seeds} seed{'s' if seeds != 1 else ''}; above 1 is faster), in "
        f"brackets the final {comparison.measure}, {comparison.samples:,} samples, features "
        f"{_markdown(comparison.features)}; * = not resolved from the baseline."
    )
    if comparison.note:
        note += f" ({_markdown(comparison.note)})"
    fence = "``" if "`" in comparison.command else "`"
    return f"{note} Made with {fence}{' '.join(comparison.command.split())}{fence}."


def _final(
    comparison: Comparison,
    name: str,
    metric: str,
    budget: int,
    horizon: int | None,
    seeds: tuple[int, ...],
    best: bool = False,
) -> Estimate | None:
    """A metric at ``horizon`` over ``seeds``, or its best up to there; None if not measured."""
    values = []
    for cell in comparison.cells_of(name):
        if cell.seed not in seeds or horizon is None:
            continue
        points = [q for q in cell.quality if q.budget == budget and q.step <= horizon]
        known = [getattr(q, metric) for q in points if best or q.step == horizon]
        known = [value for value in known if value is not None]
        if known:
            values.append(float(min(known)))
    return arithmetic(values) if values else None


def _parts(estimate: Estimate | None) -> list[float | None]:
    return [estimate.value, estimate.low, estimate.high] if estimate else [None, None, None]


def _mean(values: list[float | None], unit: str = "") -> str:
    known = [value for value in values if value is not None]
    return f"{number(fmean(known))}{unit}" if known else "-"


def _csv(header: list[str], rows: list[list[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _bold(text: str, bold: bool) -> str:
    return f"**{text}**" if bold else text


def _markdown(text: str) -> str:
    for character in "\\|<>*_`":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())
