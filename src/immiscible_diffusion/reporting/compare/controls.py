"""Is a gain pairing's? What controls gain without it, every coupling at its own best setting, two metrics."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import geometric_mean
from typing import TYPE_CHECKING

from immiscible_diffusion.reporting.compare.records import Comparison, CouplingEntry
from immiscible_diffusion.reporting.compare.speedup import common_seeds, share_of_control
from immiscible_diffusion.reporting.compare.tables import (
    figure,
    interval_text,
    listed,
    ratio_figure,
    ratio_kind,
    share_text,
    steps_frame,
    sub_label,
)
from immiscible_diffusion.reporting.html import number
from immiscible_diffusion.utils.statistics import SMALLEST, Interval, ratio_interval

if TYPE_CHECKING:
    from pandas import DataFrame

SAMPLER_CONTROLS = ("init_scale", "shift", "prune")  # what the sampler can do for a baseline without retraining


@dataclass(frozen=True)
class Setting:
    """Last values of a coupling by seed, with an option of the sampler at ``value``; None: as the recipe has it."""

    label: str
    values: Mapping[int, float]
    option: str = ""
    value: float | None = None

    def __str__(self) -> str:
        """'independent with shift 3'."""
        return self.label if self.value is None else f"{self.label} with {self.option} {self.value:g}"

    @property
    def mean(self) -> float:
        """Geometric mean over seeds."""
        return geometric_mean([max(value, SMALLEST) for value in self.values.values()])

    def against(self, other: "Setting | None") -> Interval | None:
        """The ratio of the values to those of ``other``, paired by seed; None without a seed in common."""
        if other is None or not set(self.values) & set(other.values):
            return None
        return ratio_interval(self.values, other.values)


def at_end(comparison: Comparison, name: str, sampling_steps: int, metric: str = "value") -> Setting | None:
    """The values at the last training step, over the seeds that got there; None if there are none.

    Not the best so far, as savings have them: other options of the sampler have the last weights alone.
    """
    horizon, seeds = common_seeds(comparison, (name,), sampling_steps)
    values = {
        trial.seed: float(getattr(m, metric))
        for trial in comparison.trials_of(name)
        for m in trial.metrics
        if trial.seed in seeds and (m.step, m.sampling_steps) == (horizon, sampling_steps)
        if getattr(m, metric) is not None
    }
    return Setting(comparison.entry(name).label, values) if values else None


def best_setting(comparison: Comparison, name: str, sampling_steps: int, option: str = "") -> Setting | None:
    """The setting of ``option`` with the lowest mean over seeds, that of the recipe included; None if none was run."""
    plain, tried = at_end(comparison, name, sampling_steps), defaultdict[float, dict[int, float]](dict)
    if plain is None or not option:
        return plain
    for v in comparison.variants:
        if (v.coupling, v.sampling_steps, v.option) == (name, sampling_steps, option):
            tried[v.setting][v.seed] = v.frechet
    seeds = set(plain.values).intersection(*tried.values()) if tried else set()
    settings = [
        Setting(plain.label, {seed: values[seed] for seed in sorted(seeds)}, option, value)
        for value, values in [(None, plain.values), *sorted(tried.items())]
    ]
    return min(settings, key=lambda setting: setting.mean) if seeds else None


def options_of(comparison: Comparison) -> list[str]:
    """The sampling controls that were run, in the order of ``SAMPLER_CONTROLS``."""
    return [option for option in SAMPLER_CONTROLS if any(v.option == option for v in comparison.variants)]


def share_table(comparison: Comparison) -> "DataFrame":
    """What the shuffled controls keep of each gain; empty without a control."""
    rows = []
    for entry in comparison.treated:
        kept = [share_of_control(comparison, entry.name, steps) for steps in comparison.sampling_steps]
        if comparison.control(entry.name):
            texts = (figure(share_text(k.share), " → ".join(map(number, k.finals))) if k else "-" for k in kept)
            rows.append((entry.label, *texts))
    return steps_frame(comparison, rows)


def sampling_table(comparison: Comparison) -> "DataFrame":
    """The baseline's best sampling controls beside the couplings, and these with their own best grid; else empty."""
    options, rows = options_of(comparison), []
    for entry in (comparison.baseline, *(e for e in comparison.couplings if not e.baseline)) if options else ():
        rows.append(_row(comparison, entry.name, "", "", entry.label))
        for option in options if entry.baseline else [o for o in options if o == "shift"]:
            reference = "" if entry.baseline else option
            rows.append(_row(comparison, entry.name, option, reference, sub_label(f"best {option}")))
    return steps_frame(comparison, [row for row in rows if any(text != "-" for text in row[1:])])


