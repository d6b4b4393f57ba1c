"""Excess loss on the page, from a record with known values."""

import json
from dataclasses import replace

import pytest

pytest.importorskip("matplotlib")

from immiscible_diffusion.reporting.compare import (
    Comparison,
    Excess,
    ExcessPoint,
    Irreducible,
    render_page,
)
from immiscible_diffusion.reporting.compare.excess import (
    COMPARABLE,
    excess_section,
    excess_table,
    final_points,
    remarks,
    shown,
)
from immiscible_diffusion.reporting.compare.results import CouplingEntry

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
    cells = [
        replace(cell, excess=(point(250, 0.4), point(6000, 0.1 + 0.02 * cell.seed)))
        if cell.coupling in known
        else cell
        for cell in comparison.cells
    ]
    return replace(comparison, cells=tuple(cells), excess=basis())


def test_the_page_has_both_panels_and_says_what_it_means(measured, folder):
    page = render_page(measured, folder)
    for text in (
        COMPARABLE,
        "Excess loss by t at the last step",
        "t (0 = data, 1 = noise)",
        "training steps",
        "1,797 training images",
        "estimated from &lt;pairs&gt;",
        "shuffled(knn:k=64): no irreducible loss; too large",
    ):
        assert text in page
    assert page.count(measured.note) >= 8
    assert "given the label" in excess_section(
        replace(measured, excess=basis(given="the label")), "", ""
    )


def test_the_table_is_of_the_last_step_and_the_mean_over_t(measured):
    _, rows = excess_table(measured)
    assert rows[0][0] == "independent"
    size = 0.12  # of seeds 0, 1, 2
    loss = (3 * size + sum(FLOOR[:2])) / 2
    assert rows[0][1:] == [f"{loss:.3f}", "0.200", f"{1.5 * size:.3f} ± 0.0100", "6,000"]
    assert rows[-1][2] == "0.200 (estimated)"
    assert len(final_points(measured, "independent")) == 3


def test_below_zero_is_a_fault_or_a_poor_estimate(measured):
    def with_size(name, size):
        cells = [
            replace(cell, excess=(point(6000, size),)) if cell.coupling == name else cell
            for cell in measured.cells
        ]
        return remarks(replace(measured, cells=tuple(cells)))

    assert not any("below 0" in line for line in remarks(measured))
    assert not any("below 0" in line for line in with_size("independent", -0.015))
    [line] = [line for line in with_size("independent", -0.03) if "below 0" in line]
    assert "t = 0.75; that cannot be" in line
    [line] = [line for line in with_size("assignment", -0.03) if "below 0" in line]
    assert "the estimate of its density falls short" in line


def test_a_matched_start_is_the_same_training(measured):
    entries = (*measured.couplings, CouplingEntry("matched:knn:k=64", "matched"))
    assert "matched:knn:k=64" not in shown(replace(measured, couplings=entries))
    alone = (measured.couplings[0], entries[-1])
    assert "matched:knn:k=64" in shown(replace(measured, couplings=alone, cells=()))


def test_values_below_zero_are_drawn(measured, folder):
    cells = [replace(c, excess=(point(6000, -0.001),)) if c.excess else c for c in measured.cells]
    assert "Excess loss by t" in render_page(replace(measured, cells=tuple(cells)), folder)


def test_records_come_back_and_older_ones_still_load(measured, comparison, folder):
    assert Comparison.from_dict(json.loads(json.dumps(measured.to_dict()))) == measured
    record = comparison.to_dict()
    del record["excess"]
    for cell in record["cells"]:
        del cell["excess"]
    assert Comparison.from_dict(record) == comparison
    assert "Excess loss" not in render_page(comparison, folder)
    only = basis(couplings=(Irreducible("independent", skipped="too large"),))
    page = render_page(replace(comparison, excess=only), folder)
    assert "no irreducible loss; too large" in page
    assert "Excess loss by t" not in page
