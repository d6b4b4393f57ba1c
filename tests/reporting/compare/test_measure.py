"""A comparison of policies: the same report, about the error of actions."""

from dataclasses import replace

import pytest

from immiscible_diffusion.reporting.compare import Comparison, render_page
from immiscible_diffusion.reporting.compare.results import SampleMetrics
from immiscible_diffusion.reporting.compare.speedup import speedup


def of_actions(comparison):
    """The same curves as errors of actions instead of Frechet distances."""
    cells = tuple(
        replace(
            cell,
            quality=tuple(
                SampleMetrics(q.step, q.budget, action_error=q.frechet, score=0.5)
                for q in cell.quality
            ),
        )
        for cell in comparison.cells
    )
    return replace(comparison, cells=cells, measure="action error", floor=None)


def test_speed_ups_are_of_the_measure_whatever_it_is(comparison):
    policies = of_actions(comparison)
    images = replace(comparison, floor=None)
    for entry in comparison.treated:
        assert speedup(policies, entry.name, 20) == speedup(images, entry.name, 20)


def test_the_page_names_the_measure(comparison, folder, parsed):
    page = render_page(of_actions(comparison), folder)
    parsed(page)
    assert "action error (lower is better)" in page
    assert "Final action error" in page
    assert "Frechet distance against" not in page


def test_older_records_are_of_the_frechet_distance(comparison):
    record = comparison.to_dict()
    del record["measure"]
    for cell in record["cells"]:
        for quality in cell["quality"]:
            del quality["action_error"], quality["score"], quality["success"]
    assert Comparison.from_dict(record) == comparison


def test_an_error_below_nothing_is_refused():
    assert SampleMetrics(1, 1, action_error=0.2).value == 0.2
    with pytest.raises(ValueError, match="action_error is -1"):
        SampleMetrics(1, 1, action_error=-1.0)
