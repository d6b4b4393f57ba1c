import math
import re

import pytest
import torch

from immiscible_diffusion.experiments.pilot.ratio import Ratio, seeds_for
from immiscible_diffusion.experiments.pilot.records import Point, Trial, finals
from immiscible_diffusion.experiments.pilot.verdict import compare, judge
from immiscible_diffusion.metrics import Floor

NAME = "knn:k=16"
FLOOR = Floor(0.1, 0.08, 0.12, 500)
ARMS = ("independent", NAME, f"shuffled:{NAME}", f"matched:{NAME}", f"matched:shuffled:{NAME}")


def fabricated(seeds=5, noise=0.02, sampling_steps=(5, 20), base=1.0, key=0, **factors):
    """Distances: ``base`` times a factor of the arm, times noise of the seed and of the cell."""
    generator = torch.Generator().manual_seed(key)
    names = dict(zip(("none", "plain", "control", "matched", "matched_control"), ARMS, strict=True))
    found = {}
    for budget in sampling_steps:
        common = 0.3 * torch.randn(seeds, generator=generator)
        for short, arm in names.items():
            own = noise * torch.randn(seeds, generator=generator)
            value = base * factors.get(short, 1.0) * (common + own).exp()
            found[arm, budget] = {seed: float(value[seed]) for seed in range(seeds)}
    return found


def verdict(found, floor=FLOOR, untrained=100.0):
    return judge(found, NAME, floor=floor, untrained=untrained)


def test_a_gain_by_pairing_helps():
    said = verdict(fabricated(matched=0.7))
    assert said.kind == "helps"
    percent, low, high = map(
        int, re.match(r"helps by (\d+)% \((\d+)% to (\d+)%\)", said.sentence).groups()
    )
    assert low <= percent <= high
    assert 25 < percent < 35
    assert "its own law" in said.sentence
    assert "100% of it by pairing" in said.sentence or "9" in said.sentence
    best = min(said.comparisons, key=lambda c: c.ratio.value)
    assert best.share_of_pairing == pytest.approx(1, abs=0.2)


def test_a_gain_that_the_control_has_too_is_no_effect_of_pairing():
    said = verdict(fabricated(plain=0.7, control=0.7))
    assert said.kind == "none"
    assert "control" in said.sentence
    assert said.sentence.startswith("no effect")
    assert {c.verdict for c in said.comparisons if c.arm == NAME} == {"law"}


def test_a_gain_of_which_pairing_takes_some_back_is_not_called_no_effect_of_pairing():
    said = verdict(fabricated(plain=0.8, control=0.6))
    assert said.kind == "none"
    assert {c.verdict for c in said.comparisons if c.arm == NAME} == {"law"}
    assert "above seed noise" not in said.sentence
    gain, of_control = map(int, re.findall(r"(\d+)%", said.sentence))
    assert gain < of_control
    assert "its control with the noises shuffled is nearer still" in said.sentence
    assert "pairing takes some of it back" in said.sentence


def test_a_gain_by_the_law_from_the_other_start_is_not_called_unresolved():
    said = verdict(fabricated(plain=1.5, control=1.5, matched=0.7, matched_control=0.7))
    assert said.kind == "costs"
    assert "no effect is resolved" not in said.sentence
    found = re.search(
        r"from its own law it is (\d+)% nearer .* but so is its control", said.sentence
    )
    assert 25 < int(found[1]) < 35


def test_a_gain_that_the_control_has_in_part_says_how_much_is_pairing():
    said = verdict(fabricated(matched=0.49, matched_control=0.7))
    assert said.kind == "helps"
    shares = [c.share_of_pairing for c in said.comparisons if c.verdict == "helps"]
    assert shares == pytest.approx([0.5] * len(shares), abs=0.1)


def test_what_hurts_is_said_to_cost():
    said = verdict(fabricated(plain=1.5, control=1.5))
    assert said.kind == "costs"
    assert re.match(r"costs \d+% \(\d+% to \d+%\): knn:k=16 sampled from N\(0, I\)", said.sentence)
    assert "its own law no effect" in said.sentence
    assert "changed law" in said.sentence
    assert "changed law" not in verdict(fabricated(plain=1.5)).sentence


