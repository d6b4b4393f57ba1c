"""Plots of a comparison, each with its legend; a coupling looks the same in all of them."""

import math
from collections.abc import Hashable, Mapping
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeVar

from immiscible_diffusion.reporting import plotting
from immiscible_diffusion.reporting.compare.records import Comparison
from immiscible_diffusion.reporting.compare.tables import final_points, new_frame, over_seeds, trained_couplings
from immiscible_diffusion.utils.statistics import CONFIDENCE, SMALLEST, Interval, holm, ratio_interval, ratio_p_value

if TYPE_CHECKING:
    from markupsafe import Markup
    from pandas import DataFrame

Key = TypeVar("Key", bound=Hashable)


def styles_of(comparison: Comparison) -> dict[str, plotting.LineStyle]:
    """The style of each coupling; a control has its coupling's color."""
    plain = [e.name for e in comparison.couplings if e.control_of is None and not e.baseline]
    styles = plotting.line_styles(plain) | {comparison.baseline.name: plotting.LineStyle(plotting.BASELINE, "o")}
    for entry in comparison.couplings:
        if entry.control_of is not None:
            of = styles.get(entry.control_of, plotting.LineStyle(plotting.BASELINE, "o"))
            styles[entry.name] = plotting.LineStyle(of.color, of.marker, control=True)
    return styles


def metric_by_step(comparison: Comparison, name: str, sampling_steps: int, metric: str = "value") -> "DataFrame":
    """A metric by training step: geometric mean, smallest and largest over the longest runs."""
    runs = [
        {m.step: value for m in trial.metrics if m.sampling_steps == sampling_steps and (value := getattr(m, metric))}
        for trial in comparison.trials_of(name)
    ]
    return over_seeds(runs, geometric=True)


def metric_plots(comparison: Comparison) -> list["Markup"]:
    """The metric by training step for every number of sampling steps, by that number, and the legend of all."""
    by_step = [metric_against_steps(comparison, s, legend=False) for s in comparison.sampling_steps]
    return [*by_step, metric_against_sampling_steps(comparison, legend=False), legend(comparison)]


def legend(comparison: Comparison) -> "Markup":
    """The legend of plots that have none of their own."""
    with plotting.new_plot("Legend", height=0.7 + 0.22 * len(comparison.couplings), legend=False) as plot:
        _draw_lines(plot.axes, comparison, {e.name: over_seeds([{1: 1.0}]) for e in comparison.couplings})
        _draw_floor(plot.axes, comparison)
        plotting.legend_alone(plot.axes)
    return plot.image


def metric_against_steps(comparison: Comparison, sampling_steps: int, *, legend: bool = True) -> "Markup":
    """The metric against training steps, both logarithmic."""
    headline = ", headline" if sampling_steps == comparison.headline_steps else ""
    names = [entry.name for entry in comparison.couplings]
    lines = {name: metric_by_step(comparison, name, sampling_steps) for name in names}
    with plotting.new_plot(comparison.steps_text(sampling_steps) + headline, legend=legend) as plot:
        _draw_lines(plot.axes, comparison, lines)
        _draw_floor(plot.axes, comparison)
        plotting.log_x(plot.axes, comparison.eval_steps)
        plotting.log_y(plot.axes)
        plot.axes.set(xlabel="training steps", ylabel=f"{comparison.metric} (lower is better)")
    return plot.image


def metric_against_sampling_steps(comparison: Comparison, metric: str = "value", *, legend: bool = True) -> "Markup":
    """A metric at the last training step against the number of sampling steps."""
    sampling_steps, lines = sorted(comparison.sampling_steps), {}
    for entry in comparison.couplings:
        frames = {s: metric_by_step(comparison, entry.name, s, metric) for s in sampling_steps}
        lines[entry.name] = new_frame(f.iloc[-1].rename(s) for s, f in frames.items() if len(f))
    title = "At the end of training" + (f", in {metric}" if metric != "value" else "")
    with plotting.new_plot(title, legend=legend) as plot:
        _draw_lines(plot.axes, comparison, lines)
        if metric == "value":
            _draw_floor(plot.axes, comparison)
        plotting.log_x(plot.axes, sampling_steps)
        plotting.log_y(plot.axes)
        label = f"{comparison.sampler_name} steps of the sampler"
        plot.axes.set(xlabel=label, ylabel=comparison.metric)
    return plot.image


def heat_maps(comparison: Comparison) -> list["Markup"]:
    """For every coupling its metric over the baseline's at each training step and number of sampling steps."""
    ratios = {e.label: ratios_to_baseline(comparison, e.name) for e in comparison.couplings if not e.baseline}
    logs = [abs(math.log(max(r.value, SMALLEST))) for every in ratios.values() for r in every.values()]
    scale = min(max([0.1, *logs]), math.log(4))
    return [_heat_map(comparison, label, every, scale) for label, every in ratios.items() if every]


