"""The one style of all plots: palette, lines, axes, legends; matplotlib figures as ``<img>``.

A plot has room for one phone screen; the same input gives the same bytes.
"""

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from immiscible_diffusion.reporting.html import image
from immiscible_diffusion.utils.optional_deps import require_extra

if TYPE_CHECKING:
    from markupsafe import Markup

# Okabe and Ito's palette, told apart with every common color blindness; yellow is left out.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BASELINE = "#222222"
GRAY = "#888888"
MARKERS = ("s", "^", "D", "v", "P", "X")
STYLE = {
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
    "axes.axisbelow": True,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 10.5,
    "legend.handlelength": 2.8,
}
_TWO_COLUMNS = 22  # characters of a label that fit twice into the width
_LEGEND_ROW = 0.21  # inches


@dataclass(frozen=True)
class LineStyle:
    """How a coupling is drawn: the same in every plot; controls are dashed and hollow."""

    color: str
    marker: str
    control: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """Arguments for a matplotlib line."""
        return {
            "color": self.color,
            "marker": self.marker,
            "markersize": 5,
            "linewidth": 1.2 if self.control else 1.9,
            "linestyle": (0, (4, 3)) if self.control else "-",
            "markerfacecolor": "white" if self.control else self.color,
        }


def line_styles(names: Sequence[str]) -> dict[str, LineStyle]:
    """A color and a marker for every name; markers shift where colors repeat."""
    return {
        name: LineStyle(PALETTE[i % len(PALETTE)], MARKERS[(i + i // len(PALETTE)) % len(MARKERS)])
        for i, name in enumerate(names)
    }


@dataclass
class Plot:
    """Axes to draw on; ``image`` is the ``<img>`` once the plot is complete."""

    title: str
    axes: Any
    image: "Markup"


@contextmanager
def new_plot(title: str, *, height: float = 3.6, width: float = 4.7, legend: bool = True) -> Iterator[Plot]:
    """Yield a plot of ``width`` x ``height`` inches; artists with a label make its legend.

    The legend stands below the axes and adds to the height, or is left out. ``title`` is the image's text for screen
    readers as well.
    """
    with require_extra("train", "plots"):
        import matplotlib
        from markupsafe import Markup
        from matplotlib.figure import Figure
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=(width, height), layout="constrained")
        plot = Plot(title, figure.add_subplot(), Markup())
        # A label such as "5 $ a step" is text, never a formula.
        plot.axes.set_title(title, parse_math=False)
        yield plot
        if legend:
            _add_legend(figure, plot.axes)
        buffer = io.BytesIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    plot.image = image(buffer.getvalue(), "image/svg+xml", title)


def _add_legend(figure: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if not labels:
        return
    columns = 2 if len(labels) > 1 and max(map(len, labels)) <= _TWO_COLUMNS else 1
    labels = [short(label, 50) for label in labels]
    legend = figure.legend(handles, labels, loc="outside lower left", ncols=columns)
    for text in legend.get_texts():
        text.set_parse_math(False)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.1 + _LEGEND_ROW * math.ceil(len(labels) / columns))


def legend_alone(axes: Any) -> None:
    """Leave nothing of ``axes`` but a legend: for small multiples that share it."""
    handles, labels = axes.get_legend_handles_labels()
    axes.clear()
    axes.set_axis_off()
    legend = axes.legend(handles, [short(label, 42) for label in labels], loc="upper left", borderaxespad=0)
    for text in legend.get_texts():
        text.set_parse_math(False)


def short(label: str, limit: int = 26) -> str:
    """``label``, cut to what an axis has room for."""
    return label if len(label) <= limit else label[: limit - 1] + "…"


def log_x(axes: Any, ticks: Sequence[int], gap: float = 1.35) -> None:
    """A logarithmic x axis with ``ticks``, less those whose labels would touch; the last stays."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    places: list[int] = []
    for tick in sorted(set(ticks), reverse=True):
        if tick > 0 and (not places or places[-1] / tick >= gap):
            places.append(tick)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(places[::-1]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: thousands(value)))


def thousands(value: float) -> str:
    """'1.5k' or '500'."""
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def tile(axes: Any, x: float, y: float, shade: float) -> None:
    """Fill the unit square around a point: from red at -1 over white to blue at 1, told apart with color blindness."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    color = colormaps["RdBu"](0.5 + 0.3 * max(-1.0, min(1.0, shade)))  # light enough for dark text
    axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=color, edgecolor="white", linewidth=1.5))


def log_y(axes: Any) -> None:
    """A logarithmic y axis with plain numbers; call it when everything is drawn."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high / low < 3:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    else:
        subs = (1, 2, 5) if high / low < 100 else (1,)
        axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=40))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
