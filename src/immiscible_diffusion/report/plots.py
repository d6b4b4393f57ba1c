"""Plots as SVG text: the same input gives the same bytes, and nothing is fetched to show them.

Each function draws one panel with room for one phone screen and no legend: ``looks`` says how each
coupling is drawn, and the page writes one legend for all panels.
"""

import html
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from immiscible_diffusion.extra import needs_extra
from immiscible_diffusion.report.estimate import SMALLEST
from immiscible_diffusion.report.results import Cell, Comparison
from immiscible_diffusion.report.series import (
    Series,
    final_quality_series,
    loss_series,
    quality_series,
)

NOT_COMPARABLE = (
    "Losses of different couplings are not comparable: paired training loss is lower by "
    "construction, loss on independent noise is not what paired training minimises."
)
BASELINE = "#222222"
# Okabe and Ito's palette, told apart with every common colour blindness; yellow is left out.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("s", "^", "D", "v", "P", "X")
# The same markers, drawn by hand for the legend.
_SHAPES = {
    "o": "M20 3a4 4 0 1 0 .01 0z",
    "s": "M16 3h8v8h-8z",
    "^": "M20 2l5 9h-10z",
    "D": "M20 2l5 5-5 5-5-5z",
    "v": "M20 12l5-9h-10z",
    "P": "M18 2h4v3h3v4h-3v3h-4v-3h-3v-4h3z",
    "X": "M17 2l3 3 3-3 2 2-3 3 3 3-2 2-3-3-3 3-2-2 3-3-3-3z",
}
FLOOR_KEY = (
    '<svg viewBox="0 0 40 14" aria-hidden="true"><path d="M1 2H39V12H1z" fill="#888888" '
    'fill-opacity="0.3"/></svg>'
)
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.labelcolor": "#222222",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
}


@dataclass(frozen=True)
class Look:
    """How a coupling is drawn: the same in every plot; controls are dashed and hollow."""

    colour: str
    marker: str
    control: bool

    @property
    def options(self) -> dict[str, Any]:
        """Arguments for a matplotlib line."""
        return {
            "color": self.colour,
            "marker": self.marker,
            "markersize": 5,
            "linewidth": 1.2 if self.control else 1.9,
            "linestyle": (0, (4, 3)) if self.control else "-",
            "markerfacecolor": "white" if self.control else self.colour,
        }


