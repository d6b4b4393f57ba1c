"""A comparison of policies: the same report, about the error of actions."""

from dataclasses import replace

import pytest

from immiscible_diffusion.reporting.compare import render_page
from immiscible_diffusion.reporting.compare.records import SampleMetrics
from immiscible_diffusion.reporting.compare.speedup import speedup


def of_actions(comparison):
    """The same curves as errors of actions instead of Frechet distances."""
    trials = tuple(
        replace(
            trial,
            metrics=tuple(
                SampleMetrics(m.step, m.sampling_steps, action_error=m.frechet, score=0.5) for m in trial.metrics
            ),
        )
        for trial in comparison.trials
    )
    return replace(comparison, trials=trials, metric="action error", floor=None)


def test_speedups_are_of_the_metric_whatever_it_is(comparison):
    policies = of_actions(comparison)
    images = replace(comparison, floor=None)
    assert comparison.treated
    for entry in comparison.treated:
        assert speedup(policies, entry.name, 20) == speedup(images, entry.name, 20)


def test_the_page_names_the_metric(comparison, folder, plots):
    page = render_page(of_actions(comparison), folder)
    assert "action error (lower is better)" in plots(page)["20 Euler steps, headline"]
    assert "Best action error" in page
    assert "Frechet distance against" not in page


def test_an_error_below_nothing_is_refused():
    assert SampleMetrics(1, 1, action_error=0.2).value == 0.2
    with pytest.raises(ValueError, match="action_error is -1"):
        SampleMetrics(1, 1, action_error=-1.0)
