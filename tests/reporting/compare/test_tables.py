"""Tables hold the record's figures: CSV files, LaTeX that balances, markdown."""

import re
from dataclasses import replace
from io import StringIO

import pandas as pd
import pytest

from immiscible_diffusion.reporting.compare import csv_tables, latex_table, speedup_markdown
from immiscible_diffusion.reporting.compare.controls import share_table
from immiscible_diffusion.reporting.compare.speedup import speedup, speedups
from immiscible_diffusion.reporting.compare.tables import (
    cost_table,
    latex_escaped,
    metric_table,
    over_seeds,
    paper_table,
    savings_table,
    verdict_table,
)


def read(text):
    return pd.read_csv(StringIO(text), dtype={"frechet": str, "speedup": str, "low": str})


def test_csv_rows_are_tidy_and_agree_with_the_record(comparison):
    files = csv_tables(comparison)
    results = read(files["results.csv"])
    assert len(results) == sum(len(trial.metrics) for trial in comparison.trials)
    assert not results.duplicated(["coupling", "seed", "step", "sampling_steps"]).any()
    assert float(results.frechet[0]) == comparison.trials_of("independent")[0].metrics[0].frechet
    assert ",20,20," in files["results.csv"]  # whole numbers stay whole
    table = read(files["speedups.csv"]).set_index(["saves", "coupling", "sampling_steps", "seed"])
    assert len(table) == 5 * (4 + 3) * (3 + 1)
    row, expected = table.loc["training", "assignment", 20, "all"], speedup(comparison, "assignment", 20)
    assert (float(row.speedup), float(row.low)) == (expected.steps.value, expected.steps.low)
    assert row.verdict == expected.verdict


def test_csv_files_of_nothing_have_their_columns(empty, partial):
    for record in (empty, partial, replace(empty, couplings=empty.couplings[:1])):
        files = csv_tables(record)
        assert files["results.csv"].startswith("coupling,label,seed,step,sampling_steps,nfe,frechet")
    assert len(read(csv_tables(empty)["speedups.csv"])) == 5 * (4 + 3)


def test_the_tables_of_the_page_have_a_row_for_each_coupling(comparison, partial):
    for record in (comparison, partial):
        labels, results = [entry.label for entry in record.couplings], speedups(record)
        assert list(cost_table(record).Coupling) == labels
        for saves in ("training", "sampling"):
            assert list(savings_table(record, results, saves).Coupling) == labels[1:]
        assert len(metric_table(record)) == 4 * len(record.couplings)
        assert len(verdict_table(record, results)) == (4 + 3) * len(labels[1:])
        assert len(share_table(record)) == 2
    table = metric_table(comparison).set_index(["Coupling", "Sampling steps"])
    last = [t.metrics[-1].frechet for t in comparison.trials_of("assignment")]
    value = float(table.loc[("linear assignment, B=256", 100), "frechet"])
    assert value == pytest.approx(sum(last) / 3, rel=5e-3)


def test_means_are_over_the_longest_runs_at_the_steps_they_share():
    frame = over_seeds([{1: 8.0, 2: 4.0, 4: 1.0}, {1: 2.0, 4: 4.0}, {1: 99.0}], geometric=True)
    assert list(frame.index) == [1, 4]
    assert list(frame["mean"]) == pytest.approx([4.0, 2.0])
    assert (list(frame.low), list(frame.high)) == ([2.0, 1.0], [8.0, 4.0])
    assert over_seeds([{}, {}]).empty


def rows_of(text):
    return [line for line in text.splitlines() if line.endswith(r"\\") and "&" in line]


def test_every_latex_row_has_every_column_and_every_environment_ends(comparison):
    text = latex_table(comparison)
    rows = rows_of(text)
    assert len(rows) == 1 + len(comparison.sampling_steps) * len(comparison.couplings)
    assert {len(re.split(r"(?<!\\)&", row)) for row in rows} == {7}
    for kind in ("table", "tabular"):
        assert text.count(f"\\begin{{{kind}}}") == text.count(f"\\end{{{kind}}}") == 1
    bare = re.sub(r"\\[{}]", "", "\n".join(text.splitlines()[1:]))
    assert bare.count("{") == bare.count("}")
    assert text.startswith(f"% {comparison.command}\n")
    assert text.count("(headline)") == len(comparison.couplings)


def test_latex_figures_are_those_of_the_page(comparison):
    rows = rows_of(latex_table(comparison))
    expected = paper_table(comparison)["Training steps"][: len(comparison.couplings)]
    texts = [row.split(" & ")[2] for row in rows[1 : 1 + len(expected)]]
    assert texts == [latex_escaped(value) for value in expected]
    assert any("--" in value for value in texts)


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("50% & $x_1$ #2", r"50\% \& \$x\_1\$ \#2"),
        (r"a\b{c}", r"a\textbackslash{}b\{c\}"),
        ("~2^3 < 4\n> 1", r"\textasciitilde{}2\textasciicircum{}3 \textless{} 4 \textgreater{} 1"),
    ],
)
def test_special_characters_are_printed(text, printed):
    assert latex_escaped(text) == printed


def test_latex_and_markdown_survive_trials_that_are_not_there(partial, empty):
    assert len(rows_of(latex_table(empty))) == 1 + len(empty.sampling_steps) * len(empty.couplings)
    assert "halves" not in latex_table(replace(partial, floor=None, note=""))
    assert "| - |" in speedup_markdown(partial)


def test_the_markdown_table_has_a_row_per_coupling_and_its_command(comparison):
    text = speedup_markdown(comparison)
    lines = text.splitlines()
    columns = [line.count("|") - line.count("\\|") for line in lines if line.startswith("|")]
    assert columns == [6] * (2 + 6) + [5] * (2 + 5)  # with the fewest sampling steps nothing can be saved
    assert sum(line.startswith("| linear assignment") for line in lines) == 2  # training steps and sampling steps
    assert "**20** Euler steps" in lines[0]
    assert "KNN k=64 \\<raw\\>" in text
    assert f"`{comparison.command}`" in text


def test_savings_below_the_floor_have_a_mark_in_every_table(comparison):
    hidden = replace(comparison, floor=replace(comparison.floor, low=0.0, high=500.0))
    results = speedups(hidden)
    for saves, count in (("training", 4), ("sampling", 3)):
        cells = savings_table(hidden, results, saves).iloc[:, 1:].to_numpy().ravel()
        assert len(cells) == 5 * count
        assert all("*" in cell or cell.startswith("as with") for cell in cells)
    rows = [line for line in speedup_markdown(hidden).splitlines() if line.startswith("| linear")]
    assert [row.count("\\*") for row in rows] == [4, 3]
    assert all("*" in text for text in paper_table(hidden)["Training steps"] if text != "1")
