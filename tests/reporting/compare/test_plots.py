"""Plots are deterministic, parse as XML, fetch nothing, and look the same for one coupling."""

import base64
import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib")

from immiscible_diffusion.reporting import plotting
from immiscible_diffusion.reporting.compare import plots
from immiscible_diffusion.reporting.compare.records import CouplingEntry
from immiscible_diffusion.utils.statistics import geometric_interval


def svg(image):
    return base64.b64decode(re.search(r"base64,([^\"]*)", image)[1]).decode()


def drawn(comparison):
    steps = comparison.sampling_steps
    images = [
        *(plots.metric_against_steps(comparison, s) for s in steps),
        plots.metric_against_sampling_steps(comparison),
        *(plots.losses_against_steps(comparison, kind) for kind in ("validation", "training")),
        plots.pairing_cost(comparison),
        plots.legend(comparison),
    ]
    return [svg(image) for image in images]


def test_the_same_numbers_give_the_same_bytes(comparison):
    one, other = (plots.metric_against_steps(comparison, 20) for _ in range(2))
    assert one == other


@pytest.mark.parametrize("kind", ["comparison", "partial", "empty"])
def test_plots_parse_and_fetch_nothing(kind, request):
    allowed = {"http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"}
    for text in drawn(request.getfixturevalue(kind)):
        ElementTree.fromstring(text)
        assert set(re.findall(r'https?://[^"\s]+', text.partition("<svg")[2])) <= allowed


def test_every_line_is_in_the_legend(comparison):
    for image in (plots.metric_against_steps(comparison, 20), plots.metric_plots(comparison)[-1]):
        texts = {element.text for element in ElementTree.fromstring(svg(image)).iter() if element.text}
        assert {entry.label for entry in comparison.couplings} | {"floor"} <= texts


def test_labels_are_never_formulas_or_markup(comparison):
    couplings = tuple(replace(entry, label=f"$\\bad{{{i}</svg>") for i, entry in enumerate(comparison.couplings))
    for text in drawn(replace(comparison, couplings=couplings)):
        assert "\\bad{0&lt;/svg&gt;" in text


def test_the_heat_map_holds_the_ratios_paired_by_seed(comparison):
    ratios = plots.ratios_to_baseline(comparison, "assignment")
    assert set(ratios) == {(step, n) for step in comparison.eval_steps for n in comparison.sampling_steps}
    expected = 1.0
    for one, base in zip(comparison.trials_of("assignment"), comparison.trials_of("independent"), strict=True):
        expected *= (one.metrics[-1].value / base.metrics[-1].value) ** (1 / 3)
    assert ratios[6000, 100].value == pytest.approx(expected)
    texts = [svg(image) for image in plots.heat_maps(comparison)]
    assert len(texts) == 5
    assert f">{expected:.2f}<" in texts[-1]
    for text in texts:
        ElementTree.fromstring(text)


def test_of_many_ratios_only_those_that_survive_holm_are_bold():
    """Twenty equal tests of p = 0.03 each: the intervals exclude 1, and together they show nothing."""
    weak, strong, none = ([math.exp(d + s) for s in (-0.1, 0, 0.1)] for d in (0.321, 10, 0.01))
    ratios = {i: geometric_interval(weak) for i in range(20)}
    assert ratios[0].excludes(1)
    styles = plots.text_styles(ratios | {20: geometric_interval(strong), 21: geometric_interval(none)})
    assert [key for key, style in styles.items() if style["fontweight"] == "bold"] == [20]
    assert [key for key, style in styles.items() if style["color"] != plotting.BASELINE] == [21]
    assert plots.text_styles({0: ratios[0]})[0]["fontweight"] == "bold"
    assert plots.text_styles({0: geometric_interval([2.0])})[0]["fontweight"] == "normal"


def test_a_control_has_the_color_of_its_coupling_and_the_baseline_is_black(comparison):
    styles = plots.styles_of(comparison)
    assert styles["shuffled(knn:k=64)"].color == styles["knn:k=64"].color
    assert styles["shuffled(knn:k=64)"].control
    assert styles["independent"].color == plotting.BASELINE
    treated = [styles[entry.name].color for entry in comparison.treated]
    assert len(set(treated)) == len(treated)


def test_more_couplings_than_colors_differ_by_marker(comparison):
    many = tuple(CouplingEntry(f"c{i}", f"c{i}") for i in range(12))
    record = replace(comparison, couplings=(*many, comparison.couplings[0]), trials=())
    styles = plots.styles_of(record)
    assert len({(style.color, style.marker) for style in styles.values()}) == 13


def test_lines_are_over_the_longest_runs(partial):
    frame = plots.metric_by_step(partial, "knn:k=64", 20)  # seed 2 stops early
    assert tuple(frame.index) == partial.eval_steps
    assert (frame.low <= frame["mean"]).all()
    assert (frame["mean"] <= frame.high).all()


def test_the_loss_is_of_one_kind(comparison):
    with pytest.raises(ValueError, match="expected 'validation' or 'training'"):
        plots.losses_against_steps(comparison, "other")
