"""Measurements beside published figures: the papers' own, and those of trained models."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from immiscible_diffusion.reporting.analysis.values import (
    Analysis,
    figure,
    known,
    mean,
    plus_minus,
    real,
    records,
    text,
)
from immiscible_diffusion.reporting.elements import image, plain_table

_PAPERS = (
    "The quantities that the two papers (arXiv 2406.12303, 2505.18521) report, measured here on "
    "these data, each with the figure or table that it stands for. Where the data are not those of "
    "the papers, published figures are not to be expected."
)
_TRAINED = "Tests of trained networks, each with the figure or table that it stands for."
_LONG = 12  # rows that are shown without a click
Record = Mapping[str, Any]


@dataclass
class _Group:
    """Sections of the same kind, of different couplings."""

    title: str
    members: list[tuple[str, Record]] = field(default_factory=list)

    def said(self, name: str) -> list[str]:
        """The texts ``name`` of the members, each once."""
        return [t for t in dict.fromkeys(text(s.get(name)) for _, s in self.members) if t]


def papers(analysis: Analysis, folder: Path) -> str:
    """The papers' measurements: of all, then of every coupling."""
    return _all(analysis, folder, "papers", "The papers' own measurements", _PAPERS)


def trained(analysis: Analysis, folder: Path) -> str:
    """Measurements of trained models."""
    return _all(analysis, folder, "trained", "Trained models", _TRAINED)


def _all(analysis: Analysis, folder: Path, name: str, title: str, introduction: str) -> str:
    """Sections of no coupling and of each, those of the same kind together."""
    groups = _grouped(analysis, name)
    if not groups:
        return ""
    parts = [f"<h2>{escape(title)}</h2>", f"<p>{escape(introduction)}</p>"]
    parts += [_published(groups), *(_shown(group, folder) for group in groups)]
    return "\n".join(part for part in parts if part)


def _grouped(analysis: Analysis, name: str) -> list[_Group]:
    """Sections of all couplings by their kind, in the order of the coupling that has most."""
    whole = [("", one) for one in _listed(analysis.values.get(name))]
    owned = [[(c.name, one) for one in _listed(c.values.get(name))] for c in analysis.couplings]
    groups: dict[str, _Group] = {}
    for coupling, one in [*whole, *max(owned, key=len, default=[])]:
        kind = text(one.get("title")).removesuffix(f", {coupling}")
        groups[kind] = _Group(kind)
    for coupling, one in [*whole, *(each for found in owned for each in found)]:
        kind = text(one.get("title")).removesuffix(f", {coupling}")
        groups.setdefault(kind, _Group(kind)).members.append((coupling, one))
    return list(groups.values())


def _listed(value: Any) -> list[Record]:
    """Sections, given as a list, an object of them, or one by itself."""
    single = isinstance(value, Mapping) and "rows" in value
    return records([value] if single else value)


def _published(groups: Iterable[_Group]) -> str:
    """All figures that have a published one, in one table."""
    rows = [
        [_named(label, f"{group.title}, {text(row.get('label'))}"), *_figures(row), source]
        for group in groups
        for label, one in group.members
        for row in records(one.get("rows"))
        for source in [text(one.get("stands_for"))]
        if not math.isnan(real(row.get("published")))
    ]
    if not rows:
        return ""
    header = ["What", "Measured", "Published", "How close", "Stands for"]
    return f"<h3>Beside what was published</h3>{plain_table((header, rows))}"


def _named(coupling: str, what: str) -> str:
    return f"{coupling}: {what}" if coupling else what


def _figures(row: Record) -> list[str]:
    """Measured, published, and how close they are."""
    unit = text(row.get("unit"))
    unit = f" {unit}" if unit else ""
    measured, published = mean(row.get("measured")), real(row.get("published"))
    spread = real(row.get("published_spread"))
    said = f"{published:g}" if not math.isnan(published) else ""
    said += f" ± {spread:g}" if said and not math.isnan(spread) else ""
    shown = plus_minus(measured) + (unit if known(measured) else "")
    return [shown, said + (unit if said else ""), text(row.get("close")) or _close(row)]


def _close(row: Record) -> str:
    """The difference, where the measurement does not say it itself."""
    difference = mean(row.get("measured")).value - real(row.get("published"))
    return "" if math.isnan(difference) else f"off by {figure(difference)}"


def _shown(group: _Group, folder: Path) -> str:
    """One kind of measurement: figures of all couplings, pictures side by side, notes once."""
    parts = [f"<h3>{escape(group.title)}</h3>"]
    parts += [f'<p class="note">Stands for {escape(source)}.</p>' for source in _sources(group)]
    pictures = "".join(
        _picture(label, shown, folder)
        for label, one in group.members
        for shown in records(one.get("pictures"))
    )
    parts.append(f'<div class="panels wide">{pictures}</div>' if pictures else "")
    parts.append(_table(group))
    parts += [f'<p class="note">{escape(note)}</p>' for note in group.said("note")]
    return "\n".join(part for part in parts if part)


def _sources(group: _Group) -> list[str]:
    found = group.said("stands_for")
    return ["; ".join(found)] if found else []


def _table(group: _Group) -> str:
    """The figures; columns that are empty throughout are left out, long tables folded."""
    header = ["Coupling", "What", "Measured", "Published", "How close", "Expected"]
    body = []
    for label, one in group.members:
        for row in records(one.get("rows")):
            expected = real(row.get("expected"))
            told = "" if math.isnan(expected) else figure(expected)
            body.append([label, text(row.get("label")), *_figures(row), told])
    if not body:
        return ""
    kept = [i for i in range(len(header)) if i in (1, 2) or any(row[i] for row in body)]
    table = plain_table(([header[i] for i in kept], [[row[i] for i in kept] for row in body]))
    if 0 in kept:
        table = f'<div class="measured">{table}</div>'
    if len(body) <= _LONG:
        return table
    return f"<details><summary>{len(body)} figures as a table</summary>{table}</details>"


def _picture(label: str, shown: Record, folder: Path) -> str:
    caption = _named(label, text(shown.get("caption")))
    picture = image(folder, text(shown.get("file")) or None, caption or "Measurement as a picture")
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"
