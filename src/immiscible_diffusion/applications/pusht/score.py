"""Score and success of policies on Push-T, with intervals over episodes and seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from immiscible_diffusion.applications.pusht.rollout import Rollouts
from immiscible_diffusion.utils.statistics import CONFIDENCE, Interval, mean_interval

NORMAL_QUANTILE = 1.959964  # of 97.5%
BOOTSTRAP_DRAWS = 4000


@dataclass(frozen=True)
class PolicyScore:
    """What one policy per seed reached on the same episodes."""

    score: Interval  # mean of ``min(1, largest coverage / 0.95)``, the score of Diffusion Policy
    success: Interval  # fraction of episodes with more than 0.95 covered
    episodes: int  # number of different episodes
    seeds: int  # number of training seeds
    latency_ms: float  # median time to sample a chunk of actions, for all episodes together


def score_rollouts(runs: Sequence[Rollouts]) -> PolicyScore:
    """Score one policy per seed, all on the same episodes; ValueError if they are not."""
    _check(runs)
    scores = np.stack([run.score for run in runs])
    return PolicyScore(
        bootstrap_interval(scores),
        wilson_interval(np.stack([run.success for run in runs])),
        episodes=scores.shape[1],
        seeds=len(runs),
        latency_ms=float(np.median([run.latency_ms for run in runs])),
    )


def score_difference(runs: Sequence[Rollouts], baseline: Sequence[Rollouts]) -> Interval:
    """Mean score of ``runs`` minus that of ``baseline``, paired by seed and episode."""
    _check([*runs, *baseline])
    if len(runs) != len(baseline):
        raise ValueError(f"expected as many seeds, got {len(runs)} and {len(baseline)}")
    pairs = zip(runs, baseline, strict=True)
    return bootstrap_interval(np.stack([run.score - base.score for run, base in pairs]))


def bootstrap_interval(values: NDArray[np.float64], *, seed: int = 0) -> Interval:
    """Mean of ``values`` ``[seeds, episodes]`` with a bootstrap interval over both.

    Seeds and episodes are resampled independently of each other, as all seeds meet the same
    episodes (Owen 2007, the pigeonhole bootstrap). Of few seeds a bootstrap is too narrow: the
    interval is never narrower than Student's over seeds. One seed tells nothing of others: its
    interval is over episodes alone.
    """
    seeds, episodes = values.shape
    rng = np.random.default_rng(seed)

    def weights(count: int) -> NDArray[np.float64]:
        return rng.multinomial(count, np.full(count, 1 / count), BOOTSTRAP_DRAWS) / count

    of_episodes = weights(episodes)
    of_seeds = weights(seeds) if seeds > 1 else np.ones((BOOTSTRAP_DRAWS, 1))
    means = np.einsum("ds,se,de->d", of_seeds, values, of_episodes)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    student = mean_interval(values.mean(axis=1).tolist())
    if seeds > 1:
        low, high = min(low, student.low), max(high, student.high)
    return Interval(float(values.mean()), float(low), float(high), seeds, student.std)


def wilson_interval(hits: NDArray[np.bool_]) -> Interval:
    """Fraction of ``hits`` ``[seeds, episodes]`` with Wilson's interval for that many episodes.

    Seeds meet the same episodes and are not counted as more. Sound at 0 and 1, where a bootstrap
    has no width.
    """
    n, share, z = hits.shape[1], float(hits.mean()), NORMAL_QUANTILE
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return Interval(share, low, high, n, float(hits.std()))


def last_and_best(scores: Sequence[float], last: int = 10) -> tuple[float, float]:
    """Mean of the ``last`` checkpoints and the best of all: the paper's two figures.

    The best is chosen on the episodes that score it, so it is too good; compare it with other
    bests only.
    """
    if not scores or last < 1:
        raise ValueError(f"expected scores and last >= 1, got {len(scores)} and {last}")
    return float(np.mean(scores[-last:])), float(max(scores))


def _check(runs: Sequence[Rollouts]) -> None:
    counts = {len(run.coverage) for run in runs}
    if len(counts) != 1:
        raise ValueError(f"expected runs of the same episodes, got {sorted(counts) or 'none'}")
