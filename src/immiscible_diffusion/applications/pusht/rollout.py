"""Receding-horizon control on Push-T: predict a chunk of actions, carry out a part, repeat."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from immiscible_diffusion.applications.pusht.environment import Array, VectorEnv
from immiscible_diffusion.applications.pusht.states import MAX_STEPS, SUCCESS_COVERAGE, observe
from immiscible_diffusion.utils.atomic_files import atomic_path


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
    # seconds that each chunk took, for all episodes together, and for how many
    latency: tuple[tuple[float, int], ...] = ()

    @property
    def score(self) -> Array:
        """``[E]``: ``min(1, largest coverage / 0.95)``, the score of Diffusion Policy."""
        return np.minimum(1.0, np.nanmax(self.coverage, axis=1) / SUCCESS_COVERAGE)

    @property
    def success(self) -> NDArray[np.bool_]:
        """``[E]``: whether more than 0.95 was covered."""
        success: NDArray[np.bool_] = np.nanmax(self.coverage, axis=1) > SUCCESS_COVERAGE
        return success

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
    def load(cls, path: str | os.PathLike[str]) -> "Rollouts | None":
        """Read what ``save`` wrote; None if it is not there."""
        if not Path(path).exists():
            return None
        with np.load(path, allow_pickle=False) as file:
            latency = tuple((float(seconds), int(count)) for seconds, count in file["latency"])
            return cls(file["states"], file["actions"], file["coverage"], latency)


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

    It sees ``n_obs_steps`` observations of ``obs_type`` (``observe``); before the first they repeat
    it. ``n_action_steps`` of its actions are carried out, from the last observation on. An episode
    ends after ``max_steps``, or with success. ``clock`` gives seconds, for the latency.

    Raises:
        ValueError: another number of starts than environments, or a chunk that is too short or not
            finite.
    """
    if min(n_obs_steps, n_action_steps, max_steps) < 1:
        raise ValueError(
            f"expected n_obs_steps, n_action_steps and max_steps >= 1, got {n_obs_steps}, "
            f"{n_action_steps} and {max_steps}"
        )
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
            raise ValueError(
                f"expected actions [B, {first + n_action_steps} or more, 2], got {shape}"
            )
        targets = predicted[:, first : first + end - now].double().cpu().numpy()
        latency.append((clock() - started, len(running)))
        if len(bad := np.flatnonzero(~np.isfinite(targets).all(axis=(1, 2)))):
            raise ValueError(
                f"the actions for episode {running[bad[0]]} at step {now} are not finite"
            )
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
