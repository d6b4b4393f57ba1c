"""The LaTeX table: LaTeX that balances, the same figures as the page's tables, names escaped."""

import re
from dataclasses import replace

import pytest

from immiscible_diffusion.reporting.compare.latex import COLUMNS, escaped, latex_table
from immiscible_diffusion.reporting.compare.tables import speedup_table


def rows_of(text):
    return [line for line in text.splitlines() if line.endswith(r"\\") and "&" in line]


def test_every_row_has_every_column_and_every_environment_ends(comparison):
    text = latex_table(comparison)
    rows = rows_of(text)
    assert len(rows) == 1 + len(comparison.sampling_steps) * len(comparison.couplings)
    assert {len(re.split(r"(?<!\\)&", row)) for row in rows} == {len(COLUMNS)}
    for kind in ("table", "tabular"):
        assert text.count(f"\\begin{{{kind}}}") == text.count(f"\\end{{{kind}}}") == 1
    bare = re.sub(r"\\[{}]", "", "\n".join(text.splitlines()[1:]))
    assert bare.count("{") == bare.count("}")
    assert text.startswith(f"% {comparison.command}\n")


def test_figures_are_those_of_the_page(comparison):
    rows = rows_of(latex_table(comparison))
    header, wanted = speedup_table(comparison, comparison.sampling_steps[0])
    assert rows[0] == " & ".join(COLUMNS) + r" \\"
    speedups = [row[header.index("Speed-up in steps")] for row in wanted]
    shown = [row.split(" & ")[1] for row in rows[1 : 1 + len(wanted)]]
    assert shown == [re.sub(r"(?<=\d) to (?=\d)", "--", escaped(value)) for value in speedups]
    assert any("--" in value for value in shown)


def test_the_headline_budget_is_named_once(comparison):
    text = latex_table(comparison)
    assert text.count(", headline}") == 1
    assert f"\\emph{{{comparison.headline_steps} Euler steps, headline}}" in text


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("50% & $x_1$ #2", r"50\% \& \$x\_1\$ \#2"),
        (r"a\b{c}", r"a\textbackslash{}b\{c\}"),
        ("~2^3 < 4\n> 1", r"\textasciitilde{}2\textasciicircum{}3 \textless{} 4 \textgreater{} 1"),
    ],
)
def test_special_characters_are_printed(text, printed):
    assert escaped(text) == printed


def test_it_survives_runs_that_are_not_there(partial, empty):
    assert rows_of(latex_table(partial))
    assert len(rows_of(latex_table(empty))) == 1 + len(empty.sampling_steps) * len(empty.couplings)
    without_floor = latex_table(replace(partial, floor=None, note=""))
    assert "halves" not in without_floor
