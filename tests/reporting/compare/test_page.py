"""The page stands alone, escapes what it is given, and survives what is missing."""

import re
from dataclasses import replace

import pytest

pytest.importorskip("matplotlib")

from immiscible_diffusion.reporting.compare import Comparison, render_page, write_report
from immiscible_diffusion.utils.atomic_files import read_record


def test_the_report_is_one_page_that_fetches_and_runs_nothing(comparison, folder, parsed):
    path = write_report(comparison, folder)
    page = path.read_text(encoding="utf-8")
    structure = parsed(page)
    assert not structure.tags & {"script", "link", "iframe", "object"}
    kinds = [re.match(r"data:image/(\w+)", image["src"])[1] for image in structure.images]
    assert (kinds.count("png"), kinds.count("svg")) == (6 * 4, 4 + 1 + 1 + 5 + 1 + 2)
    assert not re.findall(r"(?:@import|url\((?!#))", page)
    names = {p.name for p in folder.iterdir()}
    assert names == {"grids", "report.html", "results.csv", "results.json", "speedups.csv"}


def test_results_json_makes_the_same_page_again(comparison, folder):
    first = write_report(comparison, folder).read_bytes()
    again = Comparison.from_dict(read_record(folder / "results.json"))
    assert again == comparison
    assert write_report(again, folder).read_bytes() == first


def test_the_page_says_how_it_was_made(comparison, folder):
    page = render_page(comparison, folder)
    for text in (comparison.command, comparison.note, comparison.floor.note, comparison.hardware):
        assert text in page


def test_everything_is_escaped(comparison, folder, parsed):
    evil = '<script>alert("x")</script>&'
    couplings = tuple(replace(e, label=f"{e.label}{evil}") for e in comparison.couplings)
    texts = dict.fromkeys(("recipe", "command", "note", "hardware", "date", "features"), evil)
    floor = replace(comparison.floor, note=evil)
    texts |= {"sampler": evil, "versions": {evil: evil}}
    changed = replace(comparison, couplings=couplings, floor=floor, **texts)
    page = render_page(changed, folder)
    assert "script" not in parsed(page).tags
    assert "&lt;script&gt;" in page
    assert "&amp;lt;" not in page  # once is enough


def test_incomplete_comparisons_say_what_is_missing(partial, empty, folder, tmp_path, parsed):
    page = render_page(partial, folder)
    parsed(page)
    assert "This comparison is not complete." in page
    assert "<td>missing</td>" in page
    blank = write_report(empty, tmp_path / "new").read_text(encoding="utf-8")
    assert "No sample grids were recorded." in blank
    assert "Denoising" not in blank
    parsed(render_page(replace(partial, floor=None, accuracy=None, note=""), folder))


def test_a_grid_that_is_no_png_is_refused(comparison, folder):
    (folder / comparison.trials[0].grids["250"]).write_bytes(b"GIF89a")
    with pytest.raises(ValueError, match="is not a PNG"):
        write_report(comparison, folder)
    assert not (folder / "report.html").exists()
    assert not (folder / "results.json").exists()
