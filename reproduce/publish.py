"""Keep a comparison's figures in docs/results: a small record, and its table in the page beside it.

    python -m reproduce.publish runs/compare/digits-flow docs/results/digits-flow.md

Writes docs/results/digits-flow.json, which ``immiscible report`` draws the whole page from (less pictures and losses),
and puts the table between the page's two lines ``<!-- table -->``. A test holds the two equal.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from immiscible_diffusion.reporting.compare import Comparison, speedup_markdown
from immiscible_diffusion.utils.atomic_files import read_json, write_text

MARK = "<!-- table -->"


def small(comparison: Comparison) -> Comparison:
    """The comparison without losses and pictures."""
    trials = (
        replace(t, training=(), validation=(), grids=None, trajectory=None, excess=()) for t in comparison.trials
    )
    return replace(comparison, trials=tuple(trials), excess=None, video=None)


def compact(value: Any) -> Any:
    """JSON values without what is None, and with five digits."""
    if isinstance(value, dict):
        return {key: compact(item) for key, item in value.items() if item is not None or key in ("accuracy", "floor")}
    if isinstance(value, list):
        return [compact(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def with_table(page: str, comparison: Comparison) -> str:
    """``page`` with the comparison's table between its two marks."""
    parts = page.split(MARK)
    if len(parts) != 3:
        raise ValueError(f"expected two lines {MARK} in the page, got {len(parts) - 1}")
    return f"{parts[0]}{MARK}\n\n{speedup_markdown(comparison).strip()}\n\n{MARK}{parts[2]}"


def main() -> None:
    """Write record and table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the comparison, with results.json")
    parser.add_argument("page", type=Path, help="the markdown page; the record goes beside it")
    options = parser.parse_args()
    record = compact(small(Comparison.from_dict(read_json(options.folder / "results.json"))).to_dict())
    page = with_table(options.page.read_text("utf-8"), Comparison.from_dict(record))
    write_text(options.page.with_suffix(".json"), json.dumps(record, separators=(",", ":")) + "\n")
    write_text(options.page, page)


if __name__ == "__main__":
    main()
