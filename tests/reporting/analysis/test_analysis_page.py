"""The page of an analysis stands alone, says what the numbers say, and survives what is missing."""

import copy
import json
import math
import re
from itertools import cycle
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib")

from immiscible_diffusion.reporting.analysis import (
    budget,
    head,
    mixing,
    noise,
    render_analysis_page,
    write_analysis_page,
)

SECTIONS = (
    "How mixed the data are",
    "What the best possible network would predict",
    "What is distorted: the law of the noise",
    "The budget",
    "How this was made",
)
AXES = (
    "t (0 = data, 1 = noise); levels evenly spaced",
    "effective number of images",
    "probability",
    "irreducible loss per dimension",
    "share of the loss without pairing",
    "surprise less entropy (nats; exact: 0)",
    "|n|² / D (1 for N(0, I))",
    "standard deviations (0 without pairing)",
    "KL, nats (0 for N(0, I))",
    "variance of the noise (1 for N(0, I))",
    "leading direction of the data (1 = most spread)",
    "class",
    "nats",
)


@pytest.fixture
def undrawn(monkeypatch):
    """Leave out the drawing, which takes most of the time."""
    drawers = {
        budget: ["budget_bars"],
        head: ["rows_of_bars"],
        mixing: ["by_level"],
        noise: ["by_class", "by_direction", "rows_of_points"],
    }
    for module, names in drawers.items():
        for name in names:
            monkeypatch.setattr(module, name, lambda *_, **__: "")


def coupling(analysis, name):
    return next(each for each in analysis["couplings"] if each["name"] == name)


def test_the_page_fetches_and_runs_nothing_and_has_every_picture(analysis_page, parsed):
    page = analysis_page.read_text(encoding="utf-8")
    structure = parsed(page)
    assert not structure.tags & {"script", "link", "iframe", "object"}
    # Truth, and two for each level.
    assert len(structure.images) == 3 * (1 + 2 * 4)
    assert all(image["src"].startswith("data:image/png;base64,") for image in structure.images)
    assert all(image["alt"] for image in structure.images)
    assert "missing</span>" not in page
    assert not re.findall(r"(?:@import|url\((?!#))", page)


def test_sections_come_in_order_and_every_axis_is_named(analysis_page):
    page = analysis_page.read_text(encoding="utf-8")
    places = [page.index(f"<h2>{title}</h2>") for title in SECTIONS]
    assert places == sorted(places)
    plots = re.findall(r"<svg role.*?</svg>", page, re.DOTALL)
    words = {text for plot in plots for text in ElementTree.fromstring(plot).itertext()}
    for label in AXES:
        assert label in words
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert all('aria-label="' in plot for plot in plots)


def test_it_begins_with_what_was_found(analysis, analysis_folder, undrawn):
    page = render_analysis_page(analysis, analysis_folder)
    said = (
        analysis["given_summary"],
        "Given the label: without pairing a point at t = 0.98 may come from 180 of 180 images",
        "Without pairing a point at t = 0.98 may come from 1,790 of 1,797 images; with knn:k=64 "
        "from 736 ± 5; with assignment (estimated) from 43.0 ± 5.0.",
        "still loses 0.130 per dimension at t = 0.4 without pairing; with knn:k=64 0.0200 (-85%)",
        "takes log 1,797 = 7.49 nats; the noise of knn:k=64 tells 1.000 ± 0.020",
        "KL from N(0, I): with knn:k=64 2.175 ± 0.020 nats.",
        "Nothing is recommended; what is known",
        "It is not known what helps.",
    )
    places = [page.index(sentence) for sentence in said]
    assert places == sorted(places)
    assert places[-1] < page.index("<h2>")
    analysis["advice"] = {"recommends": True, "sentences": ["Use KNN."]}
    assert "What is recommended</b><ul><li>Use KNN." in render_analysis_page(
        analysis, analysis_folder
    )


def test_estimates_are_named_with_what_they_are_wrong_by(analysis, analysis_folder, undrawn):
    page = render_analysis_page(analysis, analysis_folder)
    note = page[page.index("Not a closed form.") :]
    assert "it is estimated from 20,000 pairs" in note
    assert "is up to -0.300 ± 0.054 nats" in note
    assert "off by a factor of about 1.35" in note
    assert page.count("assignment (estimated)") > 10
    assert "a KL of -0.200 ± 0.020 nats, below 0, cannot be" in page
    assert "Not known for assignment (estimated): the estimate comes out below 0." in page
    del analysis["couplings"][2]
    assert "Not a closed form" not in render_analysis_page(analysis, analysis_folder)


