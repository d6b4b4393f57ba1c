"""Receding-horizon control on Push-T: predict a chunk of actions, carry out a part, repeat.

With scores and success of what came of it, and their intervals over episodes and seeds.
"""

import math
import os
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from immiscible_diffusion.applications.pusht.environment import Array, VectorEnv
from immiscible_diffusion.applications.pusht.states import MAX_STEPS, SUCCESS_COVERAGE, observe
from immiscible_diffusion.utils.atomic_files import atomic_path
from immiscible_diffusion.utils.statistics import CONFIDENCE, Interval, mean_interval

NORMAL_QUANTILE = 1.959964  # of 97.5%
BOOTSTRAP_DRAWS = 4000


class PolicyFunction(Protocol):
    """Predicts a chunk of actions from observations."""

    def __call__(self, observations: Tensor, *, episodes: Tensor, chunk: int) -> Tensor:
        """Predict actions ``[B, horizon, 2]``, the first that of the first observation, in pixels.

        ``observations`` are ``[B, n_obs_steps, O]`` float32, the latest last; noise may be keyed by
        ``episodes`` ``[B]`` int64 and ``chunk``, the number of the chunk in its episode from 0.
        """


@dataclass(frozen=True)
class Rollouts:
    """What a policy did in E episodes."""

    states: Array  # ``[E, steps + 1, 5]``, from the first; after an episode's end its last
    actions: Array  # ``[E, steps, 2]``; NaN after the end
    coverage: Array  # ``[E, steps]``: fraction of the goal covered; NaN after the end
    latency: tuple[tuple[float, int], ...] = ()  # seconds of each chunk, for all episodes together, and how many

    @property
    def score(self) -> Array:
        """``[E]``: ``min(1, largest coverage / 0.95)``, the score of Diffusion Policy."""
        return np.minimum(1.0, np.nanmax(self.coverage, axis=1) / SUCCESS_COVERAGE)

    @property
    def success(self) -> NDArray[np.bool_]:
        """``[E]``: whether more than 0.95 was covered."""
        return np.asarray(np.nanmax(self.coverage, axis=1) > SUCCESS_COVERAGE)

    @property
    def steps(self) -> NDArray[np.int64]:
        """``[E]``: steps until the episode ended."""
        return np.isfinite(self.coverage).sum(axis=1)

    @property
    def latency_ms(self) -> float:
        """Median time of a chunk in milliseconds, for the batch of all episodes."""
        return 1000 * float(np.median([seconds for seconds, _ in self.latency]))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an .npz of plain arrays, complete or not at all."""
        latency = np.array(self.latency, dtype=np.float64).reshape(-1, 2)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **{**vars(self), "latency": latency})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Rollouts":
        """Read what ``save`` wrote; ValueError names a file that is damaged."""
        try:
            with np.load(path, allow_pickle=False) as file:
                latency = tuple((float(seconds), int(count)) for seconds, count in file["latency"])
                return cls(file["states"], file["actions"], file["coverage"], latency)
        except (ValueError, KeyError, EOFError, RuntimeError, zlib.error, BadZipFile) as error:
            raise ValueError(f"{path} does not hold rollouts ({error}); remove it, and evaluate again") from error


def rollout(
    env: VectorEnv,
    policy: PolicyFunction,
    starts: Array | Tensor,
    *,
    obs_type: str = "keypoint",
    n_obs_steps: int = 2,
    n_action_steps: int = 8,
    max_steps: int = MAX_STEPS,
    clock: Callable[[], float] = time.perf_counter,
) -> Rollouts:
    """Run ``policy`` in every environment from ``starts`` ``[E, 5]``.

    It sees ``n_obs_steps`` observations of ``obs_type`` (``observe``); before the first they repeat it.
    ``n_action_steps`` of its actions are carried out, from the last observation on. Episodes end after ``max_steps``,
    or with success. ``clock`` gives seconds, for the latency. ValueError if a chunk is too short or not finite.
    """
    if min(n_obs_steps, n_action_steps, max_steps) < 1:
        sizes = n_obs_steps, n_action_steps, max_steps
        raise ValueError(f"expected n_obs_steps, n_action_steps and max_steps >= 1, got {sizes}")
    first = n_obs_steps - 1
    initial = np.asarray(starts, dtype=np.float64)
    states = np.repeat(initial[:, None], max_steps + 1, axis=1)
    actions = np.full((len(initial), max_steps, 2), np.nan)
    coverage = np.full((len(initial), max_steps), np.nan)
    running, latency = np.arange(len(initial)), []
    env.reset(initial)
    for chunk, now in enumerate(range(0, max_steps, n_action_steps)):
        end = min(now + n_action_steps, max_steps)
        recent = np.maximum(np.arange(now - first, now + 1), 0)
        observations = observe(torch.from_numpy(states[running][:, recent]), obs_type).float()
        started = clock()
        predicted = policy(observations, episodes=torch.from_numpy(running), chunk=chunk)
        shape = tuple(predicted.shape)
        if len(shape) != 3 or shape[1] < first + n_action_steps or shape[2] != 2:
            raise ValueError(f"expected actions [B, {first + n_action_steps} or more, 2], got {shape}")
        targets = predicted[:, first : first + end - now].cpu().double().numpy()
        latency.append((clock() - started, len(running)))
        if len(bad := np.flatnonzero(~np.isfinite(targets).all(axis=(1, 2)))):
            raise ValueError(f"the actions for episode {running[bad[0]]} at step {now} are not finite")
        steps = env.step(targets, running.tolist())
        # The step that reaches the goal counts, and what follows does not.
        reached = np.cumsum(steps.coverage > SUCCESS_COVERAGE, axis=1) > 0
        over = np.pad(reached, ((0, 0), (1, 0)))[:, :-1]
        coverage[running, now:end] = np.where(over, np.nan, steps.coverage)
        actions[running, now:end] = np.where(over[..., None], np.nan, targets)
        for row, episode in enumerate(running):
            count = int((~over[row]).sum())
            states[episode, now + 1 : now + 1 + count] = steps.state[row, :count]
            states[episode, now + 1 + count :] = steps.state[row, count - 1]
        running = running[~reached[:, -1]]
        if not len(running):
            break
    return Rollouts(states, actions, coverage, tuple(latency))


# -- scores ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PolicyScore:
    """What one policy per seed reached on the same episodes."""

    score: Interval  # mean of ``min(1, largest coverage / 0.95)``, the score of Diffusion Policy
    success: Interval  # fraction of episodes with more than 0.95 covered
    episodes: int  # number of different episodes
    seeds: int  # number of training seeds
    latency_ms: float  # median time to sample a chunk of actions, for all episodes together

    @property
    def values(self) -> dict[str, float]:
        """Score, success and latency without their intervals."""
        score, success = self.score.value, self.success.value
        return {"score": score, "success": success, "latency_ms": self.latency_ms}


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

    Seeds and episodes are resampled independently of each other, as all seeds meet the same episodes (Owen 2007, the
    pigeonhole bootstrap). Of few seeds a bootstrap is too narrow: the interval is never narrower than Student's over
    seeds. One seed tells nothing of others: its interval is over episodes alone.
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

    Seeds meet the same episodes and are not counted as more. Sound at 0 and 1, where a bootstrap has no width.
    """
    n, share, z = hits.shape[1], float(hits.mean()), NORMAL_QUANTILE
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return Interval(share, low, high, n, float(hits.std()))


def last_and_best(scores: Sequence[float], last: int = 10) -> tuple[float, float]:
    """Mean of the ``last`` checkpoints and the best of all: the paper's two figures.

    The best is chosen on the episodes that score it, so it is too good; compare it with other bests only.
    """
    if not scores or last < 1:
        raise ValueError(f"expected scores and last >= 1, got {len(scores)} and {last}")
    return float(np.mean(scores[-last:])), float(max(scores))


def _check(runs: Sequence[Rollouts]) -> None:
    counts = {len(run.coverage) for run in runs}
    if len(counts) != 1:
        raise ValueError(f"expected runs of the same episodes, got {sorted(counts) or 'none'}")
