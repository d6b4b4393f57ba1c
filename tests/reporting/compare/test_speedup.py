"""Speed-ups against closed forms: power laws, hand-computed interpolation, bounds, intervals."""

import math
from dataclasses import replace

import numpy as np
import pytest

from immiscible_diffusion.reporting.compare.records import Floor, SampleMetrics, Trial
from immiscible_diffusion.reporting.compare.speedup import (
    best_so_far,
    floor_resolves,
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
    assert len(results) == 5 * 4
    assert {r.coupling for r in results} == {e.name for e in comparison.couplings if not e.baseline}
    with pytest.raises(ValueError, match="coupling is 'nobody'"):
        speedup(comparison, "nobody", 20)