def guidance_table(comparison: Comparison) -> "DataFrame":
    """The best guidance weight of every coupling by number of sampling steps; empty without a sweep."""
    rows = [_row(comparison, e.name, "guidance", "guidance", e.label) for e in comparison.couplings]
    return steps_frame(comparison, [row for row in rows if any(text != "-" for text in row[1:])])


def _row(comparison: Comparison, name: str, option: str, reference: str, label: str) -> tuple[str, ...]:
    """The best values of ``option``, each with its ratio to the baseline's at its own best ``reference``."""
    base, texts = comparison.baseline.name, []
    for steps in comparison.sampling_steps:
        one = best_setting(comparison, name, steps, option)
        other = best_setting(comparison, base, steps, reference)
        if one is None:
            texts.append("-")
            continue
        where = "" if not option else f"at {one.value:g}" if one.value is not None else "as it is"
        ratio = None if (name, option) == (base, reference) or other is None else one.against(other)
        times = f"ratio {interval_text(ratio)}" if ratio and other and one.values != other.values else ""
        pixels = _pixels(comparison, name, steps, one)
        texts.append(figure(number(one.mean), where, times, pixels, kind=ratio_kind(ratio)))
    return label, *texts


def _pixels(comparison: Comparison, name: str, steps: int, setting: Setting) -> str:
    """'pixels 1.20': the mean distance of pixels at the setting, if it was measured."""
    plain = at_end(comparison, name, steps, "pixels")
    values = {s: v for s, v in plain.values.items() if s in setting.values} if plain else {}
    if setting.value is not None:
        which = (name, steps, setting.option, setting.value)
        found = [v for v in comparison.variants if (v.coupling, v.sampling_steps, v.option, v.setting) == which]
        values = {v.seed: v.pixels for v in found if v.seed in setting.values and v.pixels is not None}
    return f"pixels {number(replace(setting, values=values).mean)}" if values else ""


def remarks(comparison: Comparison, only: CouplingEntry | None = None) -> list[str]:
    """Which controls' gains at the end of training those of each coupling, or ``only`` one, exceed, in sentences."""
    lines = []
    for entry in comparison.treated if only is None else (only,):
        alone, shared, unshuffled = defaultdict[tuple[str, ...], list[str]](list), [], []
        for steps in comparison.sampling_steps:
            one, base = (at_end(comparison, name, steps) for name in (entry.name, comparison.baseline.name))
            ratio = one.against(base) if one else None
            if one is None or base is None or ratio is None or not ratio.high < 1:
                continue
            held, ties = [], {}
            for name, rival in _rivals(comparison, entry.name, steps).items():
                own = best_setting(comparison, entry.name, steps, rival.option) or one  # re-tuned as the baseline is
                if (tie := own.against(rival)) is None:
                    continue  # no seed in common
                held.append(name)
                if rival.mean < base.mean and tie.high >= 1:
                    ties[str(rival)] = 1 / tie.value
            control = comparison.control(entry.name)
            if not entry.preserves_marginal and (control is None or control.label not in held):
                unshuffled.append(str(steps))
            if ties:
                label = min(ties, key=ties.__getitem__)
                shared.append(f"{steps} ({label}: {number(ties[label])} times its distance)")
            else:
                alone[tuple(held)].append(str(steps))
        if not alone and not shared:
            continue
        if set(alone) == {()} and not shared:
            if entry.preserves_marginal:
                same = f"its noise is N(0, I), so a shuffled control would be {comparison.baseline.label}"
                lines.append(f"{entry.label}: {same}; no other control was run.")
            else:
                lines.append(f"{entry.label}: no control was run, so how much of its gain is pairing is not known.")
            continue
        parts = [
            f"{f'more than that of {listed(names)}' if names else 'held against no control'} "
            f"with {listed(numbers)} sampling steps"
            for names, numbers in alone.items()
        ]
        parts += [f"not resolved from a control's with {listed(shared)}"] if shared else []
        rule = " A gain that a control has too is not called pairing's." if shared else ""
        if unshuffled:
            rule += (
                f" There is no shuffled control with {listed(unshuffled)}: what its noise alone gains is not known."
            )
        metric = f"{comparison.metric} at the end of training"
        lines.append(f"{entry.label}: the gain in {metric} is {', '.join(parts)}.{rule}")
    return lines


