"""Both savings against closed forms: power laws, hand-computed interpolation, bounds, intervals, correction."""

import math
from dataclasses import replace

import numpy as np
import pytest

from immiscible_diffusion.reporting.compare.records import Floor, SampleMetrics, Trial
from immiscible_diffusion.reporting.compare.speedup import (
    best_so_far,
    floor_resolves,
    running_minimum,
    share_of_control,
    speedup,
    speedups,
    steps_to,
)


def table_trial(name, seed, values, steps=(100, 200, 400), sampling_steps=20, **options):
    pairs = zip(steps, values, strict=True)
    return Trial(name, seed, tuple(SampleMetrics(s, sampling_steps, frechet=v) for s, v in pairs), **options)


@pytest.mark.parametrize("faster", [1.3, 2.0, 3.7, 1 / 1.3, 1 / 2.0, 1 / 3.7])
@pytest.mark.parametrize("slope", [0.2, 1.0])
def test_a_power_law_shifted_by_c_steps_is_c_times_faster(build, power, faster, slope):
    trials = [power("independent", s, slope=slope) for s in range(3)]
    trials += [power("knn", s, faster, slope=slope) for s in range(3)]
    result = speedup(build(trials), "knn", 20)
    assert result.steps.value == pytest.approx(faster, rel=1e-9)
    assert result.quality_ratio.value == pytest.approx(faster**-slope, rel=1e-9)
    assert result.verdict == ("helps" if faster > 1 else "hurts")


def test_exchanging_the_two_gives_the_reciprocal(build):
    rng = np.random.default_rng(0)
    values = np.sort(rng.uniform(1, 50, (2, 4, 6)))[..., ::-1]
    steps = (100, 200, 400, 800, 1600, 3200)
    ratios = []
    for first, second in ((0, 1), (1, 0)):
        trials = [table_trial("independent", s, values[first, s], steps) for s in range(4)]
        trials += [table_trial("knn", s, values[second, s], steps) for s in range(4)]
        ratios.append(speedup(build(trials), "knn", 20))
    assert ratios[0].steps.value * ratios[1].steps.value == pytest.approx(1)
    assert [row.ratio for row in ratios[0].seeds] == pytest.approx([1 / row.ratio for row in ratios[1].seeds])


def test_interpolation_by_hand():
    curve = {100: 16.0, 400: 4.0}
    assert steps_to(curve, 8.0) == (pytest.approx(200.0), False)
    assert steps_to(curve, 4.0) == (pytest.approx(400.0), False)
    assert steps_to(curve, 16.0) == (100.0, True)
    with pytest.raises(ValueError, match="at least the best value"):
        steps_to(curve, 3.9)


def test_the_target_is_the_worse_end_and_noise_after_the_best_is_ignored(build):
    # The baseline is best at 200 (8.0) and worse at 400; the coupling passes 8 between 100 and 200.
    base = table_trial("independent", 0, [16.0, 8.0, 12.0])
    other = table_trial("knn", 0, [16.0, 4.0, 5.0])
    assert best_so_far(base, 20) == {100: 16.0, 200: 8.0, 400: 8.0}
    row = speedup(build([base, other]), "knn", 20).seeds[0]
    assert (row.target, row.baseline_final, row.coupling_final) == (8.0, 8.0, 4.0)
    assert row.ratio == pytest.approx(200 / math.sqrt(100 * 200))


def test_a_target_met_at_the_first_evaluation_gives_a_bound(build):
    slow, fast = [16.0, 8.0, 4.0], [3.0, 2.0, 1.0]
    better = [table_trial("independent", s, slow) for s in (0, 1)]
    better += [table_trial("knn", s, fast) for s in (0, 1)]
    result = speedup(build(better), "knn", 20)
    assert (result.steps.value, result.bound) == (pytest.approx(4.0), ">")
    assert not result.steps.is_known
    assert result.verdict == "helps"
    worse = [table_trial("independent", s, fast) for s in (0, 1)]
    worse += [table_trial("knn", s, slow) for s in (0, 1)]
    result = speedup(build(worse), "knn", 20)
    assert (result.steps.value, result.bound) == (pytest.approx(0.25), "<")
    assert result.verdict == "hurts"


