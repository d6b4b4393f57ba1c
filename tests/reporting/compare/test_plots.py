"""Plots are deterministic, parse as XML, fetch nothing, and look the same for one coupling."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib")

from immiscible_diffusion.reporting.compare import plots
from immiscible_diffusion.reporting.compare.results import CouplingEntry
from immiscible_diffusion.reporting.compare.series import quality_series


def drawn(comparison):
    return [
        *(plots.quality_against_steps(comparison, budget) for budget in comparison.sampling_steps),
        plots.quality_against_budget(comparison),
        plots.losses_against_steps(comparison, "validation"),
        plots.losses_against_steps(comparison, "training"),
        plots.pairing_cost(comparison),
    ]


def test_the_same_numbers_give_the_same_bytes(comparison):
    assert plots.quality_against_steps(comparison, 20) == plots.quality_against_steps(
        comparison, 20
    )


def test_ids_are_unique_on_one_page_and_nothing_is_fetched(comparison):
    page = f"<page>{''.join(drawn(comparison))}</page>"
    ElementTree.fromstring(page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for used in re.findall(r'(?:url\(|href=")#([^")]+)', page):
        assert used in ids
    assert set(re.findall(r'https?://[^"\s]+', page)) <= {
        "http://www.w3.org/1999/xlink",
        "http://www.w3.org/2000/svg",
    }


@pytest.mark.parametrize("kind", ["partial", "empty"])
def test_incomplete_comparisons_are_drawn(kind, request):
    for svg in drawn(request.getfixturevalue(kind)):
        ElementTree.fromstring(svg)


def test_labels_are_never_formulas_or_markup(comparison):
    couplings = tuple(
        replace(entry, label=f"$\\bad{{{i}</svg>") for i, entry in enumerate(comparison.couplings)
    )
    assert "\\bad{0&lt;/svg&gt;" in plots.pairing_cost(replace(comparison, couplings=couplings))


def test_a_control_has_the_color_of_its_coupling_and_the_baseline_is_black(comparison):
    looks = plots.looks(comparison)
    assert looks["shuffled(knn:k=64)"].color == looks["knn:k=64"].color
    assert looks["shuffled(knn:k=64)"].control
    assert looks["independent"].color == plots.BASELINE
    treated = [looks[entry.name].color for entry in comparison.treated]
    assert len(set(treated)) == len(treated)


def test_more_couplings_than_colors_differ_by_marker(comparison):
    many = tuple(CouplingEntry(f"c{i}", f"c{i}") for i in range(12))
    looks = plots.looks(replace(comparison, couplings=(*many, comparison.couplings[0]), cells=()))
    assert len({(look.color, look.marker) for look in looks.values()}) == 13


def test_series_are_geometric_means_over_the_longest_runs(partial):
    series = quality_series(partial, "knn:k=64", 20)
    assert series.seeds == (0, 1)  # seed 2 stops early
    assert series.x == partial.eval_steps
    for low, mean, high in zip(series.low, series.mean, series.high, strict=True):
        assert mean**2 == pytest.approx(low * high)
    assert quality_series(partial, "shuffled(knn:k=64)", 20) is None


def test_losses_say_that_they_are_not_comparable(comparison):
    for kind in ("validation", "training"):
        assert "not comparable between couplings" in plots.losses_against_steps(comparison, kind)
    with pytest.raises(ValueError, match="kind is 'test'"):
        plots.losses_against_steps(comparison, "test")