def test_an_estimate_that_failed_has_no_figure(analysis, analysis_folder, undrawn):
    found = coupling(analysis, "assignment")
    found["noise"]["kl"] = {"value": 5.09, "error": 0.2}
    found["noise"]["per_label"]["0"]["kl"] = {"value": 6.11, "error": 0.2}
    for level in found["miscibility"]["levels"]:
        level["surprise"]["value"] += 9
    page = render_analysis_page(analysis, analysis_folder)
    opening = page[: page.index("<h2>")]
    assert "The density of assignment could not be estimated on these data" in opening
    assert "assignment (estimate failed)" not in opening
    assert "5.09" not in page
    assert "6.11" not in page
    assert "The estimate has failed: no figure that comes of it can be used." in page
    found["noise"]["kl"] = {"value": 0.0, "error": 0.0}
    exact = render_analysis_page(analysis, analysis_folder)
    assert "By construction the noise stays N(0, I) with assignment." in exact


def test_what_knn_spends_is_checked(analysis, analysis_folder, undrawn):
    holds = "Check: log k - 1 + 1/k = information + KL holds within the errors."
    assert holds in render_analysis_page(analysis, analysis_folder)
    coupling(analysis, "knn:k=64")["noise"]["information"]["value"] += 0.5
    page = render_analysis_page(analysis, analysis_folder)
    assert holds not in page
    assert "Check failed: log k - 1 + 1/k is not information + KL for knn:k=64." in page


def test_conditions_are_compared_and_classes_have_their_names(analysis, analysis_folder, undrawn):
    page = render_analysis_page(analysis, analysis_folder)
    assert "Effective number of images at t = 0.98, by condition" in page
    assert "<h3>Given a Gaussian kernel on the condition, bandwidth 0.5</h3>" in page
    assert all(f"<td>{name}</td>" in page for name in ("zero", "one", "label 7"))


def changed(values, change):
    """``values`` with every text, number or other leaf put through ``change``."""
    if isinstance(values, dict):
        return {key: changed(value, change) for key, value in values.items()}
    if isinstance(values, list):
        return [changed(value, change) for value in values]
    return change(values)


def test_everything_is_escaped(analysis, analysis_folder, parsed):
    evil = '<script>alert("x")</script>&$\\bad{'
    keys = {"file", "truth", "x_t", "denoised"}

    def spoil(values):
        if isinstance(values, dict):
            return {
                (key + evil if key in ("0", "torch") else key): value
                if key in keys
                else spoil(value)
                for key, value in values.items()
            }
        if isinstance(values, list):
            return [spoil(value) for value in values]
        return values + evil if isinstance(values, str) else values

    page = render_analysis_page(spoil(analysis), analysis_folder)
    assert "script" not in parsed(page).tags
    assert page.count("&lt;script&gt;") > 100


@pytest.mark.parametrize("nasty", [(None,), (math.nan, math.inf), ("x", True), (-1, 0)])
def test_no_number_is_needed(nasty, analysis, analysis_folder, parsed):
    turns = cycle(nasty)

    def spoil(value):
        return next(turns) if isinstance(value, int | float) else value

    values = changed(analysis, spoil) | {"format": 1}
    parsed(render_analysis_page(values, analysis_folder))


def places(values, path=()):
    """Paths to everything inside ``values``; of a list to its first item."""
    items = values.items() if isinstance(values, dict) else enumerate(values[:1])
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def test_no_part_is_needed(analysis, tmp_path, undrawn):
    del analysis["couplings"][2]
    for each in analysis["couplings"]:
        del each["given"][1:], each["miscibility"]["levels"][2:], each["given"][0]["levels"][:]
    for path in places(analysis):
        for nasty in (None, {}, ["x"]):
            values = copy.deepcopy(analysis)
            inside = values
            for key in path[:-1]:
                inside = inside[key]
            inside[path[-1]] = nasty
            if path != ("format",):
                render_analysis_page(values, tmp_path)


def test_empty_analyzes_and_files_that_are_gone_are_said(analysis, tmp_path, parsed, undrawn):
    for values in ({}, {"couplings": []}, {"couplings": [{}]}, {"couplings": [{"name": None}]}):
        parsed(render_analysis_page(values, tmp_path))
    assert '<span class="soft">missing</span>' in render_analysis_page(analysis, tmp_path)
    for each in analysis["couplings"]:
        each["pictures"] = []
    page = render_analysis_page(analysis, tmp_path)
    assert "No pictures were made of data of shape [1, 8, 8]." in page


def test_what_cannot_be_read_is_refused(analysis, analysis_folder, undrawn):
    with pytest.raises(ValueError, match="has format 2"):
        render_analysis_page(analysis | {"format": 2}, analysis_folder)
    (analysis_folder / "pictures" / "d.png").write_bytes(b"GIF89a")
    with pytest.raises(ValueError, match="is not a PNG"):
        write_analysis_page(analysis_folder)
    (analysis_folder / "analysis.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="not valid JSON"):
        write_analysis_page(analysis_folder)
    (analysis_folder / "analysis.json").write_text(json.dumps({"seconds": math.nan}))
    assert write_analysis_page(analysis_folder).is_file()
