"""The training data of one rank: its micro-batches from any step on."""

from collections.abc import Generator
from dataclasses import dataclass
from itertools import islice

import torch

from immiscible_diffusion.data import DataSet
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.random import RandomStreams


@dataclass(frozen=True)
class TrainDataLoader:
    """The micro-batches of one rank, counted from step 0 on: functions of the seed alone.

    Micro-batch m of rank r is keyed as chunk ``m world + r`` of its step, so W ranks see what one process sees in W
    micro-batches. ``batch_size`` is of a step, over all ranks and micro-batches; random numbers are drawn on
    ``device``.
    """

    dataset: DataSet
    batch_size: int
    seed: int
    device: torch.device
    rank: int = 0
    world: int = 1
    gradient_accumulation_steps: int = 1
    num_workers: int = 0

    def starting_at(self, index: int) -> Generator[Batch, None, None]:
        """Yield the micro-batches from number ``index`` on."""
        step, skipped = divmod(index, self.gradient_accumulation_steps)
        loader = self.dataset.batches(
            self.batch_size,
            self.seed,
            start=step,
            rank=self.rank,
            world=self.world,
            gradient_accumulation_steps=self.gradient_accumulation_steps,
            ahead=0,  # the thread that pairs makes them, or takes them from workers
            num_workers=self.num_workers,
        )
        for _ in islice(loader, skipped):
            pass
        return loader

    def __iter__(self) -> Generator[Batch, None, None]:
        return self.starting_at(0)

    def streams(self, index: int) -> RandomStreams:
        """Return the random streams of micro-batch ``index``: it is keyed as if it were a rank."""
        step, micro = divmod(index, self.gradient_accumulation_steps)
        return RandomStreams(self.seed, step, micro * self.world + self.rank, self.device)
