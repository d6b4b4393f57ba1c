"""Writes the report: results.json, two CSV files and one HTML page that needs nothing else."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from immiscible_diffusion.reporting.compare import controls, plots, summary, tables
from immiscible_diffusion.reporting.compare.records import FRECHET, Comparison
from immiscible_diffusion.reporting.compare.speedup import Speedup, speedups
from immiscible_diffusion.reporting.html import image_file, render, table
from immiscible_diffusion.utils.atomic_files import write_record, write_text

if TYPE_CHECKING:
    from markupsafe import Markup
    from pandas import DataFrame

GRID_COLUMNS = 4  # training steps shown in the sample grids: as many as fit a desk screen


def write_report(
    comparison: Comparison, folder: str | os.PathLike[str], results: Sequence[Speedup] | None = None
) -> Path:
    """Write the report of ``comparison`` into ``folder``; returns the path of report.html.

    Writes results.json, results.csv, speedups.csv and report.html, each whole or not at all. Images
    are read from ``folder``; ``results`` are the ``speedups`` where they are known.

    Raises:
        ValueError: an image is no PNG or GIF.
        MissingDependencyError: without matplotlib, pandas or jinja2.
    """
    target = Path(folder)
    results = speedups(comparison) if results is None else results
    page = render_page(comparison, target, results)
    write_record(target / "results.json", comparison.to_dict())
    for name, text in csv_tables(comparison, results).items():
        write_text(target / name, text)
    write_text(target / "report.html", page)
    return target / "report.html"


def csv_tables(comparison: Comparison, results: Sequence[Speedup] | None = None) -> dict[str, str]:
    """The tidy tables as CSV by file name."""
    times = tables.speedups_frame(speedups(comparison) if results is None else results)
    return {
        "results.csv": tables.metrics_frame(comparison).to_csv(index=False),
        "speedups.csv": times.to_csv(index=False),
    }


def render_page(
    comparison: Comparison, folder: str | os.PathLike[str], results: Sequence[Speedup] | None = None
) -> str:
    """The HTML of the report; images are read from ``folder``."""
    source, video, results = Path(folder), comparison.video, speedups(comparison) if results is None else results
    return render(
        "compare.html",
        title=f"{comparison.recipe}: training with and without pairing",
        c=comparison,
        note=f"({comparison.note.strip()})" if comparison.note.strip() else "",
        frechet=comparison.metric == FRECHET,
        summary=summary,
        results=results,
        sentences=summary.sentences(comparison, results),
        missing=summary.missing(comparison),
        tables=tables,
        controls=controls,
        table=partial(_table, comparison),
        plots=plots,
        video=video and image_file(source / video, "Policies, a row each"),
        grids=sample_grids(comparison, source),
        trajectories=_trajectories(comparison, source),
    )


def _table(comparison: Comparison, frame: "DataFrame") -> "Markup":
    """``frame`` as HTML, labels of controls indented and verdicts as badges; empty if it is."""
    from markupsafe import Markup, escape

    controls = {entry.label for entry in comparison.couplings if entry.control_of is not None}
    badge = Markup('<span class="badge {}">{}</span>')

    def label(text: str) -> Markup:
        return tables.sub_label(text) if text in controls else escape(text)

    def verdict(text: str) -> Markup:
        return badge.format(text.replace(" ", "-"), text)

    formats = {"Coupling": label, "Verdict": verdict, "Holm-corrected": verdict}
    return table(frame, **formats) if len(frame) else Markup()


def sample_grids(comparison: Comparison, folder: Path) -> dict[str, Any] | None:
    """Samples of the first seed that has grids, at a few of the training steps."""
    paths = {(t.seed, t.coupling): t.grids for t in comparison.trials if t.grids}
    steps = sorted({int(step) for grids in paths.values() for step in grids})
    if (last := len(steps) - 1) >= GRID_COLUMNS:  # evenly spread, the first and last among them
        steps = [steps[round(i * last / (GRID_COLUMNS - 1))] for i in range(GRID_COLUMNS)]
    return _image_table(comparison, folder, paths, {f"step {step:,}": str(step) for step in steps})


def _trajectories(comparison: Comparison, folder: Path) -> dict[str, Any] | None:
    """The same initial noise denoised by each coupling's network, of the first seed with some."""
    title = "noise to image"
    paths = {(t.seed, t.coupling): {title: t.trajectory} for t in comparison.trials if t.trajectory}
    return _image_table(comparison, folder, paths, {title: title})


def _image_table(
    comparison: Comparison,
    folder: Path,
    paths: Mapping[tuple[int, str], Mapping[str, str]],
    columns: Mapping[str, str],
) -> dict[str, Any] | None:
    """Images of the first seed in ``paths``: a row for each coupling; None where one is missing."""
    if not paths:
        return None
    seed = min(seed for seed, _ in paths)
    rows = {}
    for entry in comparison.couplings:
        row = paths.get((seed, entry.name), {})
        rows[entry.label] = [
            image_file(folder / row[key], f"{entry.label}, {title}") if key in row else None
            for title, key in columns.items()
        ]
    return {"seed": seed, "columns": list(columns), "images": rows}
