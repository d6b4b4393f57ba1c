"""The README's short table: two digits, and the floor leaves its mark."""

import pytest

from immiscible_diffusion.reporting.compare.speedup import Speedup
from immiscible_diffusion.utils.statistics import Interval
from reproduce.false_positives import rates
from reproduce.publish import short_text


@pytest.mark.parametrize(
    ("value", "resolved", "bound", "text"),
    [
        (2.0, True, "", "2.0 (1.8-2.2)"),
        (2.0, False, "", "2.0 (1.8-2.2)\\*"),
        (0.5, True, "", "0.50 (0.45-0.55)"),
        (1.0, False, "", "1.0 (0.90-1.1)\\*"),
        (2.0, False, ">", "> 2\\*"),
    ],
)
def test_figures_are_short(value, resolved, bound, text):
    steps = Interval(value, 0.9 * value, 1.1 * value, 3, 0.1)
    assert short_text(Speedup("knn", 20, steps=steps, bound=bound, resolved=resolved)) == text


def test_headlines_claim_gains_where_there_are_none_and_fewer_after_the_correction():
    *_, plain, corrected = rates("falling", 5, 12)
    assert corrected <= plain < 1
