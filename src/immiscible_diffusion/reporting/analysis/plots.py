"""The panels of the page; each names its axes with their units."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from immiscible_diffusion.analysis.estimates import Mean
from immiscible_diffusion.reporting.analysis.values import counted, error_of, known, plus_minus
from immiscible_diffusion.reporting.plotting import Look, short, svg_panel

TIME = "t (0 = data, 1 = noise); levels evenly spaced"
ERRORS = 2.0
"""Bars show so many standard errors."""
_SPACE = 10  # ticks that fit below a panel
_GREY = "#666666"
_ASIDE = 0.06
_CLEAR = {"facecolor": "white", "edgecolor": "none", "pad": 1}


class Line(NamedTuple):
    """Values of one coupling, in the order of the axis."""

    look: Look
    means: Sequence[Mean]


class Axis(NamedTuple):
    """What is drawn upward.

    Attributes:
        label: with its unit.
        log: whether logarithmic.
        reference: a value to compare with, or None.
        least: below which there can be nothing, or None.
        meaning: of the reference.
    """

    label: str
    log: bool = False
    reference: float | None = None
    meaning: str = ""
    least: float | None = None


def by_level(
    name: str, title: str, levels: Sequence[float], lines: Iterable[Line], axis: Axis
) -> str:
    """Lines over the noise level; the levels, crowded near 1, are drawn evenly spaced."""
    ticks = [f"{t:g}" for t in levels]
    return _over(name, title, ticks, lines, axis, TIME)


def by_direction(name: str, title: str, lines: Iterable[Line], axis: Axis) -> str:
    """Lines over the data's leading directions."""
    lines = list(lines)
    ticks = [str(i + 1) for i in range(max((len(line.means) for line in lines), default=0))]
    return _over(name, title, ticks, lines, axis, "leading direction of the data (1 = most spread)")


def by_class(
    name: str, title: str, classes: Sequence[str], lines: Iterable[Line], axis: Axis
) -> str:
    """Points over classes."""
    return _over(name, title, [short(c, 12) for c in classes], lines, axis, "class", joined=False)


def _over(
    name: str,
    title: str,
    ticks: Sequence[str],
    lines: Iterable[Line],
    axis: Axis,
    below: str,
    joined: bool = True,
) -> str:
    lines = list(lines)
    with svg_panel(name, title) as (axes, output):
        if axis.reference is not None:
            _reference(axes, axis)
        for number, line in enumerate(lines):
            options = line.look.options if joined else line.look.options | {"linestyle": "none"}
            # Bars of several lines stand beside one another.
            aside = (number - (len(lines) - 1) / 2) * min(_ASIDE, 0.5 / len(lines))
            _draw(axes, line.means, options, axis.log, aside)
        if axis.log:
            _log_scale(axes)
        if axis.least is not None:
            axes.set_ylim(bottom=0.85 * axis.least)
        _ticks(axes, ticks)
        axes.set(xlabel=below)
        size = 11 if len(axis.label) <= 34 else 9.5
        axes.set_ylabel(axis.label, parse_math=False, fontsize=size)
        axes.grid(True)
        axes.set_axisbelow(True)
    return output[0]


def _draw(
    axes: Any, means: Sequence[Mean], options: dict[str, Any], log: bool, aside: float
) -> None:
    points = [(x + aside, m) for x, m in enumerate(means) if known(m) and (m.value > 0 or not log)]
    if not points:
        return
    values = [m.value for _, m in points]
    up = [ERRORS * error_of(m) for _, m in points]
    # A bar that reaches 0 has no end on a logarithmic axis.
    down = [min(e, 0.95 * v) if log else e for e, v in zip(up, values, strict=True)]
    places = [x for x, _ in points]
    axes.errorbar(places, values, [down, up], elinewidth=1.2, capsize=2.5, **options)


def _reference(axes: Any, axis: Axis) -> None:
    axes.axhline(axis.reference, color=_GREY, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
    if axis.meaning:
        axes.annotate(
            axis.meaning,
            (0.01, axis.reference),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            fontsize=9,
            color=_GREY,
            parse_math=False,
        )


def _log_scale(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    decades = math.log10(high / low)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1,), numticks=40))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _ticks(axes: Any, ticks: Sequence[str]) -> None:
    every = max(1, math.ceil(len(ticks) / _SPACE))
    # From the end, as the last level is the one nearest to noise.
    places = list(range(len(ticks) - 1, -1, -every))[::-1]
    wide = max((len(tick) for tick in ticks), default=0) > 5
    turned: dict[str, Any] = {"rotation": 35, "ha": "right"} if wide else {}
    axes.set_xticks(places, [ticks[i] for i in places], parse_math=False, **turned)
    if ticks:
        axes.set_xlim(-0.4, len(ticks) - 0.6)


