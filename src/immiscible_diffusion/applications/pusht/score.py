"""How well a policy does on Push-T, with intervals over episodes and seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from immiscible_diffusion.applications.pusht.rollout import Rollouts

Array = NDArray[np.float64]
CONFIDENCE = 0.95
Z = 1.959964  # of the normal law at 97.5%
DRAWS = 4000


@dataclass(frozen=True)
class Figure:
    """A mean with its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class PolicyScore:
    """What policies of one kind reached.

    Attributes:
        score: mean over episodes of the largest coverage, as a share of 0.95, at most 1: the score
            of Diffusion Policy.
        success: share of episodes with more than 0.95 covered.
        episodes: different episodes.
        seeds: of training.
        latency_ms: median time of a plan, for all episodes at once.
    """

    score: Figure
    success: Figure
    episodes: int
    seeds: int
    latency_ms: float


def judge(runs: Sequence[Rollouts]) -> PolicyScore:
    """The figures of one policy a seed, all on the same episodes.

    Raises:
        ValueError: none, or not on as many episodes.
    """
    _check(runs)
    scores, success = (np.stack([getattr(r, name) for r in runs]) for name in ("score", "success"))
    return PolicyScore(
        mean_with_interval(scores),
        share_with_interval(success),
        episodes=scores.shape[1],
        seeds=len(runs),
        latency_ms=float(np.median([run.latency_ms for run in runs])),
    )


def difference(runs: Sequence[Rollouts], others: Sequence[Rollouts]) -> Figure:
    """Mean score of ``runs`` less that of ``others``, seed by seed and episode by episode."""
    _check([*runs, *others])
    if len(runs) != len(others):
        raise ValueError(f"expected as many seeds, got {len(runs)} and {len(others)}")
    pairs = zip(runs, others, strict=True)
    return mean_with_interval(np.stack([run.score - other.score for run, other in pairs]))


def mean_with_interval(values: Array, *, seed: int = 0) -> Figure:
    """Mean of ``values`` ``[seeds, episodes]`` with a bootstrap interval over both.

    Seeds and episodes are drawn anew independently of each other, as every seed met the same
    episodes (Owen 2007, the pigeonhole bootstrap); never narrower than Student's over seeds. One
    seed says nothing of
    others: then the interval is over episodes alone.
    """
    values = np.asarray(values, dtype=np.float64)
    seeds, episodes = values.shape
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(episodes, np.full(episodes, 1 / episodes), DRAWS) / episodes
    if seeds == 1:
        means = weights @ values[0]
    else:
        of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS) / seeds
        means = np.einsum("ds,se,de->d", of_seeds, values, weights)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    middle, half = float(values.mean()), 0.0
    if seeds > 1:  # of few seeds a bootstrap is too narrow
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, seeds - 1))
        half *= float(values.mean(axis=1).std(ddof=1)) / math.sqrt(seeds)
    return Figure(middle, min(float(low), middle - half), max(float(high), middle + half))


def share_with_interval(hits: NDArray[np.bool_]) -> Figure:
    """Share of ``hits`` ``[seeds, episodes]`` with Wilson's interval for as many episodes.

    Seeds meet the same episodes and are not counted as more. Sound at 0 and 1, where a bootstrap
    says that it is certain.
    """
    count, share = hits.shape[1], float(hits.mean())
    middle = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2)) / (1 + Z**2 / count)
    return Figure(share, max(0.0, middle - half), min(1.0, middle + half))


def of_checkpoints(scores: Sequence[float], last: int = 10) -> tuple[float, float]:
    """Mean of the last checkpoints and the best of all: the paper's two figures.

    The best was chosen on the very episodes that judge it, so it is too good; compare it with other
    bests alone.
    """
    if not scores or last < 1:
        raise ValueError(f"expected scores and last >= 1, got {len(scores)} and {last}")
    return float(np.mean(scores[-last:])), float(max(scores))


def _check(runs: Sequence[Rollouts]) -> None:
    counts = {len(run.coverage) for run in runs}
    if len(counts) != 1:
        raise ValueError(f"expected runs of the same episodes, got {sorted(counts) or 'none'}")
