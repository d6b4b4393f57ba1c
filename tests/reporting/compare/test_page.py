"""The page stands alone, escapes what it is given, and survives what is missing."""

import csv
import re
from dataclasses import replace

import pytest

pytest.importorskip("matplotlib")

from immiscible_diffusion.reporting.compare import (
    Comparison,
    render_page,
    speedup,
    speedup_markdown,
    write_report,
)
from immiscible_diffusion.reporting.compare.plots import NOT_COMPARABLE
from immiscible_diffusion.utils.atomic_files import read_json


def test_the_report_is_one_page_that_fetches_and_runs_nothing(comparison, folder, parsed):
    path = write_report(comparison, folder)
    page = path.read_text(encoding="utf-8")
    structure = parsed(page)
    assert not structure.tags & {"script", "link", "iframe", "object"}
    assert len(structure.images) == 6 * 4
    assert all(image["src"].startswith("data:image/png;base64,") for image in structure.images)
    assert not re.findall(r"(?:@import|url\((?!#))", page)
    names = {p.name for p in folder.iterdir()}
    assert names == {"grids", "report.html", "results.csv", "results.json", "speedups.csv"}


def test_results_json_makes_the_same_page_again(comparison, folder):
    first = write_report(comparison, folder).read_bytes()
    again = Comparison.from_dict(read_json(folder / "results.json"))
    assert again == comparison
    assert write_report(again, folder).read_bytes() == first


def test_the_page_says_how_it_was_made_and_what_limits_it(comparison, folder):
    page = render_page(comparison, folder)
    assert comparison.command in page
    assert page.count(comparison.note) >= 7  # in every caption
    assert page.count("Floor (gray): two random halves of the real set (898 each)") >= 5
    assert NOT_COMPARABLE in page
    assert page.index("fewer with") < page.index("<svg")


def test_everything_is_escaped(comparison, folder, parsed):
    evil = '<script>alert("x")</script>&'
    couplings = tuple(replace(e, label=f"{e.label}{evil}") for e in comparison.couplings)
    texts = dict.fromkeys(("recipe", "command", "note", "hardware", "date", "features"), evil)
    changed = replace(comparison, couplings=couplings, sampler=evil, versions={evil: evil}, **texts)
    assert "script" not in parsed(render_page(changed, folder)).tags


def test_incomplete_comparisons_say_what_is_missing(partial, empty, folder, tmp_path, parsed):
    page = render_page(partial, folder)
    parsed(page)
    assert "This comparison is not complete." in page
    assert "linear assignment, B=256: no run of seeds 1 and 2." in page
    assert '<span class="soft">missing</span>' in page
    blank = write_report(empty, tmp_path / "new").read_text(encoding="utf-8")
    assert "No run has been evaluated yet." in blank
    assert "No sample grids were recorded." in blank
    assert "Denoising" not in blank
    parsed(render_page(replace(partial, floor=None, accuracy=None, note=""), folder))


def test_a_grid_that_is_no_png_is_refused(comparison, folder):
    (folder / comparison.cells[0].grids["250"]).write_bytes(b"GIF89a")
    with pytest.raises(ValueError, match="is not a PNG"):
        write_report(comparison, folder)
    assert not (folder / "report.html").exists()
    assert not (folder / "results.json").exists()


def test_csv_rows_are_tidy_and_agree_with_the_record(comparison, folder):
    write_report(comparison, folder)
    with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(cell.quality) for cell in comparison.cells)
    keys = {(r["coupling"], r["seed"], r["step"], r["budget"]) for r in rows}
    assert len(keys) == len(rows)
    assert float(rows[0]["frechet"]) == comparison.cells_of("independent")[0].quality[0].frechet
    with (folder / "speedups.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    whole = next(
        r for r in rows if (r["coupling"], r["budget"], r["seed"]) == ("assignment", "20", "all")
    )
    expected = speedup(comparison, "assignment", 20)
    assert float(whole["speedup"]) == expected.steps.value
    assert (float(whole["low"]), whole["verdict"]) == (expected.steps.low, expected.verdict)
    assert len(rows) == 5 * 4 * (3 + 1)


def test_the_markdown_table_has_a_row_per_coupling_and_its_command(comparison, partial):
    text = speedup_markdown(comparison)
    lines = text.splitlines()
    assert len({line.count("|") - line.count("\\|") for line in lines[:8]}) == 1
    assert "**20** Euler steps" in lines[0]
    assert "KNN k=64 \\<raw\\>" in text
    assert f"`{comparison.command}`" in text
    assert "| - |" in speedup_markdown(partial)