def _rivals(comparison: Comparison, name: str, steps: int) -> dict[str, Setting]:
    """The shuffled control, and the baseline at the best setting of each sampling control, by name."""
    control, base = comparison.control(name), comparison.baseline
    found = {control.label: at_end(comparison, control.name, steps)} if control else {}
    for option in options_of(comparison):
        found[f"{base.label} with its best {option}"] = best_setting(comparison, base.name, steps, option)
    return {label: setting for label, setting in found.items() if setting}


def has_pixels(comparison: Comparison) -> bool:
    """Whether the distance of the pixels was measured too."""
    return any(m.pixels is not None for trial in comparison.trials for m in trial.metrics)


def metric_ratios(comparison: Comparison) -> dict[tuple[str, int], list[Interval | None]]:
    """Ratios to the baseline at the end of training by coupling and sampling steps: of features, of pixels."""
    base = comparison.baseline.name
    pairs: dict[tuple[str, int], list[Interval | None]] = {}
    for entry in comparison.couplings:
        for steps in comparison.sampling_steps if not entry.baseline else ():
            settings = [[at_end(comparison, n, steps, m) for n in (entry.name, base)] for m in ("value", "pixels")]
            pairs[entry.name, steps] = [one.against(other) if one else None for one, other in settings]
    return pairs


def two_metrics_table(comparison: Comparison) -> "DataFrame":
    """Ratios to the baseline at the end of training in features, below them those in pixels."""
    ratios, rows = metric_ratios(comparison), []
    for entry in comparison.couplings:
        for i, label in enumerate((entry.label, sub_label("in pixels"))) if not entry.baseline else ():
            found = [ratios[entry.name, steps][i] for steps in comparison.sampling_steps]
            rows.append((label, *(ratio_figure(ratio) for ratio in found)))
    return steps_frame(comparison, rows)


def disagreements(comparison: Comparison, only: CouplingEntry | None = None) -> list[str]:
    """Where features and pixels point to different sides of 1 and an interval of either excludes 1, in sentences."""
    lines = []
    for (name, steps), (features, pixels) in metric_ratios(comparison).items():
        if only is not None and name != only.name:
            continue
        if features is None or pixels is None or (features.value - 1) * (pixels.value - 1) >= 0:
            continue
        clear = [word for word, ratio in (("features", features), ("pixels", pixels)) if ratio.excludes(1)]
        if clear:
            label, pair = comparison.entry(name).label, [number(ratio.value) for ratio in (features, pixels)]
            lines.append(
                f"{label} with {comparison.steps_text(steps)}: the metrics disagree, {pair[0]} times the baseline's "
                f"distance in features and {pair[1]} times in pixels; resolved in {' and in '.join(clear)}."
            )
    return lines
