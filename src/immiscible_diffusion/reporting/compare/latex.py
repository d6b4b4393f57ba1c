"""The speed-ups and final qualities of a comparison as a LaTeX table."""

import re

from immiscible_diffusion.reporting.compare.results import Comparison
from immiscible_diffusion.reporting.compare.tables import speedup_table

COLUMNS = ("Coupling", "Speed-up in steps", "Final", "Ratio to baseline", "Seeds")
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{character: "\\" + character for character in "&%$#_{}"},
}
_RANGE = re.compile(r"(?<=\d) to (?=\d)")


def latex_table(comparison: Comparison) -> str:
    """A ``table`` environment (package booktabs), a block of rows for every sampling budget.

    Couplings whose difference from the baseline the floor hides carry an asterisk. The caption says
    what is compared, on what, and how sure it is; a comment names the command that made it.
    """
    lines = [
        f"% {' '.join(comparison.command.split())}",
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{_caption(comparison)}}}",
        f"\\label{{tab:{re.sub(r'[^A-Za-z0-9-]', '-', comparison.recipe)}}}",
        "\\begin{tabular}{llllr}",
        "\\toprule",
        _row(COLUMNS),
    ]
    for budget in comparison.sampling_steps:
        lines += ["\\midrule", *_block(comparison, budget)]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", "\\end{table}", ""])


def escaped(text: str) -> str:
    """``text`` as LaTeX prints it, on one line."""
    return "".join(_SPECIAL.get(character, character) for character in " ".join(text.split()))


def _block(comparison: Comparison, budget: int) -> list[str]:
    header, rows = speedup_table(comparison, budget)
    titles = [f"Final {comparison.measure_name}" if name == "Final" else name for name in COLUMNS]
    chosen = [header.index(title) for title in titles]
    steps = f"{budget} {comparison.sampler_name} step{'s' if budget > 1 else ''}"
    if budget == comparison.headline_steps:
        steps += ", headline"
    title = f"\\multicolumn{{{len(COLUMNS)}}}{{l}}{{\\emph{{{escaped(steps)}}}}} \\\\"
    return [title, *(_row([row[column] for column in chosen]) for row in rows)]


def _row(cells: list[str] | tuple[str, ...]) -> str:
    return " & ".join(_RANGE.sub("--", escaped(cell)) for cell in cells) + r" \\"


def _caption(comparison: Comparison) -> str:
    seeds = len(comparison.seeds)
    text = (
        f"{comparison.recipe}: training steps to equal quality against "
        f"{comparison.baseline.label} (speed-up, above 1 is faster) and final {comparison.measure} "
        f"(lower is better); in brackets 95% intervals over {seeds} "
        f"seed{'s' if seeds != 1 else ''}, not corrected for the number of comparisons. "
        f"{comparison.total_steps:,} steps of batch {comparison.batch_size:,} on "
        f"{comparison.dataset.name} ({comparison.dataset.count:,} data); {comparison.samples:,} "
        f"samples, features {comparison.features}."
    )
    if comparison.floor is not None:
        note = comparison.floor.note
        text += f" Floor: {note}; *: that hides the difference from the baseline."
    if comparison.sampling:
        text += f" Sampling: {comparison.sampling}."
    if comparison.note:
        text += f" ({comparison.note})"
    return _RANGE.sub("--", escaped(text))