def ratios_to_baseline(comparison: Comparison, name: str) -> dict[tuple[int, int], Interval]:
    """The metric over the baseline's, paired by seed, by training step and sampling steps."""
    values: dict[str, dict[tuple[int, int], dict[int, float]]] = {name: {}, comparison.baseline.name: {}}
    for trial in (t for n in values for t in comparison.trials_of(n)):
        for m in trial.metrics:
            if m.value is not None:
                values[trial.coupling].setdefault((m.step, m.sampling_steps), {})[trial.seed] = m.value
    base = values[comparison.baseline.name]
    pairs = {place: (found, base.get(place, {})) for place, found in values[name].items()}
    return {place: ratio_interval(*pair) for place, pair in pairs.items() if set(pair[0]) & set(pair[1])}


def _heat_map(comparison: Comparison, label: str, ratios: dict[tuple[int, int], Interval], scale: float) -> "Markup":
    with plotting.new_plot(label, height=1.2 + 0.55 * len(comparison.sampling_steps)) as plot:
        draw_heat_map(plot.axes, comparison, ratios, scale)
    return plot.image


def draw_heat_map(axes: Any, comparison: Comparison, ratios: Mapping[tuple[int, int], Interval], scale: float) -> None:
    """Blue is better than the baseline, red worse; numbers as of ``text_styles``."""
    styles = text_styles(ratios)
    steps, sampling_steps = sorted({step for step, _ in ratios}), sorted(comparison.sampling_steps)
    for (step, n), ratio in ratios.items():
        x, y, log = steps.index(step), sampling_steps.index(n), math.log(max(ratio.value, SMALLEST))
        plotting.tile(axes, x, y, -log / scale)
        text = f"{ratio.value:.2f}" if ratio.value < 10 else f"{ratio.value:.0f}"
        axes.text(x, y, text, ha="center", va="center", fontsize=min(11, 58 / len(steps)), **styles[step, n])
    axes.set_xticks(range(len(steps)), [plotting.thousands(step) for step in steps])
    axes.set_yticks(range(len(sampling_steps)), [str(n) for n in sampling_steps])
    axes.set(xlim=(-0.5, len(steps) - 0.5), ylim=(-0.5, len(sampling_steps) - 0.5))
    axes.set(xlabel="training steps", ylabel=f"{comparison.sampler_name} steps")


def text_styles(ratios: Mapping[Key, Interval]) -> dict[Key, dict[str, str]]:
    """How each ratio is written: bold if it is not 1 after Holm's correction for all, gray if its interval holds 1."""
    tests = {key: p for key, ratio in ratios.items() if (p := ratio_p_value(ratio)) is not None}
    corrected = dict(zip(tests, holm([*tests.values()]), strict=True))
    weights = {key: "bold" if corrected.get(key, 1) <= 1 - CONFIDENCE else "normal" for key in ratios}
    colors = {key: plotting.BASELINE if ratio.excludes(1) else "#6b6b6b" for key, ratio in ratios.items()}
    return {key: {"fontweight": weights[key], "color": colors[key]} for key in ratios}


def guidance_plots(comparison: Comparison) -> list["Markup"]:
    """The metric against the guidance weight after the last training step, for every number of sampling steps."""
    swept = [v for v in comparison.variants if v.option == "guidance"]
    images = []
    for steps in [s for s in comparison.sampling_steps if any(v.sampling_steps == s for v in swept)]:
        runs: dict[str, dict[int, dict[float, float]]] = {entry.name: {} for entry in comparison.couplings}
        for v in (v for v in swept if v.sampling_steps == steps and v.coupling in runs):
            runs[v.coupling].setdefault(v.seed, {})[v.setting] = v.frechet
        with plotting.new_plot(f"Guidance, {comparison.steps_text(steps)}") as plot:
            lines = {name: over_seeds(seeds.values(), geometric=True) for name, seeds in runs.items()}
            _draw_lines(plot.axes, comparison, lines)
            plotting.log_y(plot.axes)
            plot.axes.set(xlabel="guidance weight", ylabel=comparison.metric)
        images.append(plot.image)
    return images


def losses_against_steps(comparison: Comparison, kind: str) -> "Markup":
    """``kind`` ('validation' or 'training') loss against steps; couplings are not comparable."""
    noise = {"validation": "independent noise", "training": "the paired noise"}
    if kind not in noise:
        raise ValueError(f"kind is {kind!r}; expected 'validation' or 'training'")
    lines = {
        entry.name: over_seeds(
            {p.step: p.loss for p in getattr(trial, kind) if p.loss is not None and p.step}
            for trial in comparison.trials_of(entry.name)
        )
        for entry in comparison.couplings
    }
    with plotting.new_plot(f"{kind.capitalize()} loss on {noise[kind]}") as plot:
        _draw_lines(plot.axes, comparison, lines)
        plotting.log_x(plot.axes, comparison.eval_steps)
        if steps := [step for frame in lines.values() for step in frame.index]:
            plot.axes.set_xlim(min(steps) / 1.08, max(steps) * 1.08)
        plot.axes.set(xlabel="training steps (not comparable between couplings)", ylabel="loss")
    return plot.image


