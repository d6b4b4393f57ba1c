"""The section on mixing: by noise level, without a condition and given each."""

import math
from collections.abc import Callable
from html import escape

from immiscible_diffusion.analysis.estimates import Mean
from immiscible_diffusion.reporting.analysis.plots import Axis, Line, by_level
from immiscible_diffusion.reporting.analysis.values import (
    Analysis,
    Coupling,
    count,
    counted,
    error_of,
    figure,
    known,
    plus_minus,
    ratio,
)
from immiscible_diffusion.reporting.elements import legend, panel, plain_table
from immiscible_diffusion.reporting.plotting import look_key

Reader = Callable[[Coupling, float], Mean]
_LOSS = "irreducible loss per dimension"
_OPEN = 2  # versions shown without a click
_INTRODUCTION = (
    "Noise sends every sample everywhere, so a noisy point x_t may come from many. What a network "
    "has to predict there is their average, weighted by how likely each is; what it cannot know is "
    "their spread. Everything here is computed from the data and the coupling: no network is "
    "trained."
)
_CAPTION = (
    "Bars: two standard errors over the noisy points. Effective number: exp of the entropy of "
    "p(sample | x_t). Irreducible loss: variance of the training target given x_t, not weighted; no "
    "network goes below it on these data. The noisy points are made of the same data for every "
    "coupling, so bars of the relative loss are, if anything, too long."
)
_QUANTITIES = {
    "effective": "Effective number",
    "entropy": "Entropy of the posterior (nats)",
    "true_probability": "Probability of the true sample",
    "irreducible": "Irreducible loss per dimension",
    "reached": "Loss of the optimal denoiser on these very points, per dimension",
    "wrong": "Surprise less entropy (nats; 0 for an exact density)",
}


def mixing(analysis: Analysis) -> str:
    """The section."""
    parts = ["<h2>How mixed the data are</h2>", f"<p>{escape(_INTRODUCTION)}</p>"]
    versions = [_version(analysis, i, g) for i, g in enumerate(["", *analysis.conditions])]
    if not any(versions):
        return ""
    rest = "".join(versions[_OPEN:])
    more = f"<details><summary>More conditions</summary>{rest}</details>" if rest else ""
    parts += [_overview(analysis), *versions[:_OPEN], more, estimates(analysis)]
    return "\n".join(part for part in parts if part)


def _overview(analysis: Analysis) -> str:
    """One level, all conditions: how much the choice of the condition matters."""
    if len(analysis.conditions) < 2:
        return ""
    t, conditions = analysis.level, ["", *analysis.conditions]
    header = ["Coupling", *(f"given {c}" if c else "no condition" for c in conditions)]
    rows = [
        [c.label, *(counted(c.given(given).at(t, "effective")) for given in conditions)]
        for c in analysis.couplings
    ]
    rows.append(["(before x_t is seen)", *(count(_candidates(analysis, c)) for c in conditions)])
    title = f"Effective number of {analysis.things} at t = {t:g}, by condition"
    return f"<h3>{escape(title)}</h3>{plain_table((header, rows))}"


def _version(analysis: Analysis, number: int, given: str) -> str:
    """Plots and tables given one condition, or none where ``given`` is empty."""
    levels = analysis.times(given)
    if not levels:
        return ""
    keys = [(look_key(c.look), c.label) for c in analysis.couplings]
    drawn = "".join(map(panel, _plots(analysis, number, given, levels)))
    tables = "".join(
        f"<h4>{escape(title)}</h4>{plain_table(_table(analysis, given, levels, name))}"
        for name, title in _QUANTITIES.items()
    )
    titled = f"Given {given}" if given else "Without a condition"
    return (
        f"<h3>{escape(titled)}</h3>\n<p>{escape(_opening(analysis, given))}</p>\n"
        f'<figure>{legend(keys)}<div class="panels two">{drawn}</div>'
        f"<figcaption>{escape(_CAPTION)}</figcaption></figure>\n"
        f"<details><summary>The figures as tables</summary>{tables}"
        '<p class="note">± one standard error. Columns: t.</p></details>'
    )


def _opening(analysis: Analysis, given: str) -> str:
    whole = _candidates(analysis, given)
    if given:
        return (
            f"Among data alike in the condition only: {count(whole)} of "
            f"{count(analysis.images)} {analysis.things} count before x_t is seen. A conditional "
            "network has no more than these to average over."
        )
    return f"Among all {count(whole)} {analysis.things}, as an unconditional network sees them."


