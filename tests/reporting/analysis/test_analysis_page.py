"""The page of an analysis stands alone and shows what the records hold."""

import json
import math
import re
from dataclasses import replace

import pytest

from fixtures.analysis_record import CONDITIONS

pytest.importorskip("matplotlib")

from immiscible_diffusion.reporting.analysis import page, render_analysis_page, write_analysis_page
from immiscible_diffusion.reporting.analysis.records import Mean, read_analysis
from immiscible_diffusion.reporting.analysis.summary import (
    Verdict,
    condition_summary,
    findings,
    summary_lines,
    verdict_of,
)
from immiscible_diffusion.utils.atomic_files import read_record


@pytest.fixture
def undrawn(monkeypatch):
    """Leave out the plots, which take most of the time."""
    for name in ("lines", "points", "fractions", "information_bars"):
        monkeypatch.setattr(page.plots, name, lambda *_, **__: "")


def with_coupling(analysis, name, **changes):
    """``analysis`` with fields of one coupling's record changed."""
    couplings = (replace(c, **changes) if c.name == name else c for c in analysis.couplings)
    return replace(analysis, couplings=tuple(couplings))


def coupling(analysis, name):
    return next(one for one in analysis.couplings if one.name == name)


def test_records_survive_json(analysis, analysis_folder):
    assert read_analysis(analysis_folder / "analysis.json") == analysis


def test_the_page_fetches_and_runs_nothing_and_has_every_image(analysis_page, parsed):
    text = analysis_page.read_text(encoding="utf-8")
    structure = parsed(text)
    assert not structure.tags & {"script", "link", "iframe", "object"}
    plots = [image for image in structure.images if "svg" in image["src"][:20]]
    # Truth, and two for each level, of every coupling.
    assert len(structure.images) - len(plots) == 3 * (1 + 2 * 4)
    # Two at the head; four each without and with two conditions; of estimates; six of the noise
    # and two by class; information.
    assert len(plots) == 2 + 3 * 4 + 1 + 6 + 2 + 1
    assert all(image["src"].startswith("data:image/") for image in structure.images)
    assert all(image["alt"] for image in structure.images)
    assert "missing</span>" not in text
    assert not re.findall(r"(?:@import|url\((?!#))", text)


def test_every_finding_and_figure_is_on_the_page(analysis, analysis_folder, undrawn, parsed):
    text = render_analysis_page(analysis, analysis_folder)
    parsed(text)
    for finding in findings(analysis):
        assert finding.text in text
        assert finding.coupling in text
    for figure in ("1,790", "736", "43.0 ± 5.0", "1.000 ± 0.020", "2.175 ± 0.020", "48.2"):
        assert figure in text
    for name in (*CONDITIONS, "zero", "one", "label 7", "torch 2.13.0", "0.370"):
        assert name in text


def test_verdicts(analysis):
    independent, knn, assignment = analysis.couplings
    assert verdict_of(independent) is Verdict.UNPAIRED
    assert verdict_of(knn) is Verdict.CHANGED
    assert verdict_of(assignment) is Verdict.UNRESOLVED  # below 0
    for kl, verdict in (
        (Mean(0.0, 0.0), Verdict.PRESERVED),
        (Mean(0.4, 0.3), Verdict.UNRESOLVED),
        (Mean(0.004, 0.0001), Verdict.UNRESOLVED),
        (Mean(math.nan, math.nan), Verdict.UNRESOLVED),
    ):
        assert verdict_of(replace(knn, noise=replace(knn.noise, kl=kl))) is verdict


@pytest.mark.parametrize("sign", ["consistency", "information"])
def test_an_estimate_that_failed_has_no_figure(analysis, analysis_folder, undrawn, sign):
    found = coupling(analysis, "assignment")
    noise = replace(found.noise, kl=Mean(5.09, 0.2), information=Mean(6.11, 0.2))
    mixed = found.miscibility
    if sign == "information":
        noise = replace(noise, information=Mean(-2.25, 0.2))
    else:
        levels = [replace(one, nll=Mean(one.entropy.value + 0.6, 0.0)) for one in mixed.levels]
        mixed = replace(mixed, levels=tuple(levels))
    failed = replace(found, noise=noise, miscibility=mixed)
    assert failed.failed
    assert not coupling(analysis, "assignment").failed
    blank = failed.without_figures()
    assert blank.failed
    changes = {name: getattr(blank, name) for name in ("noise", "miscibility", "thumbnails")}
    record = with_coupling(analysis, "assignment", **changes, conditional=blank.conditional)
    text = render_analysis_page(record, analysis_folder)
    for figure in ("5.09", "6.11", "-2.25", "43.0"):
        assert figure not in text
        assert not any(figure in line for line in summary_lines(record))
    assert findings(record)[2].verdict is Verdict.FAILED
    exact = replace(found, miscibility=replace(mixed, estimate=""), conditional=())
    exact = replace(exact, noise=replace(noise, estimate=""))
    assert not exact.failed  # a closed form cannot fail


