"""Which demonstrations a policy learns from, and how they are cut into windows."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from immiscible_diffusion.applications.pusht.demonstrations import load_demonstrations
from immiscible_diffusion.applications.pusht.windows import Windows


@dataclass(frozen=True)
class DemonstrationConfig:
    """Recorded demonstrations, cut into windows of observations and actions.

    Args:
        path: a Zarr store as Diffusion Policy's, an .npz of its arrays, or a LeRobot folder.
        observation: ``keypoint``, ``relative`` (to the agent) or ``state``; LeRobot's are taken as
            they are.
        differences: tell the last observation and its change, not both observations.
        horizon: actions of a plan.
        observations: that a policy sees.
        execute: actions of a plan that are carried out.
        validation: share of the episodes held out, at least one.
        split_seed: chooses them.
        limit: train on so many of the rest.
        learn_copies: learn the copies that pad windows at the ends of episodes too, as Diffusion
            Policy does; otherwise neither pairing nor loss sees them.
    """

    path: str | None = None
    observation: Literal["keypoint", "relative", "state"] = "keypoint"
    differences: bool = False
    horizon: int = 16
    observations: int = 2
    execute: int = 8
    validation: float = 0.1
    split_seed: int = 42
    limit: int | None = None
    learn_copies: bool = False

    # What image data have besides.
    name: ClassVar[str] = "demonstrations"
    split: ClassVar[str] = "train"
    labels: ClassVar[bool] = True
    flip: ClassVar[bool] = False

    def tiny(self) -> "DemonstrationConfig":
        """Of a smoke run."""
        return replace(self, limit=min(self.limit or 8, 8))


def load_windows(config: DemonstrationConfig) -> tuple[Windows, Windows]:
    """Windows to train on and to validate on, normalized by the ranges of the first.

    Raises:
        ValueError: no path, or a store that cannot be read; it names the episode.
    """
    if config.path is None:
        raise ValueError(
            "the demonstrations need data.path: the folder pusht_cchi_v7_replay.zarr of Diffusion "
            "Policy, an .npz of its arrays, or the folder of a LeRobot data set"
        )
    episodes = load_demonstrations(config.path, observation=config.observation)
    train, held_out = episodes.split(config.validation, seed=config.split_seed, limit=config.limit)
    windows = Windows.of(
        train,
        differences=config.differences,
        horizon=config.horizon,
        observations=config.observations,
        execute=config.execute,
        learn_copies=config.learn_copies,
    )
    return windows, windows.like(held_out)