def _candidates(analysis: Analysis, given: str) -> float:
    found = [c.given(given).candidates for c in analysis.couplings]
    return max((value for value in found if value > 0), default=math.nan)


def _plots(analysis: Analysis, number: int, given: str, levels: list[float]) -> list[str]:
    things, whole = analysis.things, _candidates(analysis, given)
    one = "image" if things == "images" else "sample"
    reference = whole if whole > 0 else None

    def drawn(name: str, title: str, read: Reader, axis: Axis) -> str:
        lines = [Line(c.look, [read(c, t) for t in levels]) for c in analysis.couplings]
        return by_level(f"mixing-{number}-{name}", title, levels, lines, axis)

    def of(name: str) -> Reader:
        return lambda coupling, t: coupling.given(given).at(t, name)

    all_of = f"all {count(whole)}"
    axis = Axis(f"effective number of {things}", True, reference, all_of, least=1.0)
    effective = drawn(
        "effective", f"{things.capitalize()} a point may come from", of("effective"), axis
    )
    axis = Axis("probability", True)
    truth = drawn("truth", f"Probability of the true {one}", of("true_probability"), axis)
    loss = drawn("loss", "Irreducible loss", of("irreducible"), Axis(_LOSS))
    plots, base = [effective, truth, loss], analysis.baseline
    if base is not None and analysis.paired:

        def against(coupling: Coupling, t: float) -> Mean:
            low = base.given(given).at(t, "irreducible")
            if coupling is base:
                return Mean(1.0 if known(low) else low.value, 0.0)
            return ratio(coupling.given(given).at(t, "irreducible"), low)

        axis = Axis("share of the loss without pairing", reference=1.0)
        plots.append(drawn("relative", "Irreducible loss, relative", against, axis))
    return plots


def _table(
    analysis: Analysis, given: str, levels: list[float], name: str
) -> tuple[list[str], list[list[str]]]:
    header = ["Coupling", *(f"{t:g}" for t in levels)]
    rows = []
    for coupling in analysis.couplings:
        means = [coupling.given(given).at(t, name) for t in levels]
        if any(map(known, means)):
            rows.append([coupling.label, *map(plus_minus, means)])
    weights = [analysis.couplings[0].given(given).at(t, "weight").value for t in levels]
    if name == "irreducible":
        rows.append(["(the path's weight)", *map(figure, weights)])
    return header, rows


def estimates(analysis: Analysis) -> str:
    """What is estimated rather than computed, and how wrong that is seen to be."""
    estimated = [c for c in analysis.couplings if c.estimate]
    if not estimated:
        return ""
    lines = "".join(f"<li>{escape(_estimate(c))}</li>" for c in estimated)
    levels = analysis.times()
    axis = Axis("surprise less entropy (nats; exact: 0)", reference=0.0)
    lines_drawn = [
        Line(c.look, [c.mixing.at(t, "wrong") for t in levels]) for c in analysis.couplings
    ]
    drawn = by_level("mixing-wrong", "How wrong the densities are", levels, lines_drawn, axis)
    note = (
        "Surprise is -log of the probability that the posterior gave the true sample. Where the "
        "density is exact its mean is the entropy, so closed forms lie at 0 within their errors "
        "(bars: two standard errors, as if surprise and entropy were independent). Where an "
        "estimate is off 0 its figures are off too, by about as many nats."
    )
    return (
        f'<div class="warning"><b>Not a closed form.</b><ul>{lines}</ul></div>\n'
        f'<figure><div class="panels two">{panel(drawn)}<div><p>{escape(note)}</p></div></div>'
        "</figure>"
    )


def _estimate(coupling: Coupling) -> str:
    """One coupling's estimate and where it is most wrong."""
    found = [(t, coupling.mixing.at(t, "wrong")) for t in coupling.mixing.times]
    found = [(t, wrong) for t, wrong in found if known(wrong)]
    said = f"{coupling.name} has no density in closed form; it is {coupling.estimate}."
    if not found:
        return said
    t, wrong = max(found, key=lambda item: abs(item[1].value) - error_of(item[1]))
    factor = math.exp(min(abs(wrong.value), 700))
    said += f" Surprise less entropy, 0 if it were exact, is up to {plus_minus(wrong)} nats (at "
    said += f"t = {t:g})."
    if coupling.failed:
        return f"{said} The estimate has failed: no figure that comes of it can be used."
    return (
        f"{said} Every figure of this coupling on this page is an estimate, its effective "
        f"numbers off by a factor of about {figure(factor)}."
    )
