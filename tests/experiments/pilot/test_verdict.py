import math
import re
from types import SimpleNamespace

import pytest
import torch

from immiscible_diffusion.experiments.pilot.verdict import effects_of, finals_of, is_narrow, seeds_for, verdict_of
from immiscible_diffusion.reporting.compare.records import CouplingEntry, SampleMetrics, Trial
from tests.helpers import generator

NAME = "knn:k=16"
FLOOR = (0.08, 0.12)
COUPLINGS = {
    "none": "independent",
    "plain": NAME,
    "control": f"shuffled:{NAME}",
    "matched": f"matched:{NAME}",
    "matched_control": f"matched:shuffled:{NAME}",
}


def fabricated(seeds=5, noise=0.02, sampling_steps=(5, 20), base=1.0, key=0, **factors):
    """Distances: ``base`` times a factor of the coupling, noise of the seed and of its own."""
    random, finals = generator(key), {}
    for steps in sampling_steps:
        common = 0.3 * torch.randn(seeds, generator=random)
        for short, name in COUPLINGS.items():
            own = noise * torch.randn(seeds, generator=random)
            value = base * factors.get(short, 1.0) * (common + own).exp()
            finals[name, steps] = {seed: float(value[seed]) for seed in range(seeds)}
    return finals


def verdict(finals, floor=FLOOR, untrained=100.0):
    return verdict_of(finals, NAME, floor=floor, untrained=untrained)


def percent(sentence):
    """The first percentage with its interval."""
    return tuple(map(int, re.search(r"(\d+)% \((-?\d+)% to (-?\d+)%\)", sentence).groups()))


def test_a_gain_by_pairing_helps():
    result = verdict(fabricated(matched=0.7))
    assert result.kind == "helps"
    total, pairing, noise = result.sentences
    value, low, high = percent(total)
    assert low <= value <= high
    assert 25 < value < 35
    assert "from its own noise distribution" in total
    assert percent(pairing)[0] == pytest.approx(value, abs=5)
    assert "no effect above seed noise" in noise


def test_an_effect_is_that_of_pairing_times_that_of_the_changed_noise():
    effects, _ = effects_of(fabricated(noise=0.3, matched=0.5), NAME, FLOOR)
    for effect in effects:
        assert effect.total.value == pytest.approx(effect.pairing.value * effect.noise.value)


def test_a_gain_that_the_control_has_too_is_none_by_pairing():
    result = verdict(fabricated(plain=0.7, control=0.7))
    assert result.kind == "none"
    assert result.sentences[0].startswith("no gain by pairing")
    assert {e.verdict for e in result.effects if e.coupling == NAME} == {"noise"}
    assert "helps by" in result.sentences[2]


def test_a_gain_of_which_pairing_takes_some_back_says_that_pairing_costs():
    result = verdict(fabricated(plain=0.8, control=0.6))
    assert result.kind == "none"
    total, pairing, noise = result.sentences
    assert "costs" in pairing
    assert percent(total)[0] < percent(noise)[0]


def test_a_gain_that_the_control_has_in_part_says_how_much_is_pairing():
    result = verdict(fabricated(matched=0.49, matched_control=0.7))
    assert result.kind == "helps"
    best = min(result.effects, key=lambda e: e.total.value)
    assert best.pairing.value == pytest.approx(0.7, abs=0.05)
    assert best.noise.value == pytest.approx(0.7, abs=0.05)


def test_a_cost_of_the_changed_noise_is_not_laid_at_the_door_of_pairing():
    total, pairing, noise = verdict(fabricated(plain=1.5, control=1.5)).sentences
    assert re.match(r"costs \d+% \(\d+% to \d+%\): knn:k=16 sampled from N\(0, I\)", total)
    assert "from its own noise distribution no cost is resolved" in total
    assert "costs" in noise
    assert "costs" not in pairing
    _, pairing, noise = verdict(fabricated(plain=1.5)).sentences
    assert "costs" in pairing
    assert "costs" not in noise


