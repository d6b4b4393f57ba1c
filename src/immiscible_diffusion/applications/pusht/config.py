"""Which demonstrations a policy learns from, and how they are cut into windows."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from immiscible_diffusion.training.task import EvalConfig


@dataclass(frozen=True)
class DemonstrationConfig:
    """Recorded demonstrations, cut into windows of observations and actions.

    Args:
        path: a Zarr store as Diffusion Policy's, an .npz of its arrays, or a LeRobot folder.
        obs_type: ``keypoint``, ``relative`` (to the agent) or ``state``; LeRobot's observations
            are taken as they are.
        differences: condition on the last observation and its change instead of all observations.
        horizon: actions that the policy predicts.
        n_obs_steps: observations that it sees.
        n_action_steps: predicted actions that are carried out.
        val_ratio: fraction of the episodes to validate on, at least one.
        split_seed: seed of their choice.
        max_train_episodes: train on at most so many of the rest.
        do_mask_loss_for_padding: mask the repeated steps that pad windows at the ends of episodes,
            so that neither the coupling's distance nor the loss sees them; otherwise they are data
            like all others, and a policy learns to stand still at the end, as in Diffusion Policy.
    """

    path: str | None = None
    obs_type: Literal["keypoint", "relative", "state"] = "keypoint"
    differences: bool = False
    horizon: int = 16
    n_obs_steps: int = 2
    n_action_steps: int = 8
    val_ratio: float = 0.1
    split_seed: int = 42
    max_train_episodes: int | None = None
    do_mask_loss_for_padding: bool = True

    def __post_init__(self) -> None:
        h, o, a = self.horizon, self.n_obs_steps, self.n_action_steps
        if min(h, o, a) < 1 or o - 1 + a > h:
            raise ValueError(
                f"expected horizon >= n_obs_steps - 1 + n_action_steps, all >= 1; got {h}, {o} and {a}"
            )

    def tiny(self) -> "DemonstrationConfig":
        """Return the config of a smoke run."""
        return dataclasses.replace(self, max_train_episodes=min(self.max_train_episodes or 8, 8))


@dataclass(frozen=True)
class PolicyEvalConfig(EvalConfig):
    """When and how policies are evaluated: on validation windows and in the simulator.

    Args:
        sampling_steps: numbers of steps of the recipe's sampler.
        num: how many training steps, spaced evenly in their logarithm.
        start: the first of them, as a fraction of all steps.
        steps: the training steps themselves, instead of ``num`` and ``start``.
        episodes: of the simulator, from fixed initial states; 0 = no simulator.
        windows: validation windows that the error of actions is measured on.
        rollout_every: run the simulator at ``all`` evaluated training steps, or at the ``last``.
        workers: processes of the simulator; 0 = in this one.
    """

    sampling_steps: tuple[int, ...] = (10,)
    num: int = 5
    episodes: int = 50
    windows: int = 512
    rollout_every: Literal["all", "last"] = "all"
    workers: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.episodes < 0 or self.windows < 1 or self.workers < 0:
            raise ValueError(
                f"expected eval.episodes >= 0, windows >= 1 and workers >= 0, got {self.episodes}, "
                f"{self.windows} and {self.workers}"
            )
        if self.rollout_every not in ("all", "last"):
            raise ValueError(f"eval.rollout_every must be all or last, got {self.rollout_every!r}")

    def tiny(self) -> "PolicyEvalConfig":
        """Shrink to a smoke run."""
        return dataclasses.replace(
            self,
            episodes=min(2, self.episodes),
            windows=16,
            sampling_steps=(1, 2),
            num=2,
            start=0.5,
        )