def test_one_bounded_seed_marks_the_mean_and_two_sided_bounds_say_nothing(build):
    trials = [table_trial("independent", s, [16.0, 8.0, 4.0]) for s in (0, 1)]
    trials += [table_trial("knn", 0, [3.0, 2.0, 1.0]), table_trial("knn", 1, [16.0, 4.0, 2.0])]
    result = speedup(build(trials), "knn", 20)
    assert result.steps.value == pytest.approx(math.sqrt(4.0 * 2.0))
    assert (result.bound, result.steps.is_known) == (">", False)
    trials[3] = table_trial("knn", 1, [40.0, 30.0, 20.0])
    result = speedup(build(trials), "knn", 20)
    assert (result.bound, result.verdict) == ("~", "unresolved")


def test_a_single_evaluation_says_nothing_about_steps(build):
    trials = [
        table_trial(name, s, [v + s], (100,)) for name, v in (("independent", 5.0), ("knn", 2.0)) for s in (0, 1)
    ]
    result = speedup(build(trials), "knn", 20)
    assert (result.steps, result.wall, result.verdict) == (None, None, "unresolved")
    assert result.coupling_final.value == pytest.approx(2.5)


def test_intervals_cover_the_truth_95_times_in_100(build, power):
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(300):
        trials = [power("independent", s) for s in range(3)]
        trials += [power("knn", s, 2.0 * math.exp(rng.normal(0, 0.2))) for s in range(3)]
        steps = speedup(build(trials), "knn", 20).steps
        covered += steps.low <= 2.0 <= steps.high
    # 285 expected, standard deviation 3.8.
    assert 270 <= covered <= 299


def test_equal_couplings_with_noise_are_not_resolved(build, power):
    trials = [power("independent", s) for s in range(3)]
    trials += [power("knn", s, faster) for s, faster in enumerate((0.8, 1.0, 1.25))]
    result = speedup(build(trials), "knn", 20)
    assert result.steps.value == pytest.approx(1)
    assert result.verdict == "unresolved"


def test_one_seed_has_no_interval(build, power):
    result = speedup(build([power("independent", 0), power("knn", 0, 2.0)]), "knn", 20)
    assert (result.steps.is_known, result.verdict) == (False, "unresolved")


def test_missing_and_short_runs_are_left_out_and_named(build, power):
    trials = [power("independent", s) for s in range(4)]
    trials += [power("knn", 0, 2.0), power("knn", 1, 2.0)]
    trials += [power("knn", 2, 9.0, steps=(250, 500))]
    result = speedup(build(trials), "knn", 20)
    assert [row.seed for row in result.seeds] == [0, 1]
    assert (result.horizon, result.steps.value) == (6000, pytest.approx(2.0))
    short = speedup(build([power("independent", 2), trials[-1]]), "knn", 20)
    assert short.horizon == 500  # equal steps: the baseline counts up to there only
    assert short.baseline_final.value == pytest.approx(100 * 2**-0.5)
    nothing = speedup(build(trials), "shuffled", 20)
    assert (nothing.verdict, nothing.horizon) == ("not measured", None)


def test_time_counts_the_cost_of_pairing(build, power):
    trials = [power("independent", s, seconds_per_step=0.02) for s in range(2)]
    trials += [power("knn", s, 3.0, seconds_per_step=0.03) for s in range(2)]
    assert speedup(build(trials), "knn", 20).wall.value == pytest.approx(2.0)
    trials[3] = replace(trials[3], seconds_per_step=None)
    assert speedup(build(trials), "knn", 20).wall is None


