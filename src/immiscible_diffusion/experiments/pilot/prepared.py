"""The data of a probe: of a size that a CPU can train on, split in two halves for every seed."""

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from immiscible_diffusion.data.in_memory import InMemoryData
from immiscible_diffusion.experiments.pilot.network import VALID
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.random import keyed_generator

FEWEST = 64
LARGEST = 16_384  # numbers a sample
MOST_HELD = 2_000
RMS = (0.05, 20.0)


@dataclass(frozen=True, eq=False)
class Prepared:
    """Data ``[N, *shape]`` to train on.

    Attributes:
        name: for reports.
        note: what every figure on them must say.
        batch: all data (0 where not valid), every condition they have, and the mask.
        seen: names of the conditions that the network is told.
        mirrored: the second half of the rows are mirror images of the first.
        original: shape of a sample before it was pooled.
    """

    name: str
    note: str
    batch: Batch
    seen: tuple[str, ...] = ()
    mirrored: bool = False
    original: tuple[int, ...] = ()

    @classmethod
    def of(cls, whole: InMemoryData, seen: tuple[str, ...] = (), *, normalize: bool = False) -> "Prepared":
        """``whole``, pooled if it is too large.

        Args:
            whole: the data.
            seen: conditions the network is told.
            normalize: shift and scale all data by one number each, to mean 0 and variance 1.

        Raises:
            ValueError: a condition the data lack, or data so large or small against noise of
                variance 1 that they cannot have been meant.
        """
        if missing := [name for name in seen if name not in (whole.batch.cond or {})]:
            raise ValueError(f"{whole.name} has no condition '{missing[0]}'")
        batch, notes = whole.batch, [whole.note]
        original = tuple(batch.data.shape[1:])
        if batch.mask is not None:
            mask = batch.mask.broadcast_to(batch.data.shape)
            batch = Batch(batch.data.masked_fill(~mask, 0), batch.cond, mask)
        if normalize:
            batch = _normalized(batch)
            notes.append("shifted and scaled to mean 0 and variance 1")
        _check_rms(whole.name, batch)
        batch, said = _pooled(batch)
        note = "; ".join(part for part in (*notes, said) if part)
        return cls(whole.name, note, batch, tuple(seen), whole.mirrored, original)

    def __len__(self) -> int:
        return len(self.batch) // 2 if self.mirrored else len(self.batch)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a sample, as the network sees it."""
        return tuple(self.batch.data.shape[1:])

    @property
    def held(self) -> int:
        """Data held out of training: half, but no more than are needed to judge by."""
        return min(len(self) // 2, MOST_HELD)

    def split(self, seed: int) -> tuple[Tensor, Tensor]:
        """Rows to train on and rows held out, at random; a sample goes with its mirror image."""
        order = torch.randperm(len(self), generator=keyed_generator(seed, "probe split"))
        train, held = order[self.held :], order[: self.held]
        if self.mirrored:
            train = torch.cat([train, train + len(self)])
        return train, held

    def take(self, rows: Tensor) -> Batch:
        """The data in those rows."""
        batch = self.batch
        cond = batch.cond and {name: value[rows] for name, value in batch.cond.items()}
        mask = None if batch.mask is None else batch.mask[rows]
        return Batch(batch.data[rows], cond, mask)

    def told(self, batch: Batch) -> dict[str, Tensor] | None:
        """What the network is told beside the data: the conditions it sees, and the mask."""
        told = {name: (batch.cond or {})[name] for name in self.seen}
        if batch.mask is not None:
            told[VALID] = batch.mask
        return told or None

    @property
    def label_key(self) -> str | None:
        """The condition the network sees that is a label, if there is just one."""
        cond = self.batch.cond or {}
        labels = [name for name in self.seen if is_label(cond[name])]
        return labels[0] if len(labels) == 1 else None


def is_label(values: Tensor) -> bool:
    """Whether a condition ``[N, ...]`` is a label."""
    return values.ndim == 1 and not values.is_floating_point()


def _valid(batch: Batch) -> Tensor:
    return batch.data if batch.mask is None else batch.data[batch.mask]


def _normalized(batch: Batch) -> Batch:
    values = _valid(batch)
    mean, deviation = values.mean(), values.std().clamp_min(1e-12)
    data = (batch.data - mean) / deviation
    if batch.mask is not None:
        data = data.masked_fill(~batch.mask, 0)
    return dataclasses.replace(batch, data=data)


def _check_rms(name: str, batch: Batch) -> None:
    rms = float(_valid(batch).square().mean().sqrt())
    if not RMS[0] <= rms <= RMS[1]:
        raise ValueError(
            f"{name}: the root mean square of the data is {rms:.3g}, and noise has 1; give the "
            f"data as your model sees them, or --normalize"
        )


def _pooled(batch: Batch) -> tuple[Batch, str]:
    """Means of neighbors until a sample has at most ``LARGEST`` numbers; what was done."""
    shape = tuple(batch.data.shape[1:])
    data, mask = batch.data, batch.mask
    weight = None if mask is None else mask.float()
    if weight is not None:
        data = data * weight
    while math.prod(data.shape[1:]) > LARGEST:
        for axis in _longest(tuple(data.shape[1:])):
            data = _halved(data, axis)
            weight = None if weight is None else _halved(weight, axis)
    if tuple(data.shape[1:]) == shape:
        return batch, ""
    if weight is not None:
        mask = weight > 0
        data = torch.where(mask, data / weight.clamp_min(1e-6), 0)
    said = f"pooled (means of neighbors) from {_times(shape)} to {_times(tuple(data.shape[1:]))}"
    return Batch(data, batch.cond, mask), said


def _longest(shape: tuple[int, ...]) -> list[int]:
    """The axes to pool next: the longest (both of a square); of three and more not the first."""
    first = 1 if len(shape) > 2 and max(shape[1:]) > 1 else 0
    longest = max(shape[first:])
    return [axis + 1 for axis in range(first, len(shape)) if shape[axis] == longest]


def _halved(values: Tensor, axis: int) -> Tensor:
    moved = values.movedim(axis, -1)
    rows = moved.reshape(len(values), -1, moved.shape[-1])
    pooled = avg_pool1d(rows, 2, ceil_mode=True, count_include_pad=False)
    return pooled.view(*moved.shape[:-1], -1).movedim(-1, axis).contiguous()


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
