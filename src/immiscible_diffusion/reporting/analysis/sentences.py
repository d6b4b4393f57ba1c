"""What the figures say, in plain sentences."""

import math
from collections.abc import Callable

from immiscible_diffusion.analysis.diagnostics import is_zero
from immiscible_diffusion.analysis.estimates import Mean
from immiscible_diffusion.reporting.analysis.values import (
    NOTHING,
    Analysis,
    Coupling,
    count,
    counted,
    error_of,
    figure,
    joined,
    known,
    mean,
    plus_minus,
)

LISTED = 5  # couplings in one sentence
CONDITIONS = 1
SURE = 3.0  # standard errors
SLIGHT = 0.005  # nats


def sentences(analysis: Analysis) -> list[tuple[str, str]]:
    """What the page begins with, each with a word on its subject; given a condition comes first.

    Where nothing is known a sentence is left out.
    """
    conditions = analysis.conditions[:CONDITIONS]
    found = [("Mixed", _mixed(analysis, given)) for given in [*conditions, ""]]
    found += [("Lost at best", _loss(analysis)), ("Told", _told(analysis))]
    found += [("Price", _law(analysis)), ("Not known", _failed(analysis))]
    return [(subject, sentence) for subject, sentence in found if sentence]


def _mixed(analysis: Analysis, given: str) -> str:
    """How many images a noisy point may come from."""
    t = analysis.level
    values = {c.name: c.given(given).at(t, "effective") for c in _usable(analysis.couplings)}
    all_of = next(
        (c.given(given).candidates for c in analysis.couplings if known(_of(values, c))),
        math.nan,
    )
    start = f"Given {given}: a" if given else "A"
    whole = count(all_of)
    said = _each(analysis, values, lambda value: f"from {counted(value)}")
    if not said:
        return ""
    base = analysis.baseline
    things = analysis.things
    if base is None or not known(_of(values, base)):
        return f"{start} point at t = {t:g} may come, of {whole} {things}: {said}."
    first = f"from {count(values[base.name].value)} of {whole} {things}"
    opening = f"Given {given}: without" if given else "Without"
    if not analysis.paired:
        return f"{opening} pairing a point at t = {t:g} may come {first}."
    return f"{opening} pairing a point at t = {t:g} may come {first}; {said}."


def _each(analysis: Analysis, values: dict[str, Mean], say: Callable[[Mean], str]) -> str:
    """'with knn:k=4 from 1,449 ± 16; with knn:k=64 from 762 ± 25'."""
    named = [c for c in analysis.paired if known(_of(values, c))]
    parts = [f"with {c.label} {say(values[c.name])}" for c in named[:LISTED]]
    if len(named) > LISTED:
        parts.append(f"{len(named) - LISTED} more below")
    return "; ".join(parts)


def _loss(analysis: Analysis) -> str:
    """Where pairing lowers the irreducible loss most."""
    base = analysis.baseline
    if base is None or not analysis.paired:
        return ""

    def at(coupling: Coupling, t: float) -> float:
        return coupling.mixing.at(t, "irreducible").value

    usable = _usable(analysis.paired)
    closed = [coupling for coupling in usable if not coupling.estimate]
    falls = [
        (at(base, t) - at(coupling, t), t)
        for coupling in closed or usable
        for t in analysis.times()
        if not math.isnan(at(base, t) - at(coupling, t))
    ]
    if not falls:
        return ""
    t = max(falls)[1]
    values = {c.name: c.mixing.at(t, "irreducible") for c in [base, *usable]}
    whole = values[base.name].value
    said = _each(analysis, values, lambda value: _against(value.value, whole))
    return (
        f"The best possible network still loses {figure(whole)} per dimension at t = {t:g} "
        f"without pairing; {said}."
    )


def _against(value: float, whole: float) -> str:
    share = f" ({100 * (value / whole - 1):+.0f}%)" if whole > 0 else ""
    return f"{figure(value)}{share}"


def _told(analysis: Analysis) -> str:
    """Information against what would unmix the data."""
    if not analysis.images > 1:
        return ""
    values = {c.name: mean(c.noise.get("information")) for c in analysis.couplings}
    said = _each(analysis, values, lambda value: f"tells {plus_minus(value)}")
    if not said:
        return ""
    said = said.replace("with ", "that of ")
    needed = math.log(analysis.images)
    return (
        f"To know which of {count(analysis.images)} {analysis.things} a noise belongs to takes "
        f"log {count(analysis.images)} = {needed:.2f} nats; the noise of {said[8:]}."
    )


def _law(analysis: Analysis) -> str:
    """Which couplings change the law of the noise."""
    values = {c.name: mean(c.noise.get("kl")) for c in analysis.paired}
    changed = [c for c in analysis.paired if changes(values[c.name])]
    below = [c.label for c in analysis.paired if impossible(values[c.name])]
    others = [c for c in analysis.paired if known(values[c.name]) and c not in changed]
    exact = [c.name for c in others if is_zero(c.noise.get("kl"))]
    kept = [c.label for c in others if c.name not in exact]
    parts = []
    if changed:
        only = {c.name: values[c.name] if c in changed else NOTHING for c in analysis.paired}
        listed = _each(analysis, only, lambda value: f"{plus_minus(value)} nats")
        parts.append(
            "Over the whole data set the noise is no longer N(0, I), so a sampler that "
            f"starts from N(0, I) starts beside what was trained. KL from N(0, I): {listed}."
        )
    if exact:
        parts.append(f"By construction the noise stays N(0, I) with {joined(exact)}.")
    if kept := [label for label in kept if label not in below]:
        parts.append(f"No change of the law of the noise is resolved for {joined(kept)}.")
    if below:
        parts.append(f"Not known for {joined(below)}: the estimate comes out below 0.")
    return " ".join(parts)


def _failed(analysis: Analysis) -> str:
    """Which couplings have no figures."""
    names = [c.name for c in analysis.couplings if c.failed]
    if not names:
        return ""
    return (
        f"The density of {joined(names)} could not be estimated on these data: surprise and "
        f"entropy disagree, or the information comes out below 0. None of their figures is given "
        f"here, and none below that is marked as failed can be used."
    )


def _usable(couplings: list[Coupling] | tuple[Coupling, ...]) -> list[Coupling]:
    """Those whose figures mean something."""
    return [coupling for coupling in couplings if not coupling.failed]


def _of(values: dict[str, Mean], coupling: Coupling) -> Mean:
    return values.get(coupling.name, NOTHING)


def changes(kl: Mean) -> bool:
    """Whether a KL is above 0 beyond its error."""
    return known(kl) and kl.value > max(SURE * error_of(kl), SLIGHT)


def impossible(kl: Mean) -> bool:
    """Whether a KL, which cannot be below 0, is below 0 beyond its error."""
    return known(kl) and kl.value < -SURE * error_of(kl) and kl.value < -SLIGHT