def test_the_control_keeps_nearly_half(build):
    # The design's one-seed figures at 5 steps: 10.0 independent, 8.4 shuffled, 6.5 paired.
    trials = [
        table_trial(name, 0, [v], (400,)) for name, v in (("independent", 10.0), ("shuffled", 8.4), ("knn", 6.5))
    ]
    kept = share_of_control(build(trials), "knn", 20)
    assert kept.share == pytest.approx(1.6 / 3.5)
    hidden = replace(build(trials), floor=Floor(3.0, 1.0, 5.0, 10))
    assert share_of_control(hidden, "knn", 20).share is None
    assert share_of_control(build(trials[:1]), "knn", 20) is None
    assert share_of_control(build(trials), "shuffled", 20) is None


def test_the_floor_hides_small_differences():
    floor = (1.5, 3.0)
    assert not floor_resolves(floor, 2.9, 0.5)
    assert not floor_resolves(floor, 10.0, 11.4)
    assert floor_resolves(floor, 10.0, 11.6)
    assert floor_resolves(None, 1.0, 1.01)


def test_every_coupling_with_every_number_of_sampling_steps(comparison):
    results = speedups(comparison)
    assert len(results) == 5 * (4 + 3)
    assert {r.sampling_steps for r in results if r.saves == "sampling"} == {5, 20, 100}  # fewer than 2 cannot show
    assert {r.coupling for r in results} == {e.name for e in comparison.couplings if not e.baseline}
    with pytest.raises(ValueError, match="coupling is 'nobody'"):
        speedup(comparison, "nobody", 20)


NUMBERS = (2, 5, 20, 100)


def sampled(name, seed, values, step=400):
    """A trial with a value for each number of sampling steps after ``step``, and worse ones earlier."""
    pairs = list(zip(NUMBERS, values, strict=True))
    metrics = [SampleMetrics(100, n, frechet=10 * v) for n, v in pairs]
    return Trial(name, seed, (*metrics, *(SampleMetrics(step, n, frechet=v) for n, v in pairs)))


@pytest.mark.parametrize("faster", [1.5, 2.4, 1 / 1.5, 1 / 2.4])
@pytest.mark.parametrize("number", [5, 20])
def test_a_power_law_over_sampling_steps_saves_its_factor(build, faster, number):
    trials = []
    for seed, slope in enumerate((0.5, 0.8, 1.1)):
        trials.append(sampled("independent", seed, [9 * n**-slope for n in NUMBERS]))
        trials.append(sampled("knn", seed, [9 * (faster * n) ** -slope for n in NUMBERS]))
    result = speedup(build(trials), "knn", number, "sampling")
    assert result.steps.value == pytest.approx(faster, rel=1e-9)
    assert (result.bound, result.horizon) == ("", 400)
    assert result.verdict == ("helps" if faster > 1 else "hurts")


def saving(build, base, other, number):
    trials = [sampled(name, seed, v) for name, v in (("independent", base), ("knn", other)) for seed in (0, 1)]
    return speedup(build(trials), "knn", number, "sampling")


def test_beyond_the_measured_sampling_steps_there_are_bounds(build):
    good, bad = [40, 10, 4, 2], [400, 100, 40, 20]
    never = saving(build, good, bad, 20)
    assert (never.steps.value, never.bound, never.verdict) == (pytest.approx(20 / 100), "<", "hurts")
    at_once = saving(build, bad, good, 20)
    assert (at_once.steps.value, at_once.bound, at_once.verdict) == (pytest.approx(20 / 2), ">", "helps")
    most = saving(build, good, bad, 100)  # with the most steps too the coupling is worse, however little
    assert (most.steps.value, most.bound, most.verdict) == (pytest.approx(1), "<", "hurts")
    same = saving(build, good, good, 20)
    assert (same.steps.value, same.verdict) == (pytest.approx(1), "unresolved")


