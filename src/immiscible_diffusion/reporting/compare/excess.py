"""Excess loss on the page: loss less irreducible loss, which may be compared across couplings."""

from collections.abc import Callable, Sequence
from html import escape
from statistics import fmean
from typing import Any

from immiscible_diffusion.reporting.compare.findings import number
from immiscible_diffusion.reporting.compare.plots import _lines, _log_axes, looks
from immiscible_diffusion.reporting.compare.results import (
    Comparison,
    Excess,
    ExcessPoint,
    Irreducible,
)
from immiscible_diffusion.reporting.compare.series import Series
from immiscible_diffusion.reporting.compare.tables import Table
from immiscible_diffusion.reporting.elements import panel, table
from immiscible_diffusion.reporting.plotting import svg_panel

COMPARABLE = (
    "Excess loss is loss minus irreducible loss, and the one loss that may be compared across "
    "couplings."
)
BELOW = 4.0
"""So many standard errors below 0 are taken for a fault: there are many levels and couplings."""


def excess_section(comparison: Comparison, legend: str, note: str) -> str:
    """The section as HTML; empty where no irreducible loss was asked for."""
    basis = comparison.excess
    if basis is None:
        return ""
    parts = [f"<h2>Excess loss</h2>\n<p><b>{escape(COMPARABLE)}</b> {escape(_meaning(basis))}</p>"]
    if any(final_points(comparison, entry.name) for entry in comparison.couplings):
        drawn = panel(excess_by_time(comparison)) + panel(excess_against_steps(comparison))
        parts += [
            f'<figure>{legend}<div class="panels two">{drawn}</div>'
            f"<figcaption>{escape(f'{_caption(basis)} {note}'.strip())}</figcaption></figure>",
            table(excess_table(comparison), comparison),
        ]
    parts += [f'<p class="note">{escape(line)}</p>' for line in remarks(comparison)]
    return "\n".join(parts)


def _meaning(basis: Excess) -> str:
    given = f" given {basis.given}" if basis.given else ""
    return (
        f"A pairing makes the task itself easier, so its loss is lower whether or not the network "
        f"learns better; the irreducible loss is what the best possible network{given} would still "
        f"lose on these {basis.images:,} training images, and the rest is the network's own. "
        f"At 0 a network would know every training image by heart. At small t, where the noise "
        f"hides little, excess loss is mostly that it does not, which a network that is to make "
        f"new images need not; at large t it is that the network does not yet know the data as a "
        f"whole. Noise is fresh, so no network is below 0 but by chance; to know the noises of its "
        f"training by heart would not help it."
    )


def _caption(basis: Excess) -> str:
    return (
        f"Squared error per dimension of the averaged weights on {basis.probes:,} training images "
        f"with fresh paired noise, the same images and times t for every coupling, whatever times "
        f"are trained at; not weighted. From the loss on each noisy image that of the optimal "
        f"denoiser on the same image is taken off. Left: at the last step, by t; bars: two "
        f"standard errors. Right: mean over t. Bands: smallest to largest seed."
    )


def shown(comparison: Comparison) -> list[str]:
    """The couplings to draw: a matched start of another coupling is the same training."""
    names = [entry.name for entry in comparison.couplings]
    return [name for name in names if name.removeprefix("matched:") not in set(names) - {name}]


def final_points(comparison: Comparison, name: str) -> list[ExcessPoint]:
    """The points of ``name`` at the last step that any of its seeds reached."""
    points = [point for cell in comparison.cells_of(name) for point in cell.excess]
    last = max((point.step for point in points), default=0)
    return [point for point in points if point.step == last]


def excess_by_time(comparison: Comparison) -> str:
    """Excess loss against t at the last step, with two standard errors of the noisy images."""
    assert comparison.excess is not None
    levels = comparison.excess.levels
    with svg_panel("excess-time", "Excess loss by t at the last step") as (axes, output):
        found: dict[str, Series | None] = {}
        for name in shown(comparison):
            points = final_points(comparison, name)
            found[name] = _series(levels, [list(point.excess) for point in points])
            if points:
                errors = _columns(lambda column: 2 * fmean(column), [p.error for p in points])
                _bars(axes, found[name], errors, looks(comparison)[name].color)
        _lines(axes, comparison, found)
        _signed_log(axes, comparison)
        axes.set(xlabel="t (0 = data, 1 = noise)", ylabel="excess loss per dimension")
        axes.grid(True)
        axes.set_axisbelow(True)
    return output[0]


