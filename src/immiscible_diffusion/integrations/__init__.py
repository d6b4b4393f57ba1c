"""Couplings in other people's trainers: torchcfm, LeRobot, loader workers, one number to log, one step checked.

``docs/trainers/`` has a page for each trainer.
"""

from immiscible_diffusion.integrations.alignment import pull
from immiscible_diffusion.integrations.dataloader import Collate
from immiscible_diffusion.integrations.generators import own_generator
from immiscible_diffusion.integrations.lerobot import matched_noise, pair_actions, pair_lerobot
from immiscible_diffusion.integrations.step_check import StepReport, check_step
from immiscible_diffusion.integrations.torchcfm import PlanSampler, as_torchcfm

__all__ = [
    "Collate", "PlanSampler", "StepReport", "as_torchcfm", "check_step", "matched_noise", "own_generator",
    "pair_actions", "pair_lerobot", "pull",
]  # fmt: skip