def test_more_sampling_steps_never_count_as_worse(build):
    # The baseline is best with 20: what it "reaches with 100" it reaches with 20, and so does an equal coupling.
    result = saving(build, [40, 10, 4, 6], [40, 10, 4, 9], 100)
    assert (result.steps.value, result.baseline_final.value) == (pytest.approx(1), 4)
    assert running_minimum({100: 6.0, 2: 40.0, 20: 4.0, 5: None}) == {2: 40.0, 20: 4.0, 100: 4.0}


def test_interpolation_over_sampling_steps_by_hand(build):
    # The baseline has 8 with 20; the coupling 16 with 5 and 4 with 20, so 8 at the geometric mean, 10.
    assert saving(build, [64, 32, 8, 4], [64, 16, 4, 2], 20).steps.value == pytest.approx(2)


def test_holm_is_over_both_savings_and_only_takes_verdicts_away(comparison):
    results = speedups(comparison)
    tested = [r for r in results if r.p_value is not None]
    least = min(tested, key=lambda r: r.p_value)
    assert least.corrected == pytest.approx(len(tested) * least.p_value)
    assert all(r.corrected >= r.p_value for r in tested)
    assert 0 < sum(r.holds for r in results) < sum(r.is_resolved for r in results)
    for r in tested:  # the test and the interval are one
        assert r.is_resolved == (r.p_value < 0.05)


def samplers(build, base, other, **changes):
    trials = [sampled(n, seed, v) for n, v in (("independent", base), ("knn", other)) for seed in (0, 1)]
    found = speedups(replace(build(trials), couplings=build(trials).couplings[:2], **changes))
    return {r.sampling_steps: r for r in found if r.saves == "sampling"}


def test_a_bound_that_the_floor_hides_is_no_verdict(build):
    # 3% worse with both near the floor: never there, so five times more steps or worse.
    base, other = [4.0, 1.5, 1.0, 1.0], [4.0, 1.5, 1.03, 1.03]
    plain, hidden = (samplers(build, base, other, floor=f)[20] for f in (None, Floor(1.5, 0.9, 2.0, 10)))
    assert (plain.bound, plain.verdict, plain.marks) == ("<", "hurts", "†")
    assert (hidden.steps, hidden.bound, hidden.hidden) == (plain.steps, "<", True)
    assert (hidden.verdict, hidden.p_value, hidden.holds, hidden.marks) == ("unresolved", 1.0, False, "*")


def test_an_interval_below_the_floor_is_a_verdict_with_a_mark(build):
    trials = [table_trial("independent", s, [1.6, 1.2, 0.9]) for s in range(3)]
    trials += [table_trial("knn", s, [1.4, 1.0 + s / 100, 0.7]) for s in range(3)]
    hidden = speedup(replace(build(trials), floor=Floor(1.5, 0.5, 2.0, 10)), "knn", 20)
    assert (hidden.verdict, hidden.hidden) == ("helps", True)
    assert hidden.marks.startswith("*")


def test_what_the_baseline_reaches_with_fewer_is_not_tested_again(build):
    found = samplers(build, [40, 10, 4, 6], [20, 5, 3, 2])
    assert (found[5].repeats, found[20].repeats, found[100].repeats) == (None, None, 20)
    assert (found[100].verdict, found[100].p_value, found[100].corrected) == ("not measured", None, None)
    assert found[100].steps == found[20].steps
    assert samplers(build, [4, 10, 3, 2], [4, 3, 2, 1])[5].repeats == 2


def test_a_trial_without_an_evaluation_at_the_horizon_is_not_measured(build):
    base, other = sampled("independent", 0, [40, 10, 4, 2]), sampled("knn", 0, [40, 10, 4, 2], step=800)
    result = speedup(build([base, other]), "knn", 20, "sampling")  # at 400 the coupling was not evaluated
    assert (result.verdict, result.steps) == ("not measured", None)
