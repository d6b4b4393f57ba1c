"""The tables of docs/results and of the README are those of the records beside them."""

import json

import pytest

from fixtures.commands import check
from helpers import ROOT
from immiscible_diffusion.reporting.compare import Comparison, speedup_markdown
from reproduce.publish import readme_table, with_table

RECORDS = sorted(ROOT.glob("docs/results/*.json"))


def name_of(path):
    return path.stem


def comparison_of(path):
    return Comparison.from_dict(json.loads(path.read_text("utf-8")))


@pytest.mark.parametrize("record", RECORDS, ids=name_of)
def test_a_page_has_the_table_of_its_record_and_the_command_that_made_it(record):
    page, comparison = record.with_suffix(".md").read_text("utf-8"), comparison_of(record)
    assert with_table(page, speedup_markdown(comparison)) == page
    check(comparison.command)
    assert all(trial.finished for trial in comparison.trials)


def test_the_readme_has_the_table_of_a_record_and_its_size():
    readme = (ROOT / "README.md").read_text("utf-8")
    assert with_table(readme, readme_table(comparison_of(ROOT / "docs/results/digits-flow.json"))) == readme
    assert len(readme.splitlines()) <= 130
    assert max(map(len, readme.splitlines())) <= 100


@pytest.mark.parametrize("file", [*RECORDS, *ROOT.glob("docs/images/*")], ids=lambda path: path.name)
def test_committed_files_are_small(file):
    assert file.stat().st_size < (600_000 if file.suffix == ".json" else 300_000)
