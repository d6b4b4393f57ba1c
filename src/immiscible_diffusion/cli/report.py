"""``immiscible report FOLDER``."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from immiscible_diffusion.cli.options import Switch, parse
from immiscible_diffusion.reporting.compare import Comparison, csv_tables, latex_table, write_report
from immiscible_diffusion.utils.atomic_files import read_record, write_text


@dataclass(frozen=True)
class Options:
    """Write a comparison's page again from its results.json, or its tables for a paper.

    Without a switch: report.html, results.csv and speedups.csv. With --latex or --csv those alone; nothing is trained
    or evaluated. After new trials: immiscible compare RECIPE --gather.

    Args:
        folder: folder of the comparison, with results.json.
        latex: write speedups.tex, a table of speed-ups and final metrics (package booktabs).
        csv: write results.csv and speedups.csv.
        out: folder to write tables to; by default that of the comparison.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    latex: Switch = False
    csv: Switch = False
    out: Path | None = None


def main(arguments: list[str]) -> int:
    """Write the files and print their paths."""
    options = parse(Options, arguments, "report")
    comparison = load_comparison(options.folder)
    if not options.latex and not options.csv:
        if options.out is not None:
            raise ValueError("--out is for tables: add --latex or --csv (the page stays in FOLDER)")
        sys.stdout.write(f"{write_report(comparison, options.folder)}\n")
        return 0
    tables = csv_tables(comparison) if options.csv else {}
    if options.latex:
        tables = {"speedups.tex": latex_table(comparison)} | tables
    for name, text in tables.items():
        path = (options.out or options.folder) / name
        write_text(path, text)
        sys.stdout.write(f"{path}\n")
    return 0


def load_comparison(folder: Path) -> Comparison:
    """The record of the comparison in ``folder``; ValueError says what to do if there is none."""
    results = folder / "results.json"
    if results.is_file():
        return Comparison.from_dict(read_record(results))
    if (folder / "plan.json").is_file():
        raise ValueError(
            f"{folder} holds a comparison that was not gathered yet (no results.json); run: "
            f"immiscible compare RECIPE --out {folder} --gather"
        )
    raise ValueError(f"{folder} is not the folder of a comparison (no results.json)")
