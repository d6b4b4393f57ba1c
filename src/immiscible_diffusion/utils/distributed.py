"""Which of several processes this one is."""

from typing import Any

import torch

from immiscible_diffusion.utils.device import pick_device
from immiscible_diffusion.utils.optional_deps import require_extra


def ranks_of(device: str) -> Any:
    """The processes that ``accelerate launch`` started, or this one alone."""
    with require_extra("train", "running on several processes"):
        from accelerate import PartialState
    return PartialState(cpu=pick_device(device).type == "cpu")


def place(device: str) -> tuple[int, int, torch.device]:
    """Rank, number of processes and device of this one; 0, 1 without ``accelerate launch``."""
    state, where = ranks_of(device), pick_device(device)
    if state.num_processes > 1 and where.type == "cuda":
        where = state.device
    return state.process_index, state.num_processes, where