def test_what_helps_here_and_costs_there_says_both():
    finals = fabricated(matched=0.7)
    finals[NAME, 20] = {seed: 1.5 * v for seed, v in finals[NAME, 20].items()}
    result = verdict(finals)
    assert result.kind == "helps"
    assert "; but costs 5" in result.sentences[0]
    assert "in 20 Euler steps" in result.sentences[0]


def test_no_difference_is_none_if_intervals_are_narrow_and_too_little_if_wide():
    result = verdict(fabricated())
    assert result.kind == "none"
    assert all(is_narrow(effect.total) for effect in result.effects)
    result = verdict(fabricated(noise=0.4))
    assert result.kind == "too little"
    assert result.seeds_needed > 5


def test_the_floor_hides_differences():
    finals = fabricated(base=0.1, matched=0.9, plain=0.9)  # between 0.08 and 0.12
    result = verdict(finals)
    assert result.kind == "too little"
    assert result.sentences[0].startswith("too little data to tell")
    assert verdict(finals, floor=None).kind == "helps"


def test_fewer_than_three_seeds_and_networks_that_learned_nothing_tell_nothing():
    assert "2 of at least 3 seeds" in verdict(fabricated(seeds=2)).sentences[0]
    assert verdict({}).kind == "too little"
    result = verdict(fabricated(matched=0.5), untrained=1.5)
    assert result.kind == "too little"
    assert "hardly learned" in result.sentences[0]


def test_equal_distances_are_no_effect():
    result = verdict(fabricated(noise=0.0))
    assert result.kind == "none"
    assert all(e.total.low == e.total.high == pytest.approx(1) for e in result.effects)


def test_a_coupling_that_keeps_the_noise_distribution_has_one_start():
    finals = {k: v for k, v in fabricated().items() if not k[0].startswith("matched:")}
    effects, level = effects_of(finals, NAME, FLOOR)
    assert len(effects) == 2
    assert level == pytest.approx(0.975)


@pytest.mark.parametrize(("seeds", "noise"), [(3, 0.1), (5, 0.1), (5, 0.5), (8, 0.2)])
def test_identical_couplings_are_told_apart_no_more_often_than_five_percent(seeds, noise):
    trials = 1000
    wrong = [
        verdict(fabricated(seeds, noise, key=key), floor=None).kind in ("helps", "costs") for key in range(trials)
    ]
    assert sum(wrong) / trials < 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


def test_changed_noise_is_taken_for_pairing_no_more_often_than_five_percent():
    trials = 1000
    finals = [fabricated(5, 0.1, plain=0.6, control=0.6, key=key) for key in range(trials)]
    wrong = [verdict(each, floor=None).kind == "helps" for each in finals]
    assert sum(wrong) / trials < 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


def test_real_effects_are_found():
    kinds = [verdict(fabricated(5, 0.05, matched=0.7, key=key)).kind for key in range(200)]
    assert kinds.count("helps") > 190


def test_the_seeds_that_would_tell():
    assert seeds_for(0.0, 0.95) == 3
    assert seeds_for(0.1, 0.95) < seeds_for(0.2, 0.95) < seeds_for(0.2, 0.99)


def test_finals_are_of_whole_seeds_at_the_last_step():
    def trial(coupling, seed, finished=True):
        metrics = tuple(SampleMetrics(step, 5, frechet=100 / step) for step in (10, 20))
        return Trial(coupling, seed, metrics, finished=finished)

    trials = (trial("a", 0), trial("b", 0), trial("a", 1), trial("b", 1, finished=False))
    couplings = (CouplingEntry("a", "a", baseline=True), CouplingEntry("b", "b"))
    record = SimpleNamespace(
        total_steps=20,
        couplings=couplings,
        trials=trials,
        trials_of=lambda name: [trial for trial in trials if trial.coupling == name],
    )
    assert finals_of(record) == {("a", 5): {0: 5.0}, ("b", 5): {0: 5.0}}
