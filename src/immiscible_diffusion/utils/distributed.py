"""The processes of ``accelerate launch``, or this one alone."""

from typing import Any

import torch

from immiscible_diffusion.utils.device import pick_device
from immiscible_diffusion.utils.optional_deps import require_extra


def process_state(device: str) -> Any:
    """Return accelerate's ``PartialState``: rank, number of processes, barriers."""
    with require_extra("train", "running on several processes"):
        from accelerate import PartialState
    return PartialState(cpu=pick_device(device).type == "cpu")


def rank_world_device(device: str) -> tuple[int, int, torch.device]:
    """Return rank, number of processes and device of this process; 0 and 1 when alone."""
    state, picked = process_state(device), pick_device(device)
    if state.num_processes > 1 and picked.type == "cuda":
        picked = state.device
    return state.process_index, state.num_processes, picked
