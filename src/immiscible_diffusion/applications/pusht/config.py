"""Which demonstrations a policy learns from, and how they are cut into windows."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from immiscible_diffusion.applications.pusht.demonstrations import load_demonstrations
from immiscible_diffusion.applications.pusht.windows import Windows
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
        do_mask_loss_for_padding: leave the repeated steps that pad windows at the ends of episodes
            out of pairing and loss; otherwise they are data, as in Diffusion Policy.
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


def load_windows(config: DemonstrationConfig) -> Windows:
    """Load the windows to train on, with those to validate on, which are normalized alike.

    Raises:
        ValueError: no path, or a store that cannot be read; it names the episode.
    """
    if config.path is None:
        raise ValueError(
            "the demonstrations need data.path: the folder pusht_cchi_v7_replay.zarr of Diffusion "
            "Policy, an .npz of its arrays, or the folder of a LeRobot data set"
        )
    episodes = load_demonstrations(config.path, obs_type=config.obs_type)
    train, validation = episodes.split(
        config.val_ratio, seed=config.split_seed, max_train_episodes=config.max_train_episodes
    )
    windows = Windows.fit(
        train,
        differences=config.differences,
        horizon=config.horizon,
        n_obs_steps=config.n_obs_steps,
        n_action_steps=config.n_action_steps,
        do_mask_loss_for_padding=config.do_mask_loss_for_padding,
    )
    validation_windows = dataclasses.replace(windows, episodes=validation)
    return dataclasses.replace(windows, validation=validation_windows)
