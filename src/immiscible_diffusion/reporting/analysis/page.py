"""Writes analysis.html, one page that needs nothing else, from analysis.json and its pictures."""

import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from immiscible_diffusion.reporting.analysis.budget import budget
from immiscible_diffusion.reporting.analysis.denoiser import denoiser
from immiscible_diffusion.reporting.analysis.head import head, title_of
from immiscible_diffusion.reporting.analysis.mixing import mixing
from immiscible_diffusion.reporting.analysis.noise import noise
from immiscible_diffusion.reporting.analysis.style import CSS
from immiscible_diffusion.reporting.analysis.values import (
    Analysis,
    figure,
    real,
    reals,
    record,
    text,
)
from immiscible_diffusion.reporting.elements import definitions, document
from immiscible_diffusion.utils.atomic_files import read_json, write_text


def write_analysis_page(folder: str | os.PathLike[str]) -> Path:
    """Write ``folder/analysis.html`` from ``folder/analysis.json``; returns its path.

    Raises:
        ValueError: analysis.json is no JSON or of another format, or a picture is no PNG.
        FileNotFoundError: without analysis.json.
        MissingDependencyError: without matplotlib.
    """
    target = Path(folder)
    page = render_analysis_page(read_json(target / "analysis.json"), target)
    write_text(target / "analysis.html", page)
    return target / "analysis.html"


def render_analysis_page(values: Mapping[str, Any], folder: str | os.PathLike[str]) -> str:
    """The HTML of an analysis; pictures are read from ``folder``.

    What ``values`` lacks is left out or shown as '-'.

    Raises:
        ValueError: another format, or a picture that is no PNG.
    """
    analysis, source = Analysis.of(values), Path(folder)
    sections = [
        head(analysis),
        mixing(analysis),
        denoiser(analysis, source),
        noise(analysis),
        budget(analysis),
        _how(analysis),
    ]
    return document(title_of(analysis), sections, CSS)


def _how(analysis: Analysis) -> str:
    values, data = analysis.values, analysis.data
    path = record(values.get("path"))
    fields = ", ".join(f"{name} {text(value)}" for name, value in path.items() if name != "kind")
    versions = record(values.get("versions"))
    seconds = real(values.get("seconds"))
    times = ", ".join(
        f"{c.name} {figure(real(c.values.get('seconds')))} s" for c in analysis.couplings
    )
    made = {
        "Data": f"{text(data.get('name'))}. {text(data.get('note'))}".strip(". "),
        "Classes": text(data.get("classes")),
        "Path": f"{text(path.get('kind'))} {f'({fields})' if fields else ''}".strip(),
        "Levels (t)": ", ".join(f"{t:g}" for t in reals(values.get("levels"))),
        "Couplings": ", ".join(c.name for c in analysis.couplings),
        "Noisy points per level": text(values.get("probes")),
        "Seed": text(values.get("seed")),
        "Time": f"{figure(seconds)} s ({times})" if seconds > 0 else times,
        "Hardware": text(values.get("hardware")),
        "Date": text(values.get("date")),
        "Versions": ", ".join(f"{name} {text(version)}" for name, version in versions.items()),
        "Numbers": "analysis.json beside this page",
    }
    shown = {name: value for name, value in made.items() if value}
    # An option a line: browsers break lines between the two hyphens of an option.
    command = text(values.get("command")).replace(" --", " \\\n    --")
    told = f"<pre>{escape(command)}</pre>\n" if command else ""
    return f"<h2>How this was made</h2>\n{told}{definitions(shown)}"
