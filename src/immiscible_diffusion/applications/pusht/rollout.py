"""A policy at work on Push-T: it plans, carries out a part of the plan, looks, plans again."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from immiscible_diffusion.applications.pusht.states import STEPS, THRESHOLD, observe
from immiscible_diffusion.applications.pusht.vector_env import Tables

Array = NDArray[np.float64]


class Policy(Protocol):
    """Plans actions from what was seen."""

    def __call__(self, observations: Tensor, *, episodes: Tensor, plan: int) -> Tensor:
        """Actions ``[B, horizon, 2]``, the first that of the first observation, in pixels.

        Args:
            observations: ``[B, observations, O]`` float32, the last one of now.
            episodes: ``[B]`` int64: which episodes these are, to key noise by.
            plan: number of the plan in its episode, from 0.
        """


@dataclass(frozen=True)
class Rollouts:
    """What a policy did.

    Attributes:
        states: ``[E, steps + 1, 5]`` float64, from the first; after the end of an episode its last.
        actions: ``[E, steps, 2]``; NaN after the end.
        coverage: ``[E, steps]``: share of the goal covered; NaN after the end.
        latency: seconds that each plan took, for all episodes at once, and for how many.
    """

    states: Array
    actions: Array
    coverage: Array
    latency: tuple[tuple[float, int], ...] = ()

    @property
    def score(self) -> Array:
        """``[E]``: largest coverage reached, as a share of 0.95, at most 1."""
        best = np.nanmax(self.coverage, axis=1)
        return np.minimum(1.0, best / THRESHOLD)

    @property
    def success(self) -> NDArray[np.bool_]:
        """``[E]``: whether more than 0.95 was covered."""
        reached: NDArray[np.bool_] = np.nanmax(self.coverage, axis=1) > THRESHOLD
        return reached

    @property
    def steps(self) -> NDArray[np.int64]:
        """``[E]``: steps until the episode ended."""
        return np.isfinite(self.coverage).sum(axis=1)

    @property
    def latency_ms(self) -> float:
        """Median time of a plan in milliseconds, for the whole batch of episodes."""
        return 1000 * float(np.median([seconds for seconds, _ in self.latency]))


@dataclass(frozen=True)
class Execution:
    """How plans are carried out.

    Args:
        kind: of observations: see ``observe``.
        observations: that a policy sees.
        execute: actions of a plan that are carried out, from the last observation on.
        steps: an episode ends after so many, or with success.
    """

    kind: str = "keypoint"
    observations: int = 2
    execute: int = 8
    steps: int = STEPS

    def __post_init__(self) -> None:
        if min(self.observations, self.execute, self.steps) < 1:
            raise ValueError(
                f"expected observations, execute and steps >= 1, got {self.observations}, "
                f"{self.execute} and {self.steps}"
            )
        observe(torch.zeros(1, 5), self.kind)

    def chosen(self, plans: Tensor, left: int) -> Array:
        """What is carried out of plans ``[B, horizon, 2]`` with ``left`` steps left."""
        first = self.observations - 1
        if plans.ndim != 3 or plans.shape[1] < first + self.execute or plans.shape[2] != 2:
            raise ValueError(
                f"a policy must plan [B, {first + self.execute} or more, 2], got "
                f"{tuple(plans.shape)}"
            )
        return plans[:, first : first + min(self.execute, left)].double().cpu().numpy()


def roll_out(
    tables: Tables,
    policy: Policy,
    starts: Array | Tensor,
    execution: Execution = Execution(),
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Rollouts:
    """Let ``policy`` work on every table from ``starts`` ``[E, 5]``; episodes end with success.

    Raises:
        ValueError: other than one start a table, or a plan that is too short or not finite.
    """
    run = _Run.begin(np.asarray(starts, dtype=np.float64), execution)
    tables.reset(run.states[:, 0])
    latency = []
    for plan, begun in enumerate(range(0, execution.steps, execution.execute)):
        alive = run.alive()
        if not len(alive):
            break
        seen = observe(torch.from_numpy(run.history(alive, begun)), execution.kind).float()
        before = clock()
        plans = policy(seen, episodes=torch.from_numpy(alive), plan=plan)
        actions = execution.chosen(plans, execution.steps - begun)
        latency.append((clock() - before, len(alive)))
        run.take(alive, begun, actions, tables)
    return Rollouts(run.states, run.actions, run.coverage, tuple(latency))


@dataclass
class _Run:
    """Episodes under way."""

    states: Array
    actions: Array
    coverage: Array
    seen: int

    @classmethod
    def begin(cls, starts: Array, execution: Execution) -> "_Run":
        episodes, steps = len(starts), execution.steps
        states = np.repeat(starts[:, None], steps + 1, axis=1)
        coverage = np.full((episodes, steps), np.nan)
        actions = np.full((episodes, steps, 2), np.nan)
        return cls(states, actions, coverage, execution.observations)

    def alive(self) -> NDArray[np.int64]:
        """The episodes without success."""
        best = np.where(np.isnan(self.coverage), 0, self.coverage).max(axis=1)
        return np.flatnonzero(best <= THRESHOLD)

    def history(self, alive: NDArray[np.int64], now: int) -> Array:
        """The last states ``[B, observations, 5]``; before the first there are copies of it."""
        places = np.maximum(np.arange(now - self.seen + 1, now + 1), 0)
        return self.states[alive][:, places]

    def take(self, alive: NDArray[np.int64], begun: int, actions: Array, tables: Tables) -> None:
        """Carry out ``actions`` ``[B, n, 2]``; what comes after success does not count."""
        if not np.isfinite(actions).all():
            episode = int(alive[~np.isfinite(actions).all(axis=(1, 2))][0])
            raise ValueError(f"the plan for episode {episode} at step {begun} is not finite")
        steps = tables.step(actions, alive.tolist())
        end = begun + actions.shape[1]
        over = np.cumsum(steps.coverage > THRESHOLD, axis=1)
        over = np.concatenate([np.zeros_like(over[:, :1]), over[:, :-1]], axis=1) > 0
        self.coverage[alive, begun:end] = np.where(over, np.nan, steps.coverage)
        self.actions[alive, begun:end] = np.where(over[..., None], np.nan, actions)
        for row, episode in enumerate(alive):
            kept = steps.state[row][~over[row]]
            self.states[episode, begun + 1 : begun + 1 + len(kept)] = kept
            self.states[episode, begun + 1 + len(kept) :] = kept[-1]
