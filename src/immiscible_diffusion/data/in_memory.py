"""Whole data sets as tensors, for analyses over all data: images, or files of arrays."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from immiscible_diffusion.data.array_files import MAX_GIB, ArrayFile, check_finite, check_size
from immiscible_diffusion.data.load import DataConfig, load_images
from immiscible_diffusion.utils.batch import Batch, Cond
from immiscible_diffusion.utils.random import keyed_generator


@dataclass(frozen=True, eq=False)
class InMemoryData:
    """All samples of a data set.

    Attributes:
        name: for reports.
        note: what every figure made of it must say.
        batch: all data ``[N, *shape]`` float32, their conditions and their mask.
        class_names: names of the labels, or None.
        mirrored: the second half of the rows are mirror images of the first.
    """

    name: str
    note: str
    batch: Batch
    class_names: tuple[str, ...] | None = None
    mirrored: bool = False

    def __len__(self) -> int:
        return len(self.batch)


def load_in_memory(
    config: DataConfig, max_samples: int | None = None, *, seed: int = 0
) -> InMemoryData:
    """The images that ``config`` names, with their labels; and their mirror images if it flips.

    Args:
        config: as for training; mirror images are added after the others where it flips.
        max_samples: this many images, chosen at random by ``seed``, in their order; None = all.
        seed: of the choice.

    Raises:
        ValueError: what ``load_images`` raises, or a set too large to hold.
    """
    # What is not chosen need not be decoded.
    lazy = config if max_samples is None else dataclasses.replace(config, in_memory_gib=0.0)
    dataset = load_images(lazy)
    rows = random_rows(len(dataset), max_samples, seed)
    check_size(dataset.name, (len(rows), *dataset.shape), MAX_GIB)
    note = join_notes(dataset.note, _subset_note(len(rows), len(dataset), seed))
    data = InMemoryData(dataset.name, note, dataset.batch(rows), dataset.class_names)
    return add_mirror_images(data) if config.flip else data


def load_arrays(
    path: str | os.PathLike[str],
    *,
    data: str | None = None,
    cond: tuple[str, ...] = (),
    mask: str | None = None,
    max_samples: int | None = None,
    seed: int = 0,
) -> InMemoryData:
    """The arrays of a ``.npy``, ``.npz`` or ``.safetensors`` file; pickles are never read.

    Bytes (uint8) are scaled from 0 ... 255 to [-1, 1] and, if their last dimension is 1 or 3
    channels, turned to channels first; all other numbers are used unchanged.

    Args:
        path: of the file.
        data: name of the data ``[N, *shape]``; not needed where there is one array, or one that
            is named ``data``.
        cond: names of conditions ``[N, ...]``: integers and words ``[N]`` are labels.
        mask: name of a mask, true where data are valid, of as many dimensions as the data.
        max_samples: this many samples, chosen at random by ``seed``; None = all.
        seed: of the choice.

    Raises:
        ValueError: what is wrong with the file or its arrays.
    """
    with ArrayFile.open(Path(path)) as arrays:
        key = arrays.data_key(data, (*cond, *((mask,) if mask else ())))
        count = arrays.count(key)
        rows = random_rows(count, max_samples, seed)
        values, note = arrays.data(key, rows)
        conditions = {name: arrays.condition(name, rows, count) for name in cond}
        valid = None if mask is None else arrays.mask(mask, rows, count, values)
    check_finite(values, valid, key, rows)
    names = next((names for _, names in conditions.values() if names), None)
    tensors = {name: value for name, (value, _) in conditions.items()}
    note = join_notes(note, _subset_note(len(rows), count, seed))
    return InMemoryData(Path(path).name, note, Batch(values, tensors or None, valid), names)


def add_mirror_images(data: InMemoryData) -> InMemoryData:
    """``data`` and, after all of them, the mirror image (last dimension reversed) of each.

    Raises:
        ValueError: samples of fewer than three dimensions are no images.
    """
    batch = data.batch
    if batch.data.ndim < 4:
        raise ValueError(
            f"mirror images need data [N, channels, height, width], got {tuple(batch.data.shape)}; "
            f"leave out flip"
        )
    mask = batch.mask
    if mask is not None:
        mask = mask.broadcast_to(batch.data.shape)
        mask = torch.cat([mask, mask.flip(-1)])
    cond: Cond | None = batch.cond and {k: torch.cat([v, v]) for k, v in batch.cond.items()}
    both = Batch(torch.cat([batch.data, batch.data.flip(-1)]), cond, mask)
    note = join_notes(data.note, "the mirror image of every sample is among the data")
    return dataclasses.replace(data, batch=both, note=note, mirrored=True)


def random_rows(count: int, max_samples: int | None, seed: int) -> Tensor:
    """``max_samples`` of ``count`` rows at random, in order; all if there are no more. ``[n]``."""
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"the number of images must be at least 1, got {max_samples}")
    if max_samples is None or max_samples >= count:
        return torch.arange(count)
    order = torch.randperm(count, generator=keyed_generator(seed, "subset"))
    return order[:max_samples].sort().values


def join_notes(*notes: str) -> str:
    """The notes that are not empty, one after the other."""
    return "; ".join(note for note in notes if note)


def _subset_note(count: int, total: int, seed: int) -> str:
    return "" if count == total else f"a random {count:,} of {total:,} (seed {seed})"