def looks(comparison: Comparison) -> dict[str, Look]:
    """The look of each coupling; a control has its coupling's colour."""
    names = [entry.name for entry in comparison.couplings if entry.control_of is None]
    names = [name for name in names if name != comparison.baseline.name]
    chosen = {
        name: Look(
            PALETTE[i % len(PALETTE)], MARKERS[(i + i // len(PALETTE)) % len(MARKERS)], False
        )
        for i, name in enumerate(names)
    }
    chosen[comparison.baseline.name] = Look(BASELINE, "o", False)
    for entry in comparison.couplings:
        if entry.control_of is not None:
            of = chosen.get(entry.control_of, Look(BASELINE, "o", False))
            chosen[entry.name] = Look(of.colour, of.marker, True)
    return chosen


def quality_against_steps(comparison: Comparison, budget: int) -> str:
    """Frechet distance against training steps at one sampling budget, both logarithmic."""
    title = f"{budget} {comparison.sampler.capitalize()} steps"
    with _panel(f"quality-{budget}", title) as (axes, output):
        found = {e.name: quality_series(comparison, e.name, budget) for e in comparison.couplings}
        _lines(axes, comparison, found)
        _floor_band(axes, comparison)
        _log_axes(axes, list(comparison.eval_steps))
        axes.set(xlabel="training steps", ylabel="Frechet distance (lower is better)")
    return output[0]


def quality_against_budget(comparison: Comparison) -> str:
    """Frechet distance at the last step against the number of sampler steps."""
    with _panel("budgets", "At the end of training") as (axes, output):
        found = {e.name: final_quality_series(comparison, e.name) for e in comparison.couplings}
        _lines(axes, comparison, found)
        _floor_band(axes, comparison)
        _log_axes(axes, list(comparison.budgets))
        sampler = comparison.sampler.capitalize()
        axes.set(xlabel=f"{sampler} steps of the sampler", ylabel="Frechet distance")
    return output[0]


def losses_against_steps(comparison: Comparison, kind: str) -> str:
    """``kind`` loss against steps; the panel itself says that couplings are not comparable.

    Show it only beside the sentence ``NOT_COMPARABLE``.
    """
    noise = {"validation": "independent noise", "training": "the paired noise"}
    found = {e.name: loss_series(comparison, e.name, kind) for e in comparison.couplings}
    with _panel(f"loss-{kind}", f"{kind.capitalize()} loss on {noise[kind]}") as (axes, output):
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
    with _panel("cost", "Time of a training step", 0.9 + 0.42 * len(entries)) as (axes, output):
        for row, entry in enumerate(entries):
            cells = comparison.cells_of(entry.name)
            times = _times(cells)
            total = fmean(times)
            waiting = total * fmean([cell.pairing_share or 0.0 for cell in cells])
            colour = chosen[entry.name].colour
            axes.barh(row, total, height=0.62, color=colour, alpha=0.25, linewidth=0)
            axes.barh(row, waiting, height=0.62, color=colour, linewidth=0)
            axes.plot(times, [row] * len(times), "o", color=colour, markersize=3.5)
            axes.annotate(
                f"{total:.3g} ms",
                (max(times), row),
                (6, 0),
                textcoords="offset points",
                va="center",
            )
        labels = [_short(entry.label) for entry in entries]
        axes.set_yticks(range(len(entries)), labels, parse_math=False)
        axes.set(xlabel="milliseconds per step", xlim=(0, axes.get_xlim()[1] * 1.18))
        axes.grid(axis="x")
        axes.set_axisbelow(True)
    return output[0]


def legend_key(comparison: Comparison, name: str) -> str:
    """A small SVG of the line that stands for the coupling ``name``."""
    look = looks(comparison)[name]
    dash = ' stroke-dasharray="5 3"' if look.control else ""
    fill = "#ffffff" if look.control else look.colour
    return (
        f'<svg viewBox="0 0 40 14" aria-hidden="true"><path d="M1 7H39" stroke="{look.colour}" '
        f'stroke-width="2"{dash}/><path d="{_SHAPES[look.marker]}" fill="{fill}" '
        f'stroke="{look.colour}" stroke-width="1.3"/></svg>'
    )


def _times(cells: Sequence[Cell]) -> list[float]:
    return [1000 * cell.seconds_per_step for cell in cells if cell.seconds_per_step is not None]


def _short(label: str, limit: int = 26) -> str:
    return label if len(label) <= limit else label[: limit - 1] + "…"


@contextmanager
def _panel(name: str, title: str, height: float = 3.6) -> Iterator[tuple[Any, list[str]]]:
    """Yield axes to draw on and a list that holds the SVG text afterwards."""
    with needs_extra("train", "plots"):
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    output: list[str] = []
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(5.2, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        # A label such as "5 $ a step" is text, never a formula.
        axes.set_title(title, parse_math=False)
        yield axes, output
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    output.append(_inline(buffer.getvalue(), name, title))


def _inline(svg: str, name: str, title: str) -> str:
    """Make matplotlib's SVG file an element: scales with the page, ids unique, nothing fetched."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(url\(|href=")#', rf"\1#{name}-", svg)
    head = f'<svg role="img" aria-label="{html.escape(title)}" '
    svg = head + svg.removeprefix("<svg ")
    return re.sub(r"^<svg[^>]*>", lambda tag: re.sub(r' (width|height)="[^"]*"', "", tag[0]), svg)


def _lines(axes: Any, comparison: Comparison, found: dict[str, Series | None]) -> None:
    chosen = looks(comparison)
    for name, series in sorted(found.items(), key=lambda item: not chosen[item[0]].control):
        if series is None:
            continue
        axes.plot(series.x, series.mean, **chosen[name].options)
        if len(series.seeds) > 1 and len(series.x) > 1:
            alpha = 0.08 if chosen[name].control else 0.18
            band = {"color": chosen[name].colour, "alpha": alpha, "linewidth": 0}
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
