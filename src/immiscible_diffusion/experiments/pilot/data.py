"""The data of a pilot: of a size that a CPU can train on, split in two halves for every seed."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, one_hot

from immiscible_diffusion.data import DataSet
from immiscible_diffusion.data.in_memory import InMemoryData, join_notes
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.random import keyed_generator

MIN_SAMPLES = 64
MAX_DIM = 16_384  # numbers a sample
MAX_HELD_OUT = 2_000
RMS = (0.05, 20.0)
LABEL, VECTOR = "label", "condition vector"


@dataclass(frozen=True, eq=False)
class Samples(DataSet):
    """Data ``[N, *shape]``; as a data set those in ``rows``, to train on.

    Of the conditions of ``every`` a network is given ``label`` if ``num_classes`` is set, and ``VECTOR`` if it is
    there: all others one after the other, standardized, with the mask. The rest is for couplings.
    """

    name: str
    every: Batch  # all data (0 where not valid), conditions and the mask
    note: str = ""  # what every figure on them must say
    condition_names: tuple[str, ...] = ()  # of those that the network is given
    num_classes: int | None = None
    mirrored: bool = False  # the second half of the rows are mirror images of the first
    rows: Tensor = field(default_factory=lambda: torch.arange(0))  # [n], to train on
    held_out: Tensor = field(default_factory=lambda: torch.arange(0))  # [m], to evaluate with

    @classmethod
    def of(cls, source: InMemoryData, conditions: tuple[str, ...] = (), *, normalize: bool = False) -> "Samples":
        """``source``, pooled if it is too large; ``conditions`` are those that the network is given.

        ``normalize`` shifts and scales all data by one number each, to mean 0 and variance 1. ValueError: a condition
        the data lack, or data so large or small against noise of variance 1 that they cannot have been meant.
        """
        cond, data, mask = dict(source.batch.cond or {}), source.batch.data, source.batch.mask
        if missing := [name for name in conditions if name not in cond]:
            raise ValueError(f"{source.name} has no condition '{missing[0]}'")
        mask = None if mask is None else mask.broadcast_to(data.shape)
        valid = data if mask is None else data[mask]
        note = source.note
        if normalize:
            data = (data - valid.mean()) / valid.std().clamp_min(1e-12)
            valid = data if mask is None else data[mask]
            note = join_notes(note, "shifted and scaled to mean 0 and variance 1")
        rms = float(valid.square().mean().sqrt())
        if not RMS[0] <= rms <= RMS[1]:
            raise ValueError(
                f"{source.name}: the root mean square of the data is {rms:.3g}, and noise has 1; "
                f"give the data as your model sees them, or --normalize"
            )
        data, mask, text = pool(data if mask is None else data.masked_fill(~mask, 0), mask)
        labels = [name for name in conditions if is_label(cond[name])]
        if len(labels) == 1:
            cond[LABEL] = cond[labels[0]]
        vector = _vector([cond[name] for name in conditions if [name] != labels], mask)
        if vector.shape[1]:
            cond[VECTOR] = vector
        num_classes = int(cond[LABEL].max()) + 1 if len(labels) == 1 else None
        every, note = Batch(data, cond or None, mask), join_notes(note, text)
        return cls(source.name, every, note, conditions, num_classes, source.mirrored).split(0)

    def split(self, seed: int) -> "Samples":
        """A random half to train on, the rest held out; a sample goes with its mirror image."""
        order = torch.randperm(self.count, generator=keyed_generator(seed, "probe split"))
        rows, held_out = order[self.num_held_out :], order[: self.num_held_out]
        if self.mirrored:
            rows = torch.cat([rows, rows + self.count])
        return replace(self, rows=rows, held_out=held_out)

    @property
    def count(self) -> int:
        """Number of all samples, without mirror images."""
        return len(self.every) // (2 if self.mirrored else 1)

    @property
    def num_held_out(self) -> int:
        """Samples held out of training: half, but no more than an evaluation needs."""
        return min(self.count // 2, MAX_HELD_OUT)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a sample, as the network sees it."""
        return tuple(self.every.data.shape[1:])

    @property
    def condition_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of the condition vector, if there is one."""
        cond = self.every.cond or {}
        return {VECTOR: tuple(cond[VECTOR].shape[1:])} if VECTOR in cond else {}

    @cached_property
    def condition_matrix(self) -> Tensor | None:
        """What the network is conditioned on as numbers ``[N, C]``, for features."""
        cond = self.every.cond or {}
        parts = [cond[VECTOR]] if VECTOR in cond else []
        if self.num_classes is not None:
            parts.append(one_hot(cond[LABEL], self.num_classes).float())
        return torch.cat(parts, dim=1) if parts else None

    @cached_property
    def digest(self) -> str:
        """Hash of all data, conditions and the mask: 16 hex digits."""
        content = hashlib.sha256()
        tensors = {"data": self.every.data, "mask": self.every.mask, **(self.every.cond or {})}
        for name, value in sorted(tensors.items()):
            if value is not None:
                content.update(f"{name}/{value.dtype}/{tuple(value.shape)}".encode())
                content.update(value.contiguous().numpy().tobytes())
        return content.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """The samples to train on at ``indices`` ``[B]``; nothing is augmented."""
        return replace(self.take(self.rows[indices]), index=indices)

    def take(self, rows: Tensor) -> Batch:
        """The samples in those rows."""
        every = self.every
        cond = every.cond and {name: value[rows] for name, value in every.cond.items()}
        return Batch(every.data[rows], cond, None if every.mask is None else every.mask[rows])


def is_label(values: Tensor) -> bool:
    """Whether a condition ``[N, ...]`` is a label."""
    return values.ndim == 1 and not values.is_floating_point()


def _vector(conditions: list[Tensor], mask: Tensor | None) -> Tensor:
    """Conditions and mask as standardized numbers ``[N, C]``; what never changes is left out."""
    values = [*conditions, *([] if mask is None else [mask])]
    parts = [one_hot(v).float() if is_label(v) else v.reshape(len(v), -1).float() for v in values]
    if not parts:
        return torch.zeros(0, 0)
    vector = torch.cat(parts, dim=1)
    deviation, mean = torch.std_mean(vector, dim=0)
    varies = deviation > 1e-6
    return ((vector - mean) / deviation.clamp_min(1e-6))[:, varies]


def pool(data: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None, str]:
    """Take means of (valid) neighbors until a sample has at most ``MAX_DIM`` numbers; say so."""
    shape = tuple(data.shape[1:])
    weight = None if mask is None else mask.float()
    while math.prod(data.shape[1:]) > MAX_DIM:
        # The longest axes (both of a square); of three and more not the first.
        sizes = data.shape[1:]
        first = 1 if len(sizes) > 2 and max(sizes[1:]) > 1 else 0
        for axis in (a + 1 for a in range(first, len(sizes)) if sizes[a] == max(sizes[first:])):
            data = _halve(data, axis)
            weight = None if weight is None else _halve(weight, axis)
    if tuple(data.shape[1:]) == shape:
        return data, mask, ""
    if weight is not None:
        mask = weight > 0
        data = torch.where(mask, data / weight.clamp_min(1e-6), 0)
    before, after = (" x ".join(map(str, sizes)) for sizes in (shape, data.shape[1:]))
    return data, mask, f"pooled (means of neighbors) from {before} to {after}"


def _halve(values: Tensor, axis: int) -> Tensor:
    moved = values.movedim(axis, -1)
    rows = moved.reshape(len(values), -1, moved.shape[-1])
    pooled = avg_pool1d(rows, 2, ceil_mode=True, count_include_pad=False)
    return pooled.view(*moved.shape[:-1], -1).movedim(-1, axis).contiguous()
