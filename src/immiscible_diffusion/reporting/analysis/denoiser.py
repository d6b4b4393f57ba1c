"""The optimal denoiser as pictures: what the best possible network would predict."""

import math
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from immiscible_diffusion.reporting.analysis.values import (
    Analysis,
    Coupling,
    real,
    reals,
    records,
    text,
)
from immiscible_diffusion.reporting.elements import image

_INTRODUCTION = (
    "In every cell: above the noisy point x_t, below it what the best possible network would "
    "predict from this x_t, the average of all data it may come from. Where the lower picture is "
    "the average of everything, the network is told nothing about what it is to make; where it is "
    "one sample, nothing is left to learn but that sample. Every row starts from the same sample."
)
_ROWS = 6  # couplings times data shown without a click
_SMALL = 64  # pixels


def denoiser(analysis: Analysis, folder: Path) -> str:
    """The section."""
    title = "<h2>What the best possible network would predict</h2>"
    shown = {c.name: _shown(c) for c in analysis.couplings}
    rows = list(dict.fromkeys(row for found in shown.values() for row in found))
    if not rows:
        return f"{title}\n<p>{escape(_without(analysis))}</p>"
    blocks = [_datum(analysis, folder, row) for row in rows]
    shown_first = max(1, _ROWS // len(analysis.couplings))
    rest = "".join(blocks[shown_first:])
    more = f"<details><summary>More {analysis.things}</summary>{rest}</details>" if rest else ""
    estimated = [c.name for c in analysis.couplings if c.estimate and shown[c.name]]
    note = f" Of an estimated density: {', '.join(estimated)}." if estimated else ""
    return (
        f"{title}\n<p>{escape(_INTRODUCTION + note)}</p>\n{''.join(blocks[:shown_first])}\n{more}\n"
        '<p class="note">t: 0 = data, 1 = noise.</p>'
    )


def _without(analysis: Analysis) -> str:
    shape = text(analysis.data.get("shape"))
    return f"No pictures were made of data of shape [{shape}]." if shape else "No pictures."


def _shown(coupling: Coupling) -> dict[str, Mapping[str, Any]]:
    """What is shown of a coupling, by the row of the sample."""
    found = records(coupling.values.get("pictures"))
    return {text(shown.get("row", number)): shown for number, shown in enumerate(found)}


def _datum(analysis: Analysis, folder: Path, row: str) -> str:
    """One sample: a row for each coupling, a column for each level."""
    found = {c: _shown(c)[row] for c in analysis.couplings if row in _shown(c)}
    times = {real(f.get("t")) for shown in found.values() for f in records(shown.get("files"))}
    levels = sorted(t for t in times if not math.isnan(t))
    truth = next((text(shown.get("truth")) for shown in found.values()), "")
    first = image(folder, truth or None, f"The sample itself, number {row}")
    head = "".join(f'<th scope="col">t = {t:g}</th>' for t in levels)
    body = "".join(_row(folder, c, shown, levels, first) for c, shown in found.items())
    return (
        f'<figure><div class="scroll"><table class="seen {_kind(analysis)}"><tr>'
        f'<th scope="col">Coupling</th><th scope="col">Truth</th>{head}</tr>{body}'
        "</table></div></figure>"
    )


def _kind(analysis: Analysis) -> str:
    """How the browser is to scale the pictures: small images keep their pixels."""
    shape = reals(analysis.data.get("shape"))
    if len(shape) < 3:
        return "curves"
    return "pixels" if shape[-1] <= _SMALL else ""


def _row(
    folder: Path, coupling: Coupling, shown: Mapping[str, Any], levels: list[float], truth: str
) -> str:
    by_level = {real(file.get("t")): file for file in records(shown.get("files"))}
    cells = "".join(_cell(folder, coupling, by_level.get(t, {}), t) for t in levels)
    return (
        f'<tr><td>{_breakable(coupling.label)}<span class="of">above: x_t<br>below: best prediction'
        f"</span></td><td>{truth}</td>{cells}</tr>"
    )


def _breakable(label: str) -> str:
    """A name that may go on in the next line after a comma."""
    return escape(label).replace(",", ",<wbr>")


def _cell(folder: Path, coupling: Coupling, file: Mapping[str, Any], t: float) -> str:
    alts = {
        "x_t": f"Noisy point at t = {t:g}, {coupling.name}",
        "denoised": f"Best prediction at t = {t:g}, {coupling.name}",
    }
    pictures = [image(folder, text(file.get(name)) or None, alt) for name, alt in alts.items()]
    return f"<td>{''.join(pictures)}</td>"
