"""Keep a comparison's figures in docs/results: a small record, and its table in the page beside it.

    python -m reproduce.publish runs/compare/digits-flow docs/results/digits-flow.md
    python -m reproduce.publish --readme docs/results/digits-flow.json README.md

The first writes docs/results/digits-flow.json, a results.json without losses and pictures, and puts the table between
the page's two lines ``<!-- table -->``; the second puts a shorter one into the README. Tests hold them equal.
"""

import argparse
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from immiscible_diffusion.reporting.compare import Comparison, speedup_markdown
from immiscible_diffusion.reporting.compare.speedup import Speedup, speedup
from immiscible_diffusion.utils.atomic_files import read_record, write_text

MARK = "<!-- table -->"
README_STEPS = (5, 20, 100)
README_COUPLINGS = {
    "assignment": "assignment",
    "calibrated:knn:k=64": "KNN k = 64, calibrated",
    "matched:knn:k=16": "KNN k = 16, matched start",
    "knn:k=4": "KNN k = 4",
    "shuffled:calibrated:knn:k=64": "k = 64, shuffled",
}


def small(comparison: Comparison) -> Comparison:
    """The comparison without losses, pictures and further metrics, its command without what is of one machine."""
    rest = dict.fromkeys(("nfe", "kid", "kid_error", "precision", "recall", "density", "coverage", "memorization"))
    trials = []
    for trial in comparison.trials:
        metrics = tuple(replace(each, **rest) for each in trial.metrics)
        trial = replace(trial, metrics=metrics, training=(), validation=(), excess=(), grids=None, trajectory=None)
        trials.append(trial)
    command = re.sub(r" --((out|workers|device) \S+|gather)", "", comparison.command)
    return replace(comparison, trials=tuple(trials), excess=None, video=None, command=command)


def compact(value: Any) -> Any:
    """JSON values without what is None, and with four digits."""
    if isinstance(value, dict):
        return {
            key: compact(item)
            for key, item in value.items()
            if item is not None or key in ("accuracy", "floor", "gain")
        }
    if isinstance(value, list):
        return [compact(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def with_table(page: str, table: str) -> str:
    """``page`` with ``table`` between its two marks."""
    parts = page.split(MARK)
    if len(parts) != 3:
        raise ValueError(f"expected two lines {MARK} in the page, got {len(parts) - 1}")
    return f"{parts[0]}{MARK}\n\n{table.strip()}\n\n{MARK}{parts[2]}"


def readme_table(comparison: Comparison) -> str:
    """Training steps saved at three numbers of sampling steps, and sampling steps saved for the second of them."""
    columns = [f"{n} Euler steps" for n in README_STEPS]
    lines = [f"| coupling | {' | '.join(columns)} | sampling, 20 |", "|---" * (len(columns) + 2) + "|"]
    for name, label in README_COUPLINGS.items():
        results = [speedup(comparison, name, n) for n in README_STEPS]
        results.append(speedup(comparison, name, README_STEPS[1], saves="sampling"))
        lines.append(f"| {label} | {' | '.join(short_text(result) for result in results)} |")
    return "\n".join(lines)


def short_text(result: Speedup) -> str:
    """'1.7 (1.5-2.1)', with * where the floor hides the difference."""
    steps, mark = result.steps, "\\*" * result.hidden
    if steps is None or result.bound:
        return f"{result.bound} {steps.value:.2g}{mark}" if steps else "-"
    value, low, high = (f"{part:#.2g}".removesuffix(".") for part in (steps.value, steps.low, steps.high))
    return f"{value} ({low}-{high}){mark}"


def main() -> None:
    """Write record and table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of the comparison; with --readme a record")
    parser.add_argument("page", type=Path, help="the markdown page; the record goes beside it")
    parser.add_argument("--readme", action="store_true")
    options = parser.parse_args()
    page = options.page.read_text("utf-8")
    if options.readme:
        write_text(options.page, with_table(page, readme_table(Comparison.from_dict(read_record(options.source)))))
        return
    record = compact(small(Comparison.from_dict(read_record(options.source / "results.json"))).to_dict())
    page = with_table(page, speedup_markdown(Comparison.from_dict(record)))
    write_text(options.page.with_suffix(".json"), json.dumps(record, separators=(",", ":")) + "\n")
    write_text(options.page, page)


if __name__ == "__main__":
    main()
