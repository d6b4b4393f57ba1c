"""Which of several processes this one is."""

import torch

from immiscible_diffusion.extra import needs_extra
from immiscible_diffusion.trained import pick_device


def place(device: str) -> tuple[int, int, torch.device]:
    """Rank, number of processes and device of this one; 0, 1 without `accelerate launch`."""
    with needs_extra("train", "running on several processes"):
        from accelerate import PartialState
    state = PartialState(cpu=device == "cpu")
    where = pick_device(device)
    if state.num_processes > 1 and where.type == "cuda":
        where = state.device
    return state.process_index, state.num_processes, where
