import numpy as np
import pytest
from scipy import stats

from immiscible_diffusion.applications.pusht.rollout import (
    Rollouts,
    bootstrap_interval,
    last_and_best,
    score_difference,
    score_rollouts,
    wilson_interval,
)


def rollouts(best):
    """Episodes that cover so much, and then less."""
    best = np.asarray(best, dtype=float)
    coverage = np.stack([best / 2, best, 0 * best], axis=1)
    coverage[best > 0.95, 2] = np.nan
    empty = np.zeros((len(best), 4, 5)), np.zeros((len(best), 3, 2))
    return Rollouts(*empty, coverage, ((0.02, len(best)), (0.04, len(best))))


def test_score_and_success_by_hand():
    result = score_rollouts([rollouts([0.0, 0.475, 0.95, 0.96])])
    assert result.score.value == pytest.approx((0 + 0.5 + 1 + 1) / 4)
    assert result.success.value == 0.25  # strictly above 0.95
    assert (result.episodes, result.seeds) == (4, 1)
    assert result.latency_ms == pytest.approx(30)


def test_interval_over_episodes_is_that_of_the_mean():
    """Bootstrap against the t-interval, for many episodes."""
    values = np.random.default_rng(0).beta(2, 2, (1, 400))
    result = bootstrap_interval(values)
    t = stats.t.interval(0.95, 399, values.mean(), stats.sem(values[0]))
    assert (result.low, result.high) == pytest.approx(t, abs=0.003)


def test_interval_covers_the_truth():
    """Seeds and episodes both differ: the interval holds the mean in at least 90 of 100 worlds."""
    rng, covered = np.random.default_rng(1), 0
    for _ in range(100):
        values = 0.1 * rng.normal(size=(5, 1)) + 0.3 * rng.normal(size=(1, 50))
        result = bootstrap_interval(values + 0.2 * rng.normal(size=(5, 50)))
        covered += result.low <= 0 <= result.high
    assert covered >= 85  # of 5 seeds a bootstrap is a little narrow


def test_seeds_widen_the_interval():
    rng = np.random.default_rng(2)
    episodes = rng.uniform(size=(1, 50))
    far = bootstrap_interval(episodes + np.array([[-0.3], [0.0], [0.3]]))
    near = bootstrap_interval(episodes + np.zeros((3, 1)))
    assert far.high - far.low > 1.3 * (near.high - near.low)


def test_pairs_narrow_the_difference():
    rng = np.random.default_rng(3)
    hard = rng.uniform(0.2, 0.7, 50)
    one, other = rollouts(hard + 0.05), rollouts(hard)
    result = score_difference([one], [other])
    assert result.value == pytest.approx(0.05 / 0.95)
    assert result.low > 0.05 < result.high
    unpaired = score_rollouts([one]).score, score_rollouts([other]).score
    assert unpaired[0].low < unpaired[1].high  # too wide to tell them apart


@pytest.mark.parametrize("hits", [0, 7, 50])
def test_share_is_wilsons(hits):
    row = np.arange(50)[None] < hits
    result = wilson_interval(row)
    expected = stats.binomtest(hits, 50).proportion_ci(method="wilson")
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_checkpoints():
    scores = [0.1, 0.9, *[0.5, 0.7] * 5]
    assert last_and_best(scores) == (pytest.approx(0.6), 0.9)
    with pytest.raises(ValueError, match="scores and last"):
        last_and_best([])


def test_runs_that_cannot_be_compared():
    with pytest.raises(ValueError, match="same episodes, got none"):
        score_rollouts([])
    with pytest.raises(ValueError, match=r"same episodes, got \[2, 3\]"):
        score_rollouts([rollouts([0.1] * 2), rollouts([0.1] * 3)])
    with pytest.raises(ValueError, match="as many seeds"):
        score_difference([rollouts([0.1])], [rollouts([0.1])] * 2)