def test_information_and_kl_of_knn_are_checked(analysis, analysis_folder, undrawn):
    text = render_analysis_page(analysis, analysis_folder)
    assert "holds within the errors" in text
    noise = coupling(analysis, "knn:k=64").noise
    noise = replace(noise, information=Mean(noise.information.value + 0.5, 0.02))
    wrong = with_coupling(analysis, "knn:k=64", noise=noise)
    text = render_analysis_page(wrong, analysis_folder)
    assert "holds within the errors" not in text
    assert "Check failed: information + KL is not log k - 1 + 1/k for knn:k=64." in text


def test_remedies_depend_on_the_coupling(analysis):
    def remedy(record, name):
        record = replace(record, couplings=(replace(coupling(analysis, "knn:k=64"), name=name),))
        return findings(record)[0].text

    assert "calibrated:knn:k=64" in remedy(analysis, "knn:k=64")
    assert "calibrated:calibrated" not in remedy(analysis, "calibrated:knn:k=64")
    assert "--init-noise" not in remedy(analysis, "shuffled:knn:k=64")
    masked = replace(analysis, data=replace(analysis.data, masked=True))
    assert "--init-noise" not in remedy(masked, "knn:k=64")


def test_the_condition_comes_first_and_may_leave_nothing(analysis):
    assert "log 180 = 5.19 nats (5.19 to 5.19 at" in condition_summary(analysis)
    assert summary_lines(analysis)[0] == condition_summary(analysis)
    knn = coupling(analysis, "knn:k=64")
    alone = replace(knn.conditional[0], effective_count=Mean(1.0, 0.0))
    text = condition_summary(replace(analysis, couplings=(replace(knn, conditional=(alone,)),)))
    assert "next to nothing is left" in text
    plain = replace(analysis, couplings=(replace(knn, conditional=()),))
    assert condition_summary(plain) == ""


def test_everything_is_escaped(analysis, analysis_folder, parsed):
    evil = '<script>alert("x")</script>&$\\bad{'

    def spoil(values):
        if isinstance(values, dict):
            return {
                key: value if key in ("truth", "x_t", "denoised") else spoil(value) for key, value in values.items()
            }
        if isinstance(values, list):
            return [spoil(value) for value in values]
        return values + evil if isinstance(values, str) else values

    path = analysis_folder / "analysis.json"
    path.write_text(json.dumps(spoil(read_record(path))), encoding="utf-8")
    text = write_analysis_page(analysis_folder).read_text(encoding="utf-8")
    assert "script" not in parsed(text).tags
    assert text.count("&lt;script&gt;") > 50


def test_unknown_figures_and_one_coupling_are_drawn(analysis, analysis_folder, parsed):
    blank = coupling(analysis, "assignment").without_figures()
    for couplings in ((blank,), analysis.couplings[:1]):
        text = render_analysis_page(replace(analysis, couplings=couplings), analysis_folder)
        assert len(parsed(text).images) > 10


def test_missing_thumbnails_are_marked(analysis, tmp_path, undrawn):
    assert '<span class="soft">missing</span>' in render_analysis_page(analysis, tmp_path)
    bare = tuple(replace(one, thumbnails=()) for one in analysis.couplings)
    text = render_analysis_page(replace(analysis, couplings=bare), tmp_path)
    assert "No images were made of samples of shape [1, 8, 8]." in text


def test_unreadable_folders_are_refused(analysis_folder, undrawn):
    path = analysis_folder / "analysis.json"
    values = read_record(path)
    (analysis_folder / "thumbnails" / "d.png").write_bytes(b"GIF89a")
    with pytest.raises(ValueError, match="is not a PNG"):
        write_analysis_page(analysis_folder)
    for text, expected in (
        ("{", "not valid JSON"),
        (json.dumps(values | {"schema": 1}), "has schema 1, of another release"),
        (json.dumps({"format": 1}), "has schema None, of another release"),
        (json.dumps(values | {"seconds": 1.0}), "seconds"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=expected):
            write_analysis_page(analysis_folder)
