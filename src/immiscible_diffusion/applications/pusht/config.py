"""Which demonstrations a policy learns from, and how they are cut into windows."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from immiscible_diffusion.training.task import EvalConfig
from immiscible_diffusion.utils.checks import NonNegativeInt, PositiveInt, Probability, check_fields


@dataclass(frozen=True)
class DemonstrationConfig:
    """Recorded demonstrations, cut into windows of observations and actions."""

    path: str | None = None  # a Zarr store as Diffusion Policy's, its arrays in .npz, or LeRobot's
    # keypoint, relative (to the agent) or state; LeRobot's observations are taken as they are
    obs_type: Literal["keypoint", "relative", "state"] = "keypoint"
    differences: bool = False  # condition on the last observation and its change instead of all observations
    horizon: PositiveInt = 16  # actions that the policy predicts
    n_obs_steps: PositiveInt = 2  # observations that it sees
    n_action_steps: PositiveInt = 8  # predicted actions that are carried out
    val_ratio: Probability = 0.1  # fraction of the episodes to validate on, at least one
    split_seed: NonNegativeInt = 42  # seed of their choice
    max_train_episodes: PositiveInt | None = None  # train on at most so many of the rest
    # mask the repeated steps that pad windows at the ends of episodes, so that neither the
    # coupling's distance nor the loss sees them; otherwise they are data like all others, and a
    # policy learns to stand still at the end, as in Diffusion Policy
    do_mask_loss_for_padding: bool = True

    def __post_init__(self) -> None:
        check_fields(self, "data.")
        h, o, a = self.horizon, self.n_obs_steps, self.n_action_steps
        if o - 1 + a > h:
            raise ValueError(f"expected data.horizon >= n_obs_steps - 1 + n_action_steps; got {h}, {o} and {a}")

    def tiny(self) -> "DemonstrationConfig":
        """Return the config of a smoke run."""
        return dataclasses.replace(self, max_train_episodes=min(self.max_train_episodes or 8, 8))


@dataclass(frozen=True)
class PolicyEvalConfig(EvalConfig):
    """When and how policies are evaluated: on validation windows and in the simulator."""

    sampling_steps: tuple[PositiveInt, ...] = (10,)  # numbers of steps of the recipe's sampler
    num: PositiveInt = 5  # how many training steps, spaced evenly in their logarithm
    episodes: NonNegativeInt = 50  # episodes of the simulator, from fixed initial states; 0 = no simulator
    windows: PositiveInt = 512  # validation windows that the error of actions is measured on
    rollout_every: Literal["all", "last"] = "all"  # run the simulator at all evaluated training steps, or at the last
    workers: NonNegativeInt = 0  # processes of the simulator; 0 = in this one

    def tiny(self) -> "PolicyEvalConfig":
        """Shrink to a smoke run."""
        episodes = min(2, self.episodes)
        return dataclasses.replace(self, episodes=episodes, windows=16, sampling_steps=(1, 2), num=2, start=0.5)