def pairing_cost(comparison: Comparison) -> "Markup":
    """Time of a training step by coupling; the dark part waits for pairing; dots are seeds."""
    rows = []
    for entry in comparison.couplings[::-1]:
        trials = [t for t in comparison.trials_of(entry.name) if t.seconds_per_step is not None]
        if trials:
            shares = [trial.pairing_share or 0.0 for trial in trials]
            rows.append((entry, [1000 * (t.seconds_per_step or 0) for t in trials], fmean(shares)))
    with plotting.new_plot("Time of a training step", height=0.9 + 0.42 * len(rows)) as plot:
        for row, (entry, times, share) in enumerate(rows):
            total, color = fmean(times), styles_of(comparison)[entry.name].color
            plot.axes.barh(row, total, height=0.62, color=color, alpha=0.25, linewidth=0)
            plot.axes.barh(row, share * total, height=0.62, color=color, linewidth=0)
            plot.axes.plot(times, [row] * len(times), "o", color=color, markersize=3.5)
            place = {"textcoords": "offset points", "va": "center"}
            plot.axes.annotate(f"{total:.3g} ms", (max(times), row), (6, 0), **place)
        labels = [plotting.short(entry.label) for entry, *_ in rows]
        plot.axes.set_yticks(range(len(rows)), labels, parse_math=False)
        plot.axes.set(xlabel="milliseconds per step", xlim=(0, plot.axes.get_xlim()[1] * 1.18))
        plot.axes.grid(axis="x")
    return plot.image


def excess_by_level(comparison: Comparison) -> "Markup":
    """Excess loss against t at the last step, with two standard errors of the noisy images."""
    levels = comparison.excess.levels if comparison.excess else ()
    with plotting.new_plot("Excess loss by t at the last step") as plot:
        lines, errors = {}, [0.5]
        for name in trained_couplings(comparison):
            points = final_points(comparison, name)
            lines[name] = over_seeds(dict(zip(levels, p.excess, strict=True)) for p in points)
            bars = [2 * fmean(column) for column in zip(*(p.error for p in points), strict=True)]
            errors += [2 * error for point in points for error in point.error if error > 0]
            if points:
                mean, color = lines[name]["mean"], styles_of(comparison)[name].color
                plot.axes.errorbar(mean.index, mean, bars, fmt="none", ecolor=color, elinewidth=1)
        _draw_lines(plot.axes, comparison, lines)
        _signed_log_y(plot.axes, min(errors))
        plot.axes.set(xlabel="t (0 = data, 1 = noise)", ylabel="excess loss per dimension")
    return plot.image


def excess_against_steps(comparison: Comparison) -> "Markup":
    """Mean excess loss over t against training steps."""
    with plotting.new_plot("Excess loss, mean over t") as plot:
        lines = {
            name: over_seeds({p.step: p.mean for p in t.excess} for t in comparison.trials_of(name))
            for name in trained_couplings(comparison)
        }
        _draw_lines(plot.axes, comparison, lines)
        plotting.log_x(plot.axes, comparison.eval_steps)
        if all(frame.low.min() > 0 for frame in lines.values() if len(frame)):
            plotting.log_y(plot.axes)
        plot.axes.set(xlabel="training steps", ylabel="excess loss per dimension")
    return plot.image


def _draw_lines(axes: Any, comparison: Comparison, lines: Mapping[str, "DataFrame"]) -> None:
    """A line with its band for each coupling that has values, controls below."""
    styles = styles_of(comparison)
    for name, frame in lines.items():
        if not len(frame):
            continue
        style, label = styles[name], comparison.entry(name).label
        order, alpha = (2.0, 0.08) if style.control else (2.1, 0.18)
        axes.plot(frame.index, frame["mean"], label=label, zorder=order, **style.options)
        band = {"color": style.color, "alpha": alpha, "linewidth": 0}
        axes.fill_between(frame.index, frame.low, frame.high, **band)
    axes.grid(True)


def _draw_floor(axes: Any, comparison: Comparison) -> None:
    """The floor as a band; where it is far below, the axis does not reach for it."""
    if comparison.floor is None:
        return
    low, high = max(comparison.floor.low, SMALLEST), comparison.floor.high
    values = [y for line in axes.get_lines() for y in line.get_ydata() if y > 0]
    axes.axhspan(low, high, color=plotting.GRAY, alpha=0.22, linewidth=0, zorder=0, label="floor")
    if values:
        least = min(values)
        axes.set_ylim(min(least, max(low, least / 3) if high > least / 3 else least) / 1.2, max(*values, high) * 1.15)


def _signed_log_y(axes: Any, linear: float) -> None:
    """A vertical axis that is logarithmic on both sides of 0, linear within ``linear`` of it."""
    from matplotlib.ticker import FuncFormatter, NullLocator, SymmetricalLogLocator

    axes.set_yscale("symlog", linthresh=linear)
    axes.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=linear, subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.axhline(0, color="#666666", linewidth=1)
