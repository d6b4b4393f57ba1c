"""Excess loss on the page, from a record with known values."""

import json
from dataclasses import replace

import pytest

pytest.importorskip("matplotlib")

from immiscible_diffusion.reporting.compare import Comparison, render_page
from immiscible_diffusion.reporting.compare.records import CouplingEntry, Excess, ExcessPoint, Irreducible
from immiscible_diffusion.reporting.compare.summary import excess_remarks
from immiscible_diffusion.reporting.compare.tables import excess_table, final_points, trained_couplings

LEVELS = (0.25, 0.75, 1.0)
FLOOR = (0.1, 0.3, 0.2)


def point(step, size, error=0.01):
    excess = (size, 2 * size, size / 2)
    loss = tuple(a + b for a, b in zip(excess, FLOOR, strict=True))
    return ExcessPoint(step, loss, excess, (error,) * 3, 1.5 * size, error)


def basis(**changes):
    known = ("independent", "knn:k=16,center=mean", "knn:k=64")
    couplings = [Irreducible(name, FLOOR, (0.01,) * 3, FLOOR) for name in known]
    couplings.append(Irreducible("assignment", FLOOR, (0.01,) * 3, FLOOR, "estimated from <pairs>"))
    couplings.append(Irreducible("shuffled(knn:k=64)", skipped="too large: 1e+15"))
    return replace(Excess(LEVELS, 2, 512, 1797, "", tuple(couplings)), **changes)


@pytest.fixture
def measured(comparison):
    known = {entry.coupling for entry in basis().couplings if not entry.skipped}
    trials = [
        replace(trial, excess=(point(250, 0.4), point(6000, 0.1 + 0.02 * trial.seed)))
        if trial.coupling in known
        else trial
        for trial in comparison.trials
    ]
    return replace(comparison, trials=tuple(trials), excess=basis())


def test_the_page_has_both_plots_and_its_remarks(measured, folder, plots):
    page = render_page(measured, folder)
    assert "t (0 = data, 1 = noise)" in plots(page)["Excess loss by t at the last step"]
    assert "training steps" in plots(page)["Excess loss, mean over t"]
    for text in (
        "1,797 training images",
        "estimated from &lt;pairs&gt;",
        "shuffled(knn:k=64): no irreducible loss; too large",
    ):
        assert text in page
    page = render_page(replace(measured, excess=basis(condition="the label")), folder)
    assert "best possible network given the label" in page


def test_the_table_is_of_the_last_step_and_the_mean_over_t(measured):
    table = excess_table(measured).set_index("Coupling")
    size = 0.12  # of seeds 0, 1, 2
    loss = (3 * size + sum(FLOOR[:2])) / 2
    expected = [f"{loss:.3f}", "0.200", f"{1.5 * size:.3f} ± 0.0100", "6,000"]
    assert list(table.loc["independent"]) == expected
    assert table["Irreducible loss"].iloc[-1] == "0.200 (estimated)"
    assert len(final_points(measured, "independent")) == 3


def test_below_zero_is_a_fault_or_a_poor_estimate(measured):
    def with_size(name, size):
        trials = [
            replace(trial, excess=(point(6000, size),)) if trial.coupling == name else trial
            for trial in measured.trials
        ]
        return excess_remarks(replace(measured, trials=tuple(trials)))

    assert not any("below 0" in line for line in excess_remarks(measured))
    assert not any("below 0" in line for line in with_size("independent", -0.015))
    [line] = [line for line in with_size("independent", -0.03) if "below 0" in line]
    assert "t = 0.75, which cannot be" in line
    [line] = [line for line in with_size("assignment", -0.03) if "below 0" in line]
    assert "the estimate of its density falls short" in line


def test_a_matched_start_is_the_same_training(measured):
    entries = (*measured.couplings, CouplingEntry("matched:knn:k=64", "matched"))
    assert "matched:knn:k=64" not in trained_couplings(replace(measured, couplings=entries))
    alone = (measured.couplings[0], entries[-1])
    assert "matched:knn:k=64" in trained_couplings(replace(measured, couplings=alone, trials=()))


def test_values_below_zero_are_drawn(measured, folder):
    trials = [replace(c, excess=(point(6000, -0.001),)) if c.excess else c for c in measured.trials]
    assert "Excess loss by t" in render_page(replace(measured, trials=tuple(trials)), folder)


def test_records_come_back_and_pages_without_excess_losses_have_no_section(measured, comparison, folder):
    assert Comparison.from_dict(json.loads(json.dumps(measured.to_dict()))) == measured
    assert "Excess loss" not in render_page(comparison, folder)
    only = basis(couplings=(Irreducible("independent", skipped="too large"),))
    page = render_page(replace(comparison, excess=only), folder)
    assert "no irreducible loss; too large" in page
    assert "Excess loss by t" not in page
