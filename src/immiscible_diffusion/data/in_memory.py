"""Whole data sets as tensors, for what looks at all data at once: images, or anybody's arrays."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from immiscible_diffusion.data.array_files import KINDS, Arrays
from immiscible_diffusion.data.load import DataConfig, load_images
from immiscible_diffusion.utils.batch import Batch, Cond
from immiscible_diffusion.utils.random import keyed_generator

LARGEST_GIB = 8.0  # as float32; what works on it takes some times as much


@dataclass(frozen=True, eq=False)
class Whole:
    """All data of a set.

    Attributes:
        name: for reports.
        note: what every figure made on it must say.
        batch: all data ``[N, *shape]`` float32, their conditions and their mask.
        classes: names of the labels, or None.
        mirrored: the second half of the rows are mirror images of the first.
    """

    name: str
    note: str
    batch: Batch
    classes: tuple[str, ...] | None = None
    mirrored: bool = False

    def __len__(self) -> int:
        return len(self.batch)


def load_whole(config: DataConfig, limit: int | None = None, *, seed: int = 0) -> Whole:
    """The images that ``config`` names, with their labels; and their mirror images if it flips.

    Args:
        config: as for training; mirror images are added after the others where it flips.
        limit: so many images, a random choice by ``seed`` in the order of the set; None = all.
        seed: of the choice.

    Raises:
        ValueError: what ``load_images`` raises, or too large a set to hold.
    """
    _check_limit(limit)
    # What is not chosen need not be decoded.
    lazy = config if limit is None else dataclasses.replace(config, in_memory_gib=0.0)
    dataset = load_images(lazy)
    rows = chosen(len(dataset), limit, seed)
    size = 4 * len(rows) * torch.Size(dataset.shape).numel() / 2**30
    if size > LARGEST_GIB:
        raise ValueError(
            f"{dataset.name}: {len(rows):,} images of shape {dataset.shape} take {size:.1f} GiB, "
            f"more than the {LARGEST_GIB:g} GiB that are worked at once; give fewer images or a "
            f"smaller size"
        )
    batch = dataset.batch(rows)
    names = getattr(dataset, "class_names", None)
    note = joined(dataset.note, _subset(len(rows), len(dataset), seed))
    whole = Whole(dataset.name, note, batch, names)
    return mirror(whole) if config.flip else whole


def load_arrays(
    path: str | os.PathLike[str],
    *,
    data: str | None = None,
    cond: tuple[str, ...] = (),
    mask: str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Whole:
    """The arrays of a ``.npy``, ``.npz`` or ``.safetensors`` file; pickles are never read.

    Bytes (uint8) are scaled from 0 ... 255 to [-1, 1] and, if their last dimension is 1 or 3
    channels, turned to channels first; all other numbers are taken as they are.

    Args:
        path: of the file.
        data: name of the data ``[N, *shape]``; not needed where there is one array, or one that
            is named ``data``.
        cond: names of conditions ``[N, ...]``: integers and words ``[N]`` are labels.
        mask: name of a mask, true where data are valid, of as many dimensions as the data.
        limit: so many data, a random choice by ``seed``; None = all.
        seed: of the choice.

    Raises:
        ValueError: what is wrong with the file or its arrays.
    """
    _check_limit(limit)
    with Arrays.open(Path(path)) as arrays:
        key = arrays.data_key(data, (*cond, *((mask,) if mask else ())))
        count = arrays.rows(key)
        rows = chosen(count, limit, seed)
        values, said = arrays.data(key, rows, LARGEST_GIB)
        conditions = {name: arrays.condition(name, rows, count) for name in cond}
        valid = None if mask is None else arrays.mask(mask, rows, count, values)
    _check_finite(values, valid, key, rows)
    labels = {name: value for name, (value, _) in conditions.items()}
    classes = next((names for _, names in conditions.values() if names), None)
    note = joined(said, _subset(len(rows), count, seed))
    return Whole(Path(path).name, note, Batch(values, labels or None, valid), classes)


def is_arrays(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is named as a file of arrays."""
    return Path(path).suffix.lower() in KINDS


def mirror(whole: Whole) -> Whole:
    """``whole`` with the mirror image (last dimension reversed) of every sample after all data.

    Raises:
        ValueError: data that are no pictures: of fewer than three dimensions each.
    """
    batch = whole.batch
    if batch.data.ndim < 4:
        raise ValueError(
            f"mirror images need data [N, channels, height, width], got {tuple(batch.data.shape)}; "
            f"leave out flip"
        )
    data, mask = batch.data, batch.mask
    if mask is not None:
        mask = mask.broadcast_to(data.shape)
        mask = torch.cat([mask, mask.flip(-1)])
    cond: Cond | None = batch.cond and {k: torch.cat([v, v]) for k, v in batch.cond.items()}
    both = Batch(torch.cat([data, data.flip(-1)]), cond, mask)
    note = joined(whole.note, "the mirror image of every sample is among the data")
    return dataclasses.replace(whole, batch=both, note=note, mirrored=True)


def chosen(count: int, limit: int | None, seed: int) -> Tensor:
    """``limit`` of ``count`` rows at random, in order; all where there are no more. ``[rows]``."""
    if limit is None or limit >= count:
        return torch.arange(count)
    order = torch.randperm(count, generator=keyed_generator(seed, "subset"))
    return order[:limit].sort().values


def joined(*notes: str) -> str:
    """Notes one after the other, those that say something."""
    return "; ".join(note for note in notes if note)


def _subset(count: int, whole: int, seed: int) -> str:
    if count == whole:
        return ""
    return f"a random {count:,} of {whole:,} (seed {seed})"


def _check_limit(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise ValueError(f"images must be at least 1, got {limit}")


def _check_finite(data: Tensor, mask: Tensor | None, key: str, rows: Tensor) -> None:
    fine = data.isfinite()
    if mask is not None:
        fine |= ~mask
    if bool(fine.all()):
        return
    bad = int((~fine.flatten(1).all(dim=1)).nonzero()[0])
    raise ValueError(
        f"'{key}' is not finite in row {int(rows[bad])}; mend the data, or mask what is not valid"
    )
