"""Couplings in other people's trainers: torchcfm, LeRobot, loader workers, one number to log.

``docs/trainers/`` has a page for each trainer.
"""

from immiscible_diffusion.integrations.alignment import pull
from immiscible_diffusion.integrations.dataloader import Collate
from immiscible_diffusion.integrations.lerobot import matched_noise, pair_actions, pair_lerobot
from immiscible_diffusion.integrations.torchcfm import PlanSampler, as_torchcfm

__all__ = [
    "Collate", "PlanSampler", "as_torchcfm", "matched_noise", "pair_actions", "pair_lerobot", "pull"
]  # fmt: skip
