"""The section on the budget: what a noise tells of its sample, and what would be needed."""

import math
from html import escape

from immiscible_diffusion.analysis.estimates import Mean
from immiscible_diffusion.reporting.analysis.plots import Budget, budget_bars
from immiscible_diffusion.reporting.analysis.values import (
    Analysis,
    Coupling,
    count,
    error_of,
    figure,
    known,
    mean,
    plus_minus,
    real,
)
from immiscible_diffusion.reporting.elements import panel, plain_table

_INTRODUCTION = (
    "To unmix N data altogether a noise would have to tell which of them it belongs to: log N "
    "nats. What it does tell is the mutual information of noise and sample. KNN noise selection "
    "with k candidates spends log k - 1 + 1/k nats on every sample, whatever the data; what does "
    "not go into information goes into a changed law of the noise (KL from N(0, I), pale)."
)


def budget(analysis: Analysis) -> str:
    """The section."""
    rows = [_row(c, c.label) for c in analysis.couplings]
    if not any(known(row.information) for row in rows):
        return ""
    drawn = budget_bars(
        "budget",
        "What a noise tells of its sample",
        [_row(c, c.tag) for c in analysis.couplings],
        _needed(analysis),
    )
    caption = (
        "Full color: information, with its figure ± one standard error; pale: KL of the noise "
        "from N(0, I); black mark: log k - 1 + 1/k. Dashed: nats that would name the sample."
    )
    return (
        f'<h2>The budget</h2>\n<figure><div class="panels two">{panel(drawn)}'
        f"<div><p>{escape(_INTRODUCTION)}</p><p>{escape(_check(rows))}</p></div></div>"
        f"<figcaption>{escape(caption)}</figcaption></figure>\n{plain_table(_table(rows))}"
        '<p class="note">All in nats; ± one standard error, of the sum as if its parts were '
        "independent.</p>"
    )


def _row(coupling: Coupling, label: str) -> Budget:
    found = coupling.noise
    information, kl = mean(found.get("information")), mean(found.get("kl"))
    removable = real(coupling.values.get("removable"))
    return Budget(label, coupling.look, information, kl, removable)


def _needed(analysis: Analysis) -> list[tuple[str, float]]:
    """What would name the sample: among all, and given each condition."""
    found = [("among all", analysis.images)]
    for given in analysis.conditions[:1]:
        whole = [c.given(given).candidates for c in analysis.couplings]
        found.append(("given the condition", max((n for n in whole if n > 0), default=math.nan)))
    return [
        (f"{meaning}: log {count(n)} = {math.log(n):.2f}", math.log(n))
        for meaning, n in found
        if n > 1
    ]


def _table(rows: list[Budget]) -> tuple[list[str], list[list[str]]]:
    header = ["Coupling", "Information", "KL", "Sum", "log k - 1 + 1/k", "Off by"]
    body = []
    for row in rows:
        total = _sum(row)
        off = ""
        if known(total) and not math.isnan(row.removable):
            off = figure(total.value - row.removable)
        removable = figure(row.removable) if not math.isnan(row.removable) else ""
        cells = [plus_minus(row.information), plus_minus(row.kl), plus_minus(total)]
        body.append([row.label, *cells, removable, off])
    return header, body


def _sum(row: Budget) -> Mean:
    error = math.hypot(error_of(row.information), error_of(row.kl))
    return Mean(row.information.value + row.kl.value, error)


def _check(rows: list[Budget]) -> str:
    """Whether KNN spends what it must."""
    known_rows = [r for r in rows if known(_sum(r)) and not math.isnan(r.removable)]
    if not known_rows:
        return ""
    wrong = [
        r.label
        for r in known_rows
        if abs(_sum(r).value - r.removable) > 4 * error_of(_sum(r)) + 1e-3
    ]
    if wrong:
        return f"Check failed: log k - 1 + 1/k is not information + KL for {', '.join(wrong)}."
    return "Check: log k - 1 + 1/k = information + KL holds within the errors."
