"""Plots as SVG text: the same input gives the same bytes, and nothing is fetched to show them.

Each function draws one panel with room for one phone screen and no legend: ``looks`` says how each
coupling is drawn, and the page writes one legend for all panels.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from immiscible_diffusion.reporting.compare.estimate import SMALLEST
from immiscible_diffusion.reporting.compare.results import Comparison, Trial
from immiscible_diffusion.reporting.compare.series import (
    Series,
    final_quality_series,
    loss_series,
    quality_series,
)
from immiscible_diffusion.reporting.plotting import (
    BASELINE,
    Look,
    look_key,
    looks_of,
    short,
    svg_panel,
)

NOT_COMPARABLE = (
    "Losses of different couplings are not comparable: paired training loss is lower by "
    "construction, loss on independent noise is not what paired training minimizes."
)
FLOOR_KEY = (
    '<svg viewBox="0 0 40 14" aria-hidden="true"><path d="M1 2H39V12H1z" fill="#888888" '
    'fill-opacity="0.3"/></svg>'
)


def looks(comparison: Comparison) -> dict[str, Look]:
    """The look of each coupling; a control has its coupling's color."""
    names = [entry.name for entry in comparison.couplings if entry.control_of is None]
    names = [name for name in names if name != comparison.baseline.name]
    chosen = looks_of(names)
    chosen[comparison.baseline.name] = Look(BASELINE, "o", False)
    for entry in comparison.couplings:
        if entry.control_of is not None:
            of = chosen.get(entry.control_of, Look(BASELINE, "o", False))
            chosen[entry.name] = Look(of.color, of.marker, True)
    return chosen


def quality_against_steps(comparison: Comparison, budget: int) -> str:
    """The measure against training steps at one sampling budget, both logarithmic."""
    title = f"{budget} {comparison.sampler_name} steps"
    with svg_panel(f"quality-{budget}", title) as (axes, output):
        found = {e.name: quality_series(comparison, e.name, budget) for e in comparison.couplings}
        _lines(axes, comparison, found)
        _floor_band(axes, comparison)
        _log_axes(axes, list(comparison.eval_steps))
        axes.set(xlabel="training steps", ylabel=f"{comparison.measure} (lower is better)")
    return output[0]


def quality_against_budget(comparison: Comparison) -> str:
    """The measure at the last step against the number of sampler steps."""
    with svg_panel("sampling_steps", "At the end of training") as (axes, output):
        found = {e.name: final_quality_series(comparison, e.name) for e in comparison.couplings}
        _lines(axes, comparison, found)
        _floor_band(axes, comparison)
        _log_axes(axes, list(comparison.sampling_steps))
        sampler = comparison.sampler_name
        axes.set(xlabel=f"{sampler} steps of the sampler", ylabel=comparison.measure)
    return output[0]


def losses_against_steps(comparison: Comparison, kind: str) -> str:
    """``kind`` loss against steps; the panel itself says that couplings are not comparable.

    Show it only beside the sentence ``NOT_COMPARABLE``.
    """
    noise = {"validation": "independent noise", "training": "the paired noise"}
    found = {e.name: loss_series(comparison, e.name, kind) for e in comparison.couplings}
    with svg_panel(f"loss-{kind}", f"{kind.capitalize()} loss on {noise[kind]}") as (axes, output):
        _lines(axes, comparison, found)
        steps = [x for series in found.values() if series for x in series.x]
        _log_axes(axes, list(comparison.eval_steps), y=False)
        if steps:
            axes.set_xlim(min(steps) / 1.08, max(steps) * 1.08)
        axes.set(xlabel="training steps (not comparable between couplings)", ylabel="loss")
    return output[0]


def pairing_cost(comparison: Comparison) -> str:
    """Time of a training step by coupling; the dark part waits for pairing; dots are seeds."""
    entries = [e for e in comparison.couplings if _times(comparison.cells_of(e.name))]
    entries.reverse()
    chosen = looks(comparison)
    with svg_panel("cost", "Time of a training step", 0.9 + 0.42 * len(entries)) as (axes, output):
        for row, entry in enumerate(entries):
            cells = comparison.cells_of(entry.name)
            times = _times(cells)
            total = fmean(times)
            waiting = total * fmean([cell.pairing_share or 0.0 for cell in cells])
            color = chosen[entry.name].color
            axes.barh(row, total, height=0.62, color=color, alpha=0.25, linewidth=0)
            axes.barh(row, waiting, height=0.62, color=color, linewidth=0)
            axes.plot(times, [row] * len(times), "o", color=color, markersize=3.5)
            axes.annotate(
                f"{total:.3g} ms",
                (max(times), row),
                (6, 0),
                textcoords="offset points",
                va="center",
            )
        labels = [short(entry.label) for entry in entries]
        axes.set_yticks(range(len(entries)), labels, parse_math=False)
        axes.set(xlabel="milliseconds per step", xlim=(0, axes.get_xlim()[1] * 1.18))
        axes.grid(axis="x")
        axes.set_axisbelow(True)
    return output[0]


def legend_key(comparison: Comparison, name: str) -> str:
    """A small SVG of the line that stands for the coupling ``name``."""
    return look_key(looks(comparison)[name])


def _times(cells: Sequence[Trial]) -> list[float]:
    return [1000 * cell.seconds_per_step for cell in cells if cell.seconds_per_step is not None]


def _lines(axes: Any, comparison: Comparison, found: dict[str, Series | None]) -> None:
    chosen = looks(comparison)
    for name, series in sorted(found.items(), key=lambda item: not chosen[item[0]].control):
        if series is None:
            continue
        axes.plot(series.x, series.mean, **chosen[name].options)
        if len(series.seeds) > 1 and len(series.x) > 1:
            alpha = 0.08 if chosen[name].control else 0.18
            band = {"color": chosen[name].color, "alpha": alpha, "linewidth": 0}
            axes.fill_between(series.x, series.low, series.high, **band)


def _floor_band(axes: Any, comparison: Comparison) -> None:
    if comparison.floor is None:
        return
    low = max(comparison.floor.low, SMALLEST)
    axes.axhspan(low, comparison.floor.high, color="#888888", alpha=0.22, linewidth=0, zorder=0)


def _log_axes(axes: Any, ticks: list[int], y: bool = True) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(_spread(ticks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _count(value)))
    if y:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.grid(True)
    axes.set_axisbelow(True)


def _spread(ticks: list[int], gap: float = 1.35) -> list[int]:
    """Leave out ticks whose labels would touch on a logarithmic axis; the last one stays."""
    kept: list[int] = []
    for tick in sorted(set(ticks), reverse=True):
        if tick > 0 and (not kept or kept[-1] / tick >= gap):
            kept.append(tick)
    return kept[::-1]


def _count(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"
