"""Random numbers of the pairing alone, so that runs of different k differ in nothing else."""

import os
from functools import cache

import torch


@cache
def own_generator(device: torch.device | str) -> torch.Generator:
    """A generator for couplings in this process, made once for every device.

    ``coupling.pair(data, torch.randn_like(data), generator=own_generator(data.device))`` leaves torch's own generator
    where ``randn_like`` left it, whatever the coupling: times, dropout and the order of the data are those of the run
    without it. Seeded at its first use by torch's seed and the rank (the launcher's ``RANK``); a resumed run starts it
    anew.
    """
    rank = int(os.environ.get("RANK", 0))
    return torch.Generator(device).manual_seed((torch.initial_seed() + 1_000_003 * (rank + 1)) % 2**63)
