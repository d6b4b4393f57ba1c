"""The section on what pairing does to the law of the noise."""

import math
from html import escape
from typing import Any

from immiscible_diffusion.analysis.estimates import Mean
from immiscible_diffusion.reporting.analysis.plots import (
    Axis,
    Line,
    Row,
    by_class,
    by_direction,
    rows_of_points,
)
from immiscible_diffusion.reporting.analysis.sentences import impossible
from immiscible_diffusion.reporting.analysis.values import (
    Analysis,
    Coupling,
    count,
    figure,
    known,
    mean,
    plus_minus,
    real,
    reals,
    record,
    text,
)
from immiscible_diffusion.reporting.elements import legend, panel, plain_table
from immiscible_diffusion.reporting.plotting import look_key

_CLASSES = 40  # classes in a plot, and rows of a table
_INTRODUCTION = (
    "Without pairing noise is N(0, I) and knows nothing of the data. What pairing tells of the "
    "sample (alignment) is wanted. What it does to all noise together is not: samplers start from "
    "N(0, I), so where the noise has another length, a mean, or another variance along the "
    "directions in which the data vary, they start beside what was trained, unless they start "
    "from the law of the paired noise or the coupling is calibrated."
)
_MEASURES = {
    "square": ("Length of the noise", "|n|² / D (1 for N(0, I))", 1.0),
    "shift_square": ("Shift of its mean", "|mean of n|², variances (0 for N(0, I))", 0.0),
    "alignment": ("Alignment with the sample", "standard deviations (0 without pairing)", 0.0),
    "kl": ("Distance from N(0, I)", "KL, nats (0 for N(0, I))", 0.0),
}
_CAPTION = (
    "Bars: two standard errors. Length, mean and variances are of the noise over the whole data "
    "set; the mean's length is free of sampling bias, so it may come out below 0. Alignment: the "
    "mean product of the noise with the direction of the sample less the mean of the data."
)


def noise(analysis: Analysis) -> str:
    """The section."""
    if not any(c.noise for c in analysis.couplings):
        return ""
    keys = [(look_key(c.look), c.label) for c in analysis.couplings]
    drawn = "".join(map(panel, _plots(analysis)))
    parts = [
        "<h2>What is distorted: the law of the noise</h2>",
        f"<p>{escape(_INTRODUCTION)}</p>",
        f'<figure>{legend(keys)}<div class="panels two">{drawn}</div>'
        f"<figcaption>{escape(_CAPTION)}</figcaption></figure>",
        plain_table(_table(analysis)),
        *(f'<p class="note">{escape(line)}</p>' for line in _remarks(analysis)),
        _directions(analysis),
        _per_class(analysis),
    ]
    return "\n".join(part for part in parts if part)


def _plots(analysis: Analysis) -> list[str]:
    plots = []
    for name, (title, label, reference) in _MEASURES.items():
        rows = [Row(c.tag, c.look, mean(c.noise.get(name))) for c in analysis.couplings]
        if any(known(row.mean) for row in rows):
            axis = Axis(label, reference=reference)
            plots.append(rows_of_points(f"noise-{name}", title, rows, axis))
    spectrum = [Line(c.look, _spectrum(c)) for c in analysis.couplings]
    if any(line.means for line in spectrum):
        axis = Axis("variance of the noise (1 for N(0, I))", reference=1.0)
        title = "Variance along the data's directions"
        plots.append(by_direction("noise-spectrum", title, spectrum, axis))
    shift = [Line(c.look, _shift(c)) for c in analysis.couplings]
    if any(line.means for line in shift):
        axis = Axis("mean, standard deviations (0 for N(0, I))", reference=0.0)
        title = "Mean along the data's directions"
        plots.append(by_direction("noise-shift", title, shift, axis))
    return plots


def _spectrum(coupling: Coupling) -> list[Mean]:
    values, errors = (reals(coupling.noise.get(n)) for n in ("spectrum", "spectrum_error"))
    errors += [math.nan] * len(values)
    return [Mean(value, error) for value, error in zip(values, errors, strict=False)]


def _shift(coupling: Coupling) -> list[Mean]:
    """Its errors are those of a mean of ``pairs`` values of the measured variance."""
    pairs = real(coupling.noise.get("pairs"))
    spread = [m.value for m in _spectrum(coupling)]
    values = reals(coupling.noise.get("direction_shift"))
    spread += [math.nan] * len(values)
    return [
        Mean(value, math.sqrt(variance / pairs) if pairs > 0 and variance >= 0 else math.nan)
        for value, variance in zip(values, spread, strict=False)
    ]


