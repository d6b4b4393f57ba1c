"""The plots of the page; error bars are two standard errors."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from immiscible_diffusion.reporting.analysis.records import Mean
from immiscible_diffusion.reporting.analysis.summary import counted
from immiscible_diffusion.reporting.plotting import GRAY, LineStyle, log_y, new_plot, short

if TYPE_CHECKING:
    from markupsafe import Markup

ERRORS = 2.0  # standard errors in a bar
WIDE = 5.6  # inches, with the names of couplings beside the axes
TIME = "t (0 = data, 1 = noise); levels evenly spaced"
DIRECTION = "leading direction of the data (1 = most spread)"
_TICKS = 10  # that fit below a plot
_ASIDE = 0.06
_CLEAR = {"facecolor": "white", "edgecolor": "none", "pad": 1}


class Series(NamedTuple):
    """The values of one coupling, in the order of the axis."""

    label: str
    style: LineStyle
    means: Sequence[Mean]


def lines(
    title: str,
    ticks: Sequence[str],
    series: Sequence[Series],
    label: str,
    *,
    below: str = TIME,
    log: bool = False,
    joined: bool = True,
    reference: float | None = None,
    least: float | None = None,
) -> "Markup":
    """Values over evenly spaced ``ticks``; ``reference`` is a dashed line, ``least`` the bottom."""
    with new_plot(title) as plot:
        axes = plot.axes
        if reference is not None:
            axes.axhline(reference, color=GRAY, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
        for number, one in enumerate(series):
            aside = (number - (len(series) - 1) / 2) * min(_ASIDE, 0.5 / len(series))
            points = [
                (x + aside, mean) for x, mean in enumerate(one.means) if mean.is_known and (mean.value > 0 or not log)
            ]
            values = [mean.value for _, mean in points]
            up = [ERRORS * mean.bar for _, mean in points]
            # A bar that reaches 0 has no end on a logarithmic axis.
            down = [min(e, 0.95 * v) if log else e for e, v in zip(up, values, strict=True)]
            options = one.style.options | ({} if joined else {"linestyle": "none"})
            places = [x for x, _ in points]
            options |= {"elinewidth": 1.2, "capsize": 2.5, "label": one.label}
            axes.errorbar(places, values, [down, up], **options)
        if log:
            log_y(axes)
        if least is not None:
            axes.set_ylim(bottom=0.85 * least)
        every = max(1, math.ceil(len(ticks) / _TICKS))
        # From the end, as the last level is the one nearest to noise.
        shown = list(range(len(ticks) - 1, -1, -every))[::-1]
        turned: dict[str, Any] = {"rotation": 35, "ha": "right"}
        wide = max(map(len, ticks), default=0) > 5
        labels = [short(ticks[i], 12) for i in shown]
        axes.set_xticks(shown, labels, parse_math=False, **(turned if wide else {}))
        axes.set_xlim(-0.4, len(ticks) - 0.6)
        axes.set_xlabel(below)
        axes.set_ylabel(label, parse_math=False, fontsize=11 if len(label) <= 34 else 9.5)
        axes.grid(True)
    return plot.image


def points(title: str, series: Sequence[Series], label: str, reference: float) -> "Markup":
    """The first value of each coupling with its error, one below the other."""
    drawn = [one for one in series if one.means[0].is_known][::-1]
    with new_plot(title, width=WIDE, height=1.1 + 0.34 * len(drawn)) as plot:
        plot.axes.axvline(reference, color=GRAY, linewidth=1, linestyle=(0, (2, 2)))
        for y, one in enumerate(drawn):
            options = one.style.options | {"linestyle": "none", "elinewidth": 1.5, "capsize": 3}
            plot.axes.errorbar(one.means[0].value, y, xerr=ERRORS * one.means[0].bar, **options)
        _label_rows(plot.axes, drawn, label)
    return plot.image


def fractions(title: str, series: Sequence[Series], label: str, total: float) -> "Markup":
    """A bar of ``total`` for each coupling, filled up to its first value."""
    drawn = [one for one in series if one.means[0].is_known][::-1]
    with new_plot(title, width=WIDE, height=1.1 + 0.4 * len(drawn)) as plot:
        for y, one in enumerate(drawn):
            plot.axes.barh(y, total, height=0.66, color="#e9ecef", linewidth=0)
            plot.axes.barh(y, one.means[0].value, height=0.66, color=one.style.color, linewidth=0)
            _write(plot.axes, total, y, counted(one.means[0]))
        _label_rows(plot.axes, drawn, label)
        plot.axes.set_xlim(0, total * 1.55)
        plot.axes.set_xticks([tick for tick in plot.axes.get_xticks() if 0 <= tick <= total])
    return plot.image


def information_bars(
    title: str, series: Sequence[Series], spent: Sequence[float | None], limits: Sequence[tuple[str, float]]
) -> "Markup":
    """Information, and beside it the KL from N(0, I), both in nats.

    Args:
        title: of the plot.
        series: information and KL of every coupling.
        spent: ``log k - 1 + 1/k`` of KNN: a black mark.
        limits: dashed lines, with what they mean.
    """
    rows = [row for row in zip(series, spent, strict=True) if row[0].means[0].is_known][::-1]
    with new_plot(title, width=WIDE, height=1.7 + 0.42 * len(rows)) as plot:
        axes = plot.axes
        for y, (one, mark) in enumerate(rows):
            information = max(one.means[0].value, 0)
            kl = max(one.means[1].value, 0) if one.means[1].is_known else 0
            bar: dict[str, Any] = {"color": one.style.color, "height": 0.62, "linewidth": 0}
            axes.barh(y, information, **bar)
            axes.barh(y, kl, left=information, alpha=0.3, **bar)
            if mark is not None:
                axes.plot([mark] * 2, [y - 0.42, y + 0.42], color="#222222", linewidth=2)
            _write(axes, information + kl, y, str(one.means[0]))
        for i, (meaning, value) in enumerate(limits):
            axes.axvline(value, color=GRAY, linewidth=1.2, linestyle=(0, (3, 2)))
            _write(axes, value, len(rows) - 0.3 + 0.4 * i, meaning, left=True)
        _label_rows(axes, [one for one, _ in rows], "nats")
        axes.set_ylim(-0.6, len(rows) - 0.4 + 0.45 * len(limits))
        axes.set_xlim(0, max([v for _, v in limits] + [axes.get_xlim()[1], 0.1]) * 1.08)
    return plot.image


def _write(axes: Any, x: float, y: float, text: str, left: bool = False) -> None:
    place = {"va": "center", "textcoords": "offset points", "bbox": _CLEAR, "fontsize": 9.5}
    place |= {"ha": "right" if left else "left", "parse_math": False}
    axes.annotate(text, (x, y), (-4 if left else 6, 0), **place)


def _label_rows(axes: Any, series: Sequence[Series], below: str) -> None:
    labels = [one.label for one in series]  # both ends of a long one tell couplings apart
    labels = [name if len(name) <= 30 else f"{name[:17]}…{name[-12:]}" for name in labels]
    axes.set_yticks(range(len(labels)), labels, parse_math=False)
    axes.set_ylim(-0.6, max(len(series), 1) - 0.4)
    axes.set_xlabel(below, parse_math=False)
    axes.grid(axis="x")