class Row(NamedTuple):
    """One coupling in a panel of rows."""

    label: str
    look: Look
    mean: Mean


def rows_of_points(name: str, title: str, rows: Sequence[Row], axis: Axis) -> str:
    """A point with its error for each coupling, one below the other."""
    drawn = [row for row in rows if known(row.mean)][::-1]
    with svg_panel(name, title, 1.1 + 0.34 * len(drawn)) as (axes, output):
        if axis.reference is not None:
            axes.axvline(axis.reference, color=_GREY, linewidth=1, linestyle=(0, (2, 2)))
        for y, row in enumerate(drawn):
            options = row.look.options | {"linestyle": "none"}
            bar = ERRORS * error_of(row.mean)
            axes.errorbar(row.mean.value, y, xerr=bar, elinewidth=1.5, capsize=3, **options)
        _rows(axes, [row.label for row in drawn], axis.label)
    return output[0]


def rows_of_bars(name: str, title: str, rows: Sequence[Row], axis: Axis) -> str:
    """A bar for each coupling with its figure beside it, as a share of the reference."""
    drawn = [row for row in rows if known(row.mean)][::-1]
    with svg_panel(name, title, 1.1 + 0.4 * len(drawn)) as (axes, output):
        whole = axis.reference or max((row.mean.value for row in drawn), default=1)
        for y, row in enumerate(drawn):
            axes.barh(y, whole, height=0.66, color="#e9ecef", linewidth=0)
            axes.barh(y, row.mean.value, height=0.66, color=row.look.color, linewidth=0)
            _written(axes, whole, y, counted(row.mean))
        _rows(axes, [row.label for row in drawn], axis.label)
        axes.set_xlim(0, whole * 1.4)
        axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= whole])
    return output[0]


class Budget(NamedTuple):
    """What the noise of one coupling tells, in nats."""

    label: str
    look: Look
    information: Mean
    kl: Mean
    removable: float


def budget_bars(
    name: str, title: str, rows: Sequence[Budget], needed: Sequence[tuple[str, float]]
) -> str:
    """Information told, beside it what is spent on the law; lines: what would be needed."""
    drawn = [row for row in rows if known(row.information)][::-1]
    with svg_panel(name, title, 1.7 + 0.42 * len(drawn)) as (axes, output):
        for y, row in enumerate(drawn):
            told, spent = max(row.information.value, 0), row.kl.value
            axes.barh(y, told, height=0.62, color=row.look.color, linewidth=0)
            if known(row.kl) and spent > 0:
                light = {"color": row.look.color, "alpha": 0.3, "linewidth": 0}
                axes.barh(y, spent, left=told, height=0.62, **light)
            if not math.isnan(row.removable):
                axes.plot([row.removable] * 2, [y - 0.42, y + 0.42], color="#222222", linewidth=2)
            end = max(told + max(0.0, spent if known(row.kl) else 0.0), 0)
            _written(axes, end, y, plus_minus(row.information))
        for i, (meaning, value) in enumerate(needed):
            axes.axvline(value, color=_GREY, linewidth=1.2, linestyle=(0, (3, 2)))
            _above(axes, value, len(drawn) - 0.4 + 0.4 * i, meaning)
        _rows(axes, [row.label for row in drawn], "nats")
        axes.set_ylim(-0.6, len(drawn) - 0.4 + 0.45 * len(needed))
        axes.set_xlim(0, max([v for _, v in needed] + [axes.get_xlim()[1], 0.1]) * 1.08)
    return output[0]


def _above(axes: Any, x: float, y: float, meaning: str) -> None:
    place = {"ha": "right", "va": "bottom", "textcoords": "offset points", "bbox": _CLEAR}
    axes.annotate(meaning, (x, y), (-4, 0), fontsize=9, color="#444444", parse_math=False, **place)


def _written(axes: Any, x: float, y: float, label: str) -> None:
    place = {"va": "center", "textcoords": "offset points", "bbox": _CLEAR}
    axes.annotate(label, (x, y), (6, 0), fontsize=10, **place)


def _rows(axes: Any, labels: Sequence[str], below: str) -> None:
    axes.set_yticks(range(len(labels)), labels, parse_math=False)
    axes.set_ylim(-0.6, max(len(labels), 1) - 0.4)
    axes.set_xlabel(below, parse_math=False)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