def excess_against_steps(comparison: Comparison) -> str:
    """Mean excess loss over t against training steps."""
    with svg_panel("excess-steps", "Excess loss, mean over t") as (axes, output):
        found = {name: _steps_series(comparison, name) for name in shown(comparison)}
        _lines(axes, comparison, found)
        drawn = [series for series in found.values() if series is not None]
        above = all(min(series.low) > 0 for series in drawn)
        _log_axes(axes, list(comparison.eval_steps), y=above)
        axes.set(xlabel="training steps", ylabel="excess loss per dimension")
    return output[0]


def _steps_series(comparison: Comparison, name: str) -> Series | None:
    runs = [{p.step: p.mean for p in cell.excess} for cell in comparison.cells_of(name)]
    runs = [run for run in runs if run]
    last = max((max(run) for run in runs), default=0)
    runs = [run for run in runs if max(run) == last]
    steps = sorted(set.intersection(*map(set, runs))) if runs else []
    return _series(steps, [[run[step] for step in steps] for run in runs])


def _series(x: Any, runs: list[list[float]]) -> Series | None:
    if not runs:
        return None
    mean, low, high = (_columns(of, runs) for of in (fmean, min, max))
    return Series(tuple(x), tuple(mean), tuple(low), tuple(high), tuple(range(len(runs))))


def _signed_log(axes: Any, comparison: Comparison) -> None:
    """A vertical axis that is logarithmic on both sides of 0, linear within two standard errors."""
    from matplotlib.ticker import FuncFormatter, NullLocator, SymmetricalLogLocator

    points = [p for e in comparison.couplings for p in final_points(comparison, e.name)]
    errors = [error for point in points for error in point.error if error > 0]
    within = 2 * min(errors, default=0.5)
    axes.set_yscale("symlog", linthresh=within)
    axes.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=within, subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.axhline(0, color="#666666", linewidth=1)


def _columns(
    of: Callable[[Sequence[float]], float], rows: Sequence[Sequence[float]]
) -> list[float]:
    return [of(column) for column in zip(*rows, strict=True)]


def _bars(axes: Any, series: Series | None, errors: list[float], color: str) -> None:
    if series is not None:
        axes.errorbar(series.x, series.mean, errors, fmt="none", ecolor=color, elinewidth=1)


def excess_table(comparison: Comparison) -> Table:
    """Means over t at the last step: loss, irreducible loss, excess loss."""
    basis = comparison.excess
    assert basis is not None
    known = {entry.coupling: entry for entry in basis.couplings if not entry.skipped}
    header = ["Coupling", "Loss", "Irreducible loss", "Excess loss, mean over t", "Step"]
    rows = []
    for name in shown(comparison):
        points, base = final_points(comparison, name), known.get(name.removeprefix("matched:"))
        if not points or base is None:
            continue
        count = basis.averaged
        loss = fmean(fmean(point.loss[:count]) for point in points)
        mean, error = (fmean(getattr(p, n) for p in points) for n in ("mean", "mean_error"))
        mark = " (estimated)" if base.estimate else ""
        floor = f"{number(fmean(base.reached[:count]))}{mark}"
        excess = f"{number(mean)} ± {number(error)}"
        label = comparison.entry(name).label
        rows.append([label, number(loss), floor, excess, f"{points[0].step:,}"])
    return header, rows


def remarks(comparison: Comparison) -> list[str]:
    """What is estimated, what is left out and why, and what is below 0, in sentences."""
    basis = comparison.excess
    assert basis is not None
    lines = []
    for entry in basis.couplings:
        if entry.skipped:
            lines.append(f"{entry.coupling}: no irreducible loss; {entry.skipped}.")
        elif entry.estimate:
            lines.append(
                f"{entry.coupling} has no density in closed form: its optimal denoiser is "
                f"{entry.estimate}. It may lose more than the best possible one, and then the "
                f"true excess loss is higher than shown."
            )
        if low := _below(comparison, entry):
            lines.append(low)
    return lines


def _below(comparison: Comparison, entry: Irreducible) -> str:
    """A sentence where the excess loss of a coupling is below 0 beyond its error."""
    assert comparison.excess is not None
    where = [
        t
        for point in final_points(comparison, entry.coupling)
        for t, value, error in zip(comparison.excess.levels, point.excess, point.error, strict=True)
        if value < -BELOW * error
    ]
    if not where:
        return ""
    times = ", ".join(f"{t:g}" for t in sorted(set(where)))
    cause = (
        "the estimate of its density falls short there"
        if entry.estimate
        else "that cannot be: the loss or the density of this coupling is at fault"
    )
    return (
        f"{entry.coupling}: below 0 by more than {BELOW:g} standard errors at t = {times}; {cause}."
    )