def test_what_helps_here_and_costs_there_says_both():
    found = fabricated(matched=0.7)
    found[NAME, 20] = {seed: 1.5 * v for seed, v in found[NAME, 20].items()}
    said = verdict(found)
    assert said.kind == "helps"
    assert "; but costs 5" in said.sentence
    assert "in 20 Euler steps" in said.sentence


def test_no_difference_with_narrow_intervals_is_no_effect():
    said = verdict(fabricated())
    assert said.kind == "none"
    assert said.sentence.startswith("no effect above seed noise: any is smaller than")
    assert all(c.ratio.is_narrow for c in said.comparisons)


def test_no_difference_with_wide_intervals_is_too_little():
    said = verdict(fabricated(noise=0.4))
    assert said.kind == "too little"
    assert said.sentence.startswith("too little time to tell")
    assert said.seeds_needed > 5


def test_the_floor_hides_differences():
    found = fabricated(base=0.1, matched=0.9, plain=0.9)  # between 0.08 and 0.12
    said = verdict(found)
    assert said.kind == "too little"
    assert said.sentence.startswith("too little data to tell")
    assert verdict(found, floor=None).kind == "helps"


def test_fewer_than_three_seeds_and_networks_that_learnt_nothing_tell_nothing():
    assert "2 of at least 3 seeds" in verdict(fabricated(seeds=2)).sentence
    assert verdict({}).kind == "too little"
    said = verdict(fabricated(matched=0.5), untrained=1.5)
    assert said.kind == "too little"
    assert "hardly learnt" in said.sentence


def test_equal_distances_are_no_effect():
    said = verdict(fabricated(noise=0.0))
    assert said.kind == "none"
    assert all(c.ratio.low == c.ratio.high == pytest.approx(1) for c in said.comparisons)


def test_a_coupling_that_keeps_the_law_has_two_comparisons():
    found = {k: v for k, v in fabricated().items() if not k[0].startswith("matched:")}
    comparisons, level = compare(found, NAME, FLOOR)
    assert len(comparisons) == 2
    assert level == pytest.approx(0.975)


@pytest.mark.parametrize(("seeds", "noise"), [(3, 0.1), (5, 0.1), (5, 0.5), (8, 0.2)])
def test_identical_arms_are_told_apart_no_more_often_than_five_percent(seeds, noise):
    trials = 1000
    wrong = [
        verdict(fabricated(seeds, noise, key=key), floor=None).kind in ("helps", "costs")
        for key in range(trials)
    ]
    assert sum(wrong) / trials < 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


def test_a_changed_law_is_taken_for_pairing_no_more_often_than_five_percent():
    trials = 1000
    found = [fabricated(5, 0.1, plain=0.6, control=0.6, key=key) for key in range(trials)]
    wrong = [verdict(finals, floor=None).kind == "helps" for finals in found]
    assert sum(wrong) / trials < 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


def test_real_effects_are_found():
    found = [verdict(fabricated(5, 0.05, matched=0.7, key=key)).kind for key in range(200)]
    assert found.count("helps") > 190


def test_intervals_are_t_intervals_at_their_level():
    base = dict.fromkeys(range(4), 1.0)
    values = {seed: math.exp(x) for seed, x in enumerate((0.1, 0.2, 0.3, 0.4))}
    ratio = Ratio.of(values, base, 0.95)
    assert math.log(ratio.value) == pytest.approx(0.25)
    half = 3.182446 * 0.1290994 / 2
    assert math.log(ratio.high) == pytest.approx(0.25 + half, rel=1e-5)
    assert Ratio.of(values, base, 0.99).high > ratio.high
    assert Ratio.of({0: 1.0}, base, 0.95).high > 1e9


def test_the_seeds_that_would_tell():
    assert seeds_for(0.0, 0.95) == 3
    assert seeds_for(0.1, 0.95) < seeds_for(0.2, 0.95) < seeds_for(0.2, 0.99)


def test_finals_are_of_whole_seeds_at_the_last_step():
    def cell(coupling, seed):
        points = tuple(Point(coupling, step, 5, 100.0 / step) for step in (10, 20))
        return Trial(coupling, seed, 1.0, points)

    cells = [cell("a", 0), cell("b", 0), cell("a", 1)]
    assert finals(cells, ["a", "b"]) == {("a", 5): {0: 5.0}, ("b", 5): {0: 5.0}}