def _table(analysis: Analysis) -> tuple[list[str], list[list[str]]]:
    fits = [record(c.values.get("gaussian_fit")) for c in analysis.couplings]
    header = [
        "Coupling",
        "|n|² / D",
        "|mean|²",
        "Alignment",
        "KL, nats",
        "Information, nats",
        "Pairs",
    ]
    if any(fits):
        header += ["Gaussian fit less its bias, nats", "As it comes out", "Its bias", "Noises"]
    rows = []
    for coupling, fit in zip(analysis.couplings, fits, strict=True):
        found = coupling.noise
        names = [*_MEASURES, "information"]
        cells = [plus_minus(mean(found.get(name))) for name in names]
        row = [coupling.label, *cells, count(real(found.get("pairs")))]
        if any(fits):
            row += [figure(real(fit.get(name))) for name in ("corrected", "raw", "bias")]
            row.append(count(real(fit.get("count"))))
        rows.append(row)
    return header, rows


def _remarks(analysis: Analysis) -> list[str]:
    """What the figures are, and which of them cannot be."""
    lines = [
        "KL: of the noise over the data set from N(0, I). Information: mutual, of noise and sample. "
        "Both are expectations by Monte Carlo over pairs of a log ratio that is a closed form "
        "unless marked."
    ]
    if any(record(c.values.get("gaussian_fit")) for c in analysis.couplings):
        lines.append(
            "The Gaussian fit is the papers' measure; a fit to finitely many noises gives its bias "
            "even for N(0, I), so read it without. It sees first and second moments only."
        )
    for coupling in analysis.couplings:
        kl = mean(coupling.noise.get("kl"))
        if impossible(kl):
            cause = "its estimated density" if coupling.estimate else "its density"
            lines.append(
                f"{coupling.name}: a KL of {plus_minus(kl)} nats, below 0, cannot be; {cause} is "
                "wrong by at least as much."
            )
    return lines


def _directions(analysis: Analysis) -> str:
    """Variance and mean along every direction, as a table."""
    header, rows = ["Coupling"], []
    for coupling in analysis.couplings:
        for name, means in (("variance", _spectrum(coupling)), ("mean", _shift(coupling))):
            if means:
                rows.append([f"{coupling.label}, {name}", *map(plus_minus, means)])
    if not rows:
        return ""
    header += [str(i) for i in range(1, max(map(len, rows)))]
    rows = [row + [""] * (len(header) - len(row)) for row in rows]
    return (
        "<details><summary>By direction of the data, as a table</summary>"
        f"{plain_table((header, rows))}</details>"
    )


def _per_class(analysis: Analysis) -> str:
    """The same for the data of every class by itself."""
    found = {c.name: record(c.noise.get("per_label")) for c in analysis.couplings}
    keys = list(dict.fromkeys(key for labels in found.values() for key in labels))
    keys.sort(key=lambda key: (not key.isdecimal(), int(key) if key.isdecimal() else 0, key))
    if not keys:
        return ""
    shown = keys[:_CLASSES]
    names = [analysis.class_name(key) for key in shown]
    more = f" The first {len(shown)} of {len(keys)} classes." if len(keys) > len(shown) else ""
    drawn = ""
    for name in ("shift_square", "kl"):
        title, label, reference = _MEASURES[name]
        lines = [
            Line(c.look, [mean(record(found[c.name].get(key)).get(name)) for key in shown])
            for c in analysis.couplings
        ]
        axis = Axis(label, reference=reference)
        drawn += panel(by_class(f"class-{name}", f"{title}, by class", names, lines, axis))
    tables = "".join(
        f"<h4>{escape(c.label)}</h4>{plain_table(_classes(analysis, found[c.name], shown))}"
        for c in analysis.couplings
        if found[c.name]
    )
    text = (
        "A conditional sampler starts every class from N(0, I), so for it the law of the noise "
        f"of each class counts. Bars: two standard errors.{more}"
    )
    return (
        f'<h3>By class</h3><figure><div class="panels two">{drawn}</div>'
        f"<figcaption>{escape(text)}</figcaption></figure>"
        f"<details><summary>By class, as tables</summary>{tables}</details>"
    )


def _classes(
    analysis: Analysis, labels: Any, shown: list[str]
) -> tuple[list[str], list[list[str]]]:
    header = ["Class", "Data", "|n|² / D", "|mean|²", "Alignment", "KL, nats", "Information, nats"]
    rows = []
    for key in shown:
        found = record(labels.get(key))
        cells = [plus_minus(mean(found.get(name))) for name in (*_MEASURES, "information")]
        rows.append([analysis.class_name(key), text(found.get("images")) or "-", *cells])
    return header, rows
