"""One page of everything that GPUs measured so far.

    python benchmarks/gpu/report.py docs/results/gpu docs/results/gpu.md
    python benchmarks/gpu/report.py docs/results/gpu docs/results/gpu.md --html runs/gpu     # with the curves

Comparisons of one recipe are put together, whichever runs and cards their seeds are of; of the other tables a card's
last run counts. What they say, ``notes.txt`` in the folder, stands first.
"""

import argparse
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from immiscible_diffusion.reporting.compare import Comparison, speedup_markdown, write_report
from immiscible_diffusion.reporting.compare.summary import missing, sentences
from immiscible_diffusion.reporting.compare.tables import interval_text, markdown_escaped
from immiscible_diffusion.utils.atomic_files import read_record, write_text
from immiscible_diffusion.utils.statistics import mean_interval


def page(records: list[dict[str, Any]], notes: str = "") -> str:
    """Return the page in markdown, the ``notes`` first."""
    blocks = ["# Measured on GPUs", notes] if notes else ["# Measured on GPUs"]
    tables = {(name, values["card"]): (rows, values) for values in records for name, rows in values["tables"].items()}
    for (name, _), (rows, values) in sorted(tables.items()):
        blocks += [f"## {name}", table(rows), source([values])]
    for group in groups(records):
        merged = together([Comparison.from_dict(values["comparison"]) for values in group])
        blocks += [f"## {merged.recipe}", " ".join(sentences(merged)), speedup_markdown(merged).strip()]
        blocks += [f"{merged.metric} at the end, mean over seeds with 95% interval:", table(finals(merged))]
        blocks += [f"- {line}" for line in missing(merged)] + [source(group)]
    return "\n\n".join(blocks)


def groups(records: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return the records with comparisons, those of equal recipes together."""
    found: list[list[dict[str, Any]]] = []
    for values in records:
        if not values["comparison"]:
            continue
        same = [group for group in found if group[0]["recipe"] == values["recipe"]]
        same[0].append(values) if same else found.append([values])
    return found


def together(parts: list[Comparison]) -> Comparison:
    """Return one comparison with the trials of all; of one trained twice the first counts."""

    def union(lists: Iterable[Iterable[Any]], key: Any) -> tuple[Any, ...]:
        return tuple({key(each): each for each in reversed([each for part in lists for each in part])}.values())[::-1]

    return replace(
        parts[-1],
        couplings=union((part.couplings for part in parts), lambda each: each.name),
        trials=union((part.trials for part in parts), lambda each: (each.coupling, each.seed)),
        variants=union(
            (part.variants for part in parts),
            lambda each: (each.coupling, each.seed, each.sampling_steps, each.option, each.setting),
        ),
        hardware="; ".join(sorted({part.hardware for part in parts})),
    )


def finals(comparison: Comparison) -> list[dict[str, Any]]:
    """Return a row for each coupling: its last metrics, or with guidance its best weight's, and what a step took."""
    rows = []
    for entry in comparison.couplings:
        trials = comparison.trials_of(entry.name)
        last = [metrics for trial in trials for metrics in trial.metrics if metrics.step == comparison.total_steps]
        row: dict[str, Any] = {"coupling": entry.name, "seeds": len(trials)}
        for steps in comparison.sampling_steps:
            values = {1.0: [m.value for m in last if m.sampling_steps == steps and m.value is not None]}
            for each in comparison.variants:
                if (each.coupling, each.sampling_steps) == (entry.name, steps):
                    values.setdefault(each.setting, []).append(each.frechet)
            means = {weight: mean_interval(some) for weight, some in values.items() if some}
            best = min(means, key=lambda weight: means[weight].value, default=None)
            text = "-" if best is None else interval_text(means[best])
            row[comparison.steps_text(steps)] = text + (f", weight {best:g}" if comparison.variants and means else "")
        if scores := [metrics.score for metrics in last if metrics.score is not None]:
            row["score"] = interval_text(mean_interval(scores))
        times = [trial for trial in trials if trial.seconds_per_step and trial.pairing_share is not None]
        row["steps/s"] = len(times) / sum(t.seconds_per_step for t in times) if times else None
        row["waiting for pairing"] = f"{sum(t.pairing_share for t in times) / len(times):.1%}" if times else None
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return ``rows`` with the same keys as a table in markdown."""

    def text(value: Any) -> str:
        return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else markdown_escaped(str(value))

    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([text(row[name]) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def source(group: list[dict[str, Any]]) -> str:
    """Return where the figures of ``group`` are from."""
    parts = ("card", "torch", "commit", "command")
    return "; ".join(dict.fromkeys(", ".join(f"{name} {values[name]}" for name in parts) for values in group)) + "."


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the records")
    parser.add_argument("page", type=Path, help="the page to write")
    parser.add_argument("--html", type=Path, help="also a page with curves for every comparison, in this folder")
    options = parser.parse_args(arguments)
    records = [read_record(file) for file in sorted(options.folder.glob("step*.json"))]
    if not records:
        raise ValueError(f"{options.folder} has no step*.json; campaign.py writes them")
    notes = options.folder / "notes.txt"
    write_text(options.page, page(records, notes.read_text("utf-8").strip() if notes.exists() else "") + "\n")
    for group in groups(records) if options.html else []:
        merged = together([Comparison.from_dict(values["comparison"]) for values in group])
        write_report(merged, options.html / merged.recipe)


if __name__ == "__main__":
    main()
