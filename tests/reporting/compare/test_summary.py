"""Sentences: gain and limit from the record, and what is missing."""

from dataclasses import replace

from immiscible_diffusion.reporting.compare.records import CouplingEntry, Floor, SampleMetrics, Trial
from immiscible_diffusion.reporting.compare.speedup import speedups
from immiscible_diffusion.reporting.compare.summary import best_coupling, chance, headline, missing, sentences
from immiscible_diffusion.reporting.compare.tables import interval_text
from immiscible_diffusion.reporting.html import number
from immiscible_diffusion.utils.statistics import Interval, mean_interval

STEPS = (250, 500, 1000, 2000, 4000, 6000)
SPREAD = (0.98, 1.0, 1.02)


def record(build, factors, seeds=3, **changes):
    """A comparison of power laws: by number of sampling steps, times faster."""
    trials = []
    for name, fast in (("independent", dict.fromkeys(factors, 1.0)), ("knn", factors)):
        for seed in range(seeds):
            spread = SPREAD[seed] if name == "knn" else 1.0
            metrics = [
                SampleMetrics(step, n, frechet=100 / n * (f * spread * step / 250) ** -0.5)
                for n, f in fast.items()
                for step in STEPS
            ]
            trials.append(Trial(name, seed, tuple(metrics), finished=True))
    return build(trials, sampling_steps=tuple(factors), headline_steps=min(factors), **changes)


def said(comparison):
    return headline(comparison, speedups(comparison)).partition(" At the end")[0]


def test_a_gain_and_its_limits_are_in_one_sentence(build):
    text = said(record(build, {5: 2.0, 20: 0.5, 100: 1.0}))
    assert text.startswith(
        "KNN needs 2.00 (1.90 to 2.10) times fewer training steps than independent at 5 Euler steps"
    )
    assert "2.00 (1.90 to 2.10) times more at 20†" in text
    assert "no difference is resolved at 100 (1.00, 0.951 to 1.05)" in text


def test_a_loss_is_said_as_plainly(build):
    text = said(record(build, {5: 0.5, 20: 1.0}))
    assert "saves no training steps: it needs 2.00 (1.90 to 2.10) times more training steps than independent" in text
    assert "no difference is resolved at 20" in text


def test_the_headline_says_what_holds_after_the_correction_and_what_is_below_the_floor(build):
    comparison = record(build, {5: 2.0, 20: 1.06})
    text = headline(comparison, speedups(comparison))
    assert "at 5 Euler steps†" in text
    assert "1.06 (1.01 to 1.11) times fewer at 20." in text
    assert text.endswith("†: still so after Holm's correction for all 3 comparisons.")
    weak = record(build, {20: 1.06})
    weak = replace(weak, couplings=(*weak.couplings[:2], CouplingEntry("c", "C")))
    trials = [replace(t, coupling="c") for t in record(build, {20: 1.0}).trials if t.coupling == "knn"]
    weak = replace(weak, trials=(*weak.trials, *trials))
    assert headline(weak, speedups(weak)).endswith("None of it holds after Holm's correction for all 2 comparisons.")
    hidden = replace(comparison, floor=Floor(100.0, 50.0, 150.0, 10))
    assert said(hidden).count("(below the floor)") == 2
    assert "(3 of them below the floor)" in chance(speedups(hidden))


def test_one_seed_resolves_nothing(build):
    comparison = record(build, {5: 2.0, 20: 3.0}, seeds=1)
    text = said(comparison)
    assert "has no resolved difference in training steps from independent" in text
    assert "at 5 Euler steps (1.96, one seed)" in text
    assert "nothing here is resolved" in chance(speedups(comparison))


def test_the_best_of_several_is_no_control_and_says_of_how_many(comparison, empty):
    results = speedups(comparison)
    assert best_coupling(comparison, results).label == "KNN k=16, centerd"
    assert "the best of 3 couplings" in headline(comparison, results)
    kept = tuple(t for t in comparison.trials if t.coupling in ("independent", "knn:k=64"))
    couplings = (comparison.couplings[0], CouplingEntry("knn:k=64", "c", "independent"))
    control = replace(comparison, couplings=couplings, trials=kept)
    assert headline(control, speedups(control)) == "There is no coupling to compare."
    assert headline(empty, speedups(empty)) == "No coupling has been measured."


def test_a_bound_is_said_as_a_bound(build):
    assert "more than 24.0 times fewer training steps" in said(record(build, {20: 110.0}))


def test_the_number_of_comparisons_is_said(comparison, partial):
    assert sentences(comparison)[1].startswith("35 comparisons; about 1.8 would be resolved if nothing had an effect.")
    assert len(sentences(partial)) > 2


def test_missing_trials_are_named(comparison, partial, empty):
    assert missing(comparison) == []
    assert len(missing(empty)) == 1
    lines = missing(partial)
    assert "KNN k=64 <raw>, seed 2: evaluated up to step 2,000 of 6,000, not finished." in lines
    assert "KNN k=64, shuffled: no trial of seed 0, 1, 2." in lines
    assert "linear assignment, B=256: no trial of seed 1, 2." in lines


def test_numbers_and_intervals_read_well():
    texts = [number(v) for v in (0.0, 0.01234, 1.2, 45.46, 123.4, 999.9, 12345.6, -1.5, None)]
    assert texts == ["0", "0.0123", "1.20", "45.5", "123", "1,000", "12,300", "-1.50", "-"]
    assert interval_text(None) == "-"
    assert interval_text(Interval(2.0, 1.5, 2.5, 3, 1)) == "2.00 (1.50 to 2.50)"
    assert interval_text(Interval(14.0, 0, float("inf"), 3, 1), ">") == "> 14.0"
    assert interval_text(mean_interval([2.0])) == "2.00 (one seed)"
    assert interval_text(Interval(2.0, 0, 1, 2, 1), "~") == "bounded from both sides"
