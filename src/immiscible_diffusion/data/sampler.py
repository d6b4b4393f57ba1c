"""The order of the data: a pure function of (seed, step), whatever the number of ranks."""

from collections.abc import Generator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from immiscible_diffusion.utils.background import prefetch_iterator
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.random import RandomStreams

if TYPE_CHECKING:
    from immiscible_diffusion.data.base import DataSet


class Sampler(Protocol):
    """Which samples a step gets: a pure function of the seed and the step."""

    @property
    def batch_size(self) -> int:
        """Samples per step, over all ranks."""

    @property
    def seed(self) -> int:
        """The run's."""

    def indices(self, step: int) -> Tensor:
        """``[batch_size]`` int64."""


@dataclass(frozen=True)
class KeyedSampler:
    """An endless stream of epochs, each a permutation of the data, cut into global batches."""

    count: int  # number of samples
    batch_size: int  # samples per step, over all ranks; may exceed ``count``
    seed: int  # the run's

    def __post_init__(self) -> None:
        if self.count < 1 or self.batch_size < 1:
            raise ValueError(f"expected count >= 1 and batch_size >= 1, got {self}")

    def indices(self, step: int) -> Tensor:
        """``[batch_size]`` int64: positions ``step * batch_size`` ... of the stream."""
        positions = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, offsets = positions // self.count, positions % self.count
        parts = ((int(epoch), offsets[epochs == epoch]) for epoch in epochs.unique())
        return torch.cat([_permutation(self.seed, epoch, self.count)[part] for epoch, part in parts])


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> Tensor:
    return torch.randperm(count, generator=RandomStreams(seed, epoch).order)


def check_split(batch_size: int, parts: int) -> None:
    """Raise ValueError unless the global batch divides into ``parts`` (devices x accumulation)."""
    if batch_size % parts:
        below = batch_size // parts * parts
        choices = " or ".join(str(size) for size in (below, below + parts) if size)
        raise ValueError(
            f"batch_size {batch_size} is global and does not divide over {parts} parts (devices x "
            f"accumulation); nearest: {choices}"
        )


def batches(
    dataset: "DataSet",
    sampler: Sampler,
    *,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    gradient_accumulation_steps: int = 1,
    ahead: int = 2,
    num_workers: int = 0,
) -> Generator[Batch, None, None]:
    """The micro-batches of one rank from step ``start`` on, loaded in a background thread.

    A global batch is cut into ``accumulation * world`` equal chunks; micro-batch m of rank r is chunk ``m * world +
    r``, augmented by the random stream of that chunk: so W ranks get what one process gets in W micro-batches.

    ``ahead`` batches wait, while one more is loaded; 0 = no thread. With ``num_workers`` processes each loads the
    next batch that none has begun, at most two ahead, until the generator is closed; their order and their
    augmentation stay the same.

    Raises:
        ValueError: the batch does not divide into the chunks, or a number is out of range. Errors of the data set
            surface at the ``next`` that would have returned the batch.
    """
    parts = world * gradient_accumulation_steps
    if not 0 <= rank < world or parts < 1 or min(start, ahead, num_workers) < 0:
        raise ValueError(
            f"expected 0 <= rank < world, accumulation >= 1, start, ahead and num_workers >= 0; got {rank=}"
            f", {world=}, {gradient_accumulation_steps=}, {start=}, {ahead=}, {num_workers=}"
        )
    check_split(sampler.batch_size, parts)

    keys = ((step, chunk) for step in count(start) for chunk in range(rank, parts, world))
    chunks = _Chunks(dataset, sampler, parts)

    def load() -> Generator[Batch, None, None]:
        if not num_workers:
            yield from map(chunks.batch, keys)
        # Its own generator: torch's would be drawn from.
        options: dict[str, Any] = {"batch_size": None, "num_workers": num_workers, "generator": torch.Generator()}
        try:
            for item in DataLoader(chunks, sampler=keys, **options):
                if isinstance(item, ValueError):
                    raise item
                yield item
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker (pid"):  # it was not killed
                raise
            raise ValueError(
                f"one of {num_workers} workers that load was killed ({error}): memory, or /dev/shm, through which "
                f"batches come, is mostly full; with fewer --num_workers, or more of these, the same command resumes"
            ) from error

    return prefetch_iterator(load(), ahead + 1, name="batches", finish=False) if ahead else load()


@dataclass(frozen=True)
class _Chunks(Dataset[Batch | ValueError]):
    """The micro-batches by step and chunk, for the workers of a ``DataLoader``."""

    dataset: "DataSet"
    sampler: Sampler
    parts: int

    def batch(self, key: tuple[int, int]) -> Batch:
        step, chunk = key
        indices = self.sampler.indices(step).chunk(self.parts)[chunk]
        return self.dataset.batch(indices, RandomStreams(self.sampler.seed, step, chunk).augment)

    def __getitem__(self, key: tuple[int, int]) -> Batch | ValueError:
        try:
            return self.batch(key)
        except ValueError as error:  # raised by the consumer, not wrapped in a worker's traceback
            return ValueError(*error.args)
