"""Writes the report: results.json, two CSV files and one HTML page that needs nothing else."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from immiscible_diffusion.reporting.compare import plots, tables
from immiscible_diffusion.reporting.compare.records import FRECHET, Comparison
from immiscible_diffusion.reporting.compare.summary import (
    excess_remarks,
    findings,
    missing,
    summary,
)
from immiscible_diffusion.reporting.html import image_file, render, table
from immiscible_diffusion.utils.atomic_files import write_json, write_text

if TYPE_CHECKING:
    from markupsafe import Markup
    from pandas import DataFrame

GRID_COLUMNS = 4
"""Training steps shown in the sample grids: as many as fit a desk screen."""


def write_report(comparison: Comparison, folder: str | os.PathLike[str]) -> Path:
    """Write the report of ``comparison`` into ``folder``; returns the path of report.html.

    Writes results.json, results.csv, speedups.csv and report.html, each whole or not at all. Images
    are read from ``folder``.

    Raises:
        ValueError: an image is no PNG or GIF.
        MissingDependencyError: without matplotlib, pandas or jinja2.
    """
    target = Path(folder)
    page = render_page(comparison, target)
    write_json(target / "results.json", comparison.to_dict())
    for name, text in csv_tables(comparison).items():
        write_text(target / name, text)
    write_text(target / "report.html", page)
    return target / "report.html"


def csv_tables(comparison: Comparison) -> dict[str, str]:
    """The tidy tables as CSV by file name."""
    frames = {
        "results.csv": tables.metrics_frame(comparison),
        "speedups.csv": tables.speedups_frame(comparison),
    }
    return {name: frame.to_csv(index=False) for name, frame in frames.items()}


def render_page(comparison: Comparison, folder: str | os.PathLike[str]) -> str:
    """The HTML of the report; images are read from ``folder``."""
    source, headline = Path(folder), comparison.headline_steps
    others = (steps for steps in comparison.sampling_steps if steps != headline)
    film = comparison.film and image_file(source / comparison.film, "Policies, a row each")
    kinds = ("validation", "training")
    has_excess = any(trial.excess for trial in comparison.trials)
    return render(
        "compare.html",
        title=f"{comparison.recipe}: training with and without pairing",
        c=comparison,
        note=f"({comparison.note.strip()})" if comparison.note.strip() else "",
        frechet=comparison.metric == FRECHET,
        summary=summary(comparison),
        findings=findings(comparison),
        missing=missing(comparison),
        metric_plots=[
            *(plots.metric_against_steps(comparison, s) for s in comparison.sampling_steps),
            plots.metric_against_sampling_steps(comparison),
        ],
        speedups={
            steps: _table(tables.speedup_table(comparison, steps), comparison)
            for steps in (headline, *others)
        },
        policies=_table(tables.policy_table(comparison), comparison),
        film=film,
        controls=_table(tables.control_table(comparison), comparison),
        grids=_grids(comparison, source),
        trajectories=_trajectories(comparison, source),
        cost_plot=plots.pairing_cost(comparison),
        costs=_table(tables.cost_table(comparison), comparison),
        excess=_table(tables.excess_table(comparison), comparison),
        excess_plots=[plots.excess_by_level(comparison), plots.excess_against_steps(comparison)]
        if has_excess
        else [],
        excess_remarks=excess_remarks(comparison),
        loss_plots=[plots.losses_against_steps(comparison, kind) for kind in kinds],
        metrics=_table(tables.metric_table(comparison), comparison),
    )


def _table(frame: "DataFrame", comparison: Comparison) -> "Markup | None":
    """``frame`` as HTML, labels of controls indented and verdicts as badges; None if empty."""
    from markupsafe import Markup, escape

    controls = {entry.label for entry in comparison.couplings if entry.control_of is not None}
    control, badge = (
        Markup('<span class="control">{}</span>'),
        Markup('<span class="badge {}">{}</span>'),
    )
    formats = {
        "Coupling": lambda text: control.format(text) if text in controls else escape(text),
        "Verdict": lambda text: badge.format(text.replace(" ", "-"), text),
    }
    return table(frame, formats) if len(frame) else None


@dataclass(frozen=True)
class Images:
    """A table of images of one seed: a row for each coupling; None where one is missing."""

    seed: int
    columns: list[str]
    rows: dict[str, list["Markup | None"]]


def _grids(comparison: Comparison, folder: Path) -> Images | None:
    """Samples of the first seed that has grids, at a few of the training steps."""
    seed = min((trial.seed for trial in comparison.trials if trial.grids), default=None)
    if seed is None:
        return None
    grids = {t.coupling: t.grids or {} for t in comparison.trials if t.seed == seed}
    steps = sorted({int(step) for paths in grids.values() for step in paths})
    if (last := len(steps) - 1) >= GRID_COLUMNS:  # evenly spread, the first and last among them
        steps = [steps[round(i * last / (GRID_COLUMNS - 1))] for i in range(GRID_COLUMNS)]
    rows = {}
    for entry in comparison.couplings:
        paths = [grids.get(entry.name, {}).get(str(step)) for step in steps]
        alts = [f"Samples: {entry.label}, step {step:,}" for step in steps]
        rows[entry.label] = [
            image_file(folder / path, alt) if path else None
            for path, alt in zip(paths, alts, strict=True)
        ]
    return Images(seed, [f"step {step:,}" for step in steps], rows)


def _trajectories(comparison: Comparison, folder: Path) -> Images | None:
    """The same initial noise denoised by each coupling's network, of the first seed with some."""
    seed = min((trial.seed for trial in comparison.trials if trial.trajectory), default=None)
    if seed is None:
        return None
    paths = {t.coupling: t.trajectory for t in comparison.trials if t.seed == seed}
    rows = {
        entry.label: [image_file(folder / path, f"Denoising: {entry.label}")]
        for entry in comparison.couplings
        if (path := paths.get(entry.name))
    }
    return Images(seed, ["noise to image"], rows)
