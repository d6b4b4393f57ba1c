"""Validation loss on fixed independent noise and times, comparable across steps and couplings."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from immiscible_diffusion.data import DataConfig, DataSet
from immiscible_diffusion.training.task import Task
from immiscible_diffusion.utils.batch import Batch, Cond
from immiscible_diffusion.utils.random import RandomStreams

VALIDATION_SAMPLES = 512
HAVE_TEST_SPLIT = ("cifar10", "fashion_mnist")


class ValidationBatch(NamedTuple):
    """What a loss takes after model and path."""

    data: Tensor
    noise: Tensor
    t: Tensor
    cond: Cond | None
    mask: Tensor | None


@dataclass(frozen=True)
class ValidationSet:
    """Up to 512 samples with their noise and times; the same for every coupling and seed.

    Attributes:
        samples: as training sees them.
        noise: ``[N, *shape]``.
        t: ``[N]``.
        split: of the data: ``test`` where the set has one, ``train`` otherwise.
        batch_size: samples through the network at a time.
    """

    samples: Batch
    noise: Tensor
    t: Tensor
    split: str
    batch_size: int = VALIDATION_SAMPLES

    @classmethod
    def of(cls, task: Task) -> "ValidationSet":
        """Choose the samples and draw noise and times."""
        dataset, split = task.validation_data()
        streams = RandomStreams(0, rank=0)
        rows = dataset.common_rows()
        rows = rows[torch.randperm(len(rows), generator=streams.order)[:VALIDATION_SAMPLES]]
        encode = RandomStreams(0, rank=0, device=task.device).encode
        size = task.max_batch_size or VALIDATION_SAMPLES
        samples = _join([task.encode(dataset.batch(part), encode) for part in rows.split(size)])
        noise = torch.randn(samples.data.shape, generator=streams.noise)
        t = task.recipe.path.sample_time(len(rows), generator=streams.time)
        if not task.recipe.conditional:
            samples = Batch(samples.data, None, samples.mask)
        return cls(samples, noise.to(task.device), t.to(task.device), split, size)

    def __iter__(self) -> Iterator[ValidationBatch]:
        data, cond, mask = self.samples.data, self.samples.cond, self.samples.mask
        for start in range(0, len(data), self.batch_size):
            rows = slice(start, start + self.batch_size)
            yield ValidationBatch(
                data[rows],
                self.noise[rows],
                self.t[rows],
                cond and {name: value[rows] for name, value in cond.items()},
                None if mask is None else mask[rows],
            )


def _join(batches: list[Batch]) -> Batch:
    """Concatenate batches of one kind."""
    first = batches[0]
    if len(batches) == 1:
        return first
    cond = {name: torch.cat([(b.cond or {})[name] for b in batches]) for name in first.cond or {}}
    masks = [b.mask for b in batches if b.mask is not None]
    data = torch.cat([batch.data for batch in batches])
    return Batch(data, cond or None, torch.cat(masks) if masks else None)


def held_out_or_training(task: Task, data: DataConfig) -> tuple[DataSet, str]:
    """Return the test split of ``data`` if there is one, else what ``task`` trains on."""
    if data.name in HAVE_TEST_SPLIT and data.split == "train" and not task.dataset.is_encoded:
        try:
            return task.load_data("validation"), "test"
        except ValueError as error:  # a local folder without a test split, say
            warnings.warn(f"validation uses training data: {error}", stacklevel=2)
    return task.dataset, data.split
