"""Panels of plots as SVG text, and how lines are told apart: shared by all pages.

A panel has room for one phone screen and no legend; the same input gives the same bytes, and
nothing is fetched to show it.
"""

import html
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from immiscible_diffusion.utils.optional_deps import require_extra

BASELINE = "#222222"
# Okabe and Ito's palette, told apart with every common color blindness; yellow is left out.
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

    color: str
    marker: str
    control: bool

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


def looks_of(names: Sequence[str]) -> dict[str, Look]:
    """A color and a marker for every name; markers change where colors come round again."""
    return {
        name: Look(
            PALETTE[i % len(PALETTE)], MARKERS[(i + i // len(PALETTE)) % len(MARKERS)], False
        )
        for i, name in enumerate(names)
    }


def look_key(look: Look) -> str:
    """A small SVG of the line drawn with ``look``, for a legend."""
    dash = ' stroke-dasharray="5 3"' if look.control else ""
    fill = "#ffffff" if look.control else look.color
    return (
        f'<svg viewBox="0 0 40 14" aria-hidden="true"><path d="M1 7H39" stroke="{look.color}" '
        f'stroke-width="2"{dash}/><path d="{_SHAPES[look.marker]}" fill="{fill}" '
        f'stroke="{look.color}" stroke-width="1.3"/></svg>'
    )


def short(label: str, limit: int = 26) -> str:
    """``label``, cut to what an axis has room for."""
    return label if len(label) <= limit else label[: limit - 1] + "…"


@contextmanager
def svg_panel(name: str, title: str, height: float = 3.6) -> Iterator[tuple[Any, list[str]]]:
    """Yield axes to draw on and a list that holds the SVG text afterwards.

    ``name`` makes ids unique on the page; ``title`` also names the picture for screen readers.
    """
    with require_extra("train", "plots"):
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
