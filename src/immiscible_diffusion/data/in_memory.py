"""Whole data sets as tensors, for analyses over all data: images, or files of arrays."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from immiscible_diffusion.data.array_files import ArrayFile
from immiscible_diffusion.data.load import DataConfig, load_images
from immiscible_diffusion.utils.batch import Batch, Cond
from immiscible_diffusion.utils.random import keyed_generator

CHANNELS = (1, 3)
MAX_GIB = 8.0  # of data as float32; what works on them needs several times as much


@dataclass(frozen=True, eq=False)
class InMemoryData:
    """All samples of a data set."""

    name: str  # for reports
    note: str  # what every figure made of it must say
    batch: Batch  # all data ``[N, *shape]`` float32, their conditions and their mask
    class_names: tuple[str, ...] | None = None  # names of the labels, or None
    mirrored: bool = False  # the second half of the rows are mirror images of the first

    def __len__(self) -> int:
        return len(self.batch)


def load_in_memory(config: DataConfig, max_samples: int | None = None, *, seed: int = 0) -> InMemoryData:
    """The images that ``config`` names, with their labels; and their mirror images if it flips.

    Of them ``max_samples`` (None = all), chosen at random by ``seed``, in their order.

    Raises:
        ValueError: what ``load_images`` raises, or a set too large to hold.
    """
    # What is not chosen need not be decoded.
    dataset = load_images(config if max_samples is None else replace(config, in_memory_gib=0.0))
    rows = random_rows(len(dataset), max_samples, seed)
    check_size(dataset.name, (len(rows), *dataset.shape))
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

    Bytes (uint8) are scaled from 0 ... 255 to [-1, 1] and, if their last dimension is 1 or 3 channels, turned to
    channels first; all other numbers are used unchanged.

    Args:
        path: of the file.
        data: name of the data ``[N, *shape]``; not needed where there is one array, or one that is named ``data``.
        cond: names of conditions ``[N, ...]``: integers and words ``[N]`` are labels.
        mask: name of a mask, true where data are valid, of as many dimensions as the data.
        max_samples: this many samples, chosen at random by ``seed``; None = all.
        seed: of the choice.
    """
    with ArrayFile.open(Path(path)) as file:
        left = [name for name in file.names if name not in (*cond, mask)]
        key = data or ("data" if "data" in left or len(left) != 1 else left[0])
        if data is None and key not in file.names:
            raise ValueError(
                f"{path} has several arrays ({', '.join(file.names) or 'none'}); say which are the data: --array KEY"
            )
        source, where = file.read(key), f"'{key}' in {path}"
        shape = tuple(source.shape)
        if len(shape) < 2 or 0 in shape:
            raise ValueError(
                f"{where} must be data [N, ...] with at least one sample of at least one dimension, got {shape}"
            )
        rows = random_rows(shape[0], max_samples, seed)
        check_size(where, (len(rows), *shape[1:]))
        values, note = _data(source, rows, where)
        tensors, class_names = {}, None
        for name in cond:
            tensors[name], words = _condition(file.read(name), rows, shape[0], f"'{name}' in {path}")
            class_names = class_names or words
        valid = None if mask is None else _mask(file.read(mask), rows, shape, f"'{mask}' in {path}")
    bad = ~(values.isfinite() if valid is None else values.isfinite() | ~valid).flatten(1).all(dim=1)
    if bool(bad.any()):
        raise ValueError(
            f"'{key}' is not finite in row {int(rows[bad][0])}; repair the data, or mask what is not valid"
        )
    note = join_notes(note, _subset_note(len(rows), shape[0], seed))
    return InMemoryData(Path(path).name, note, Batch(values, tensors or None, valid), class_names)


def _data(array: Any, rows: Tensor, where: str) -> tuple[Tensor, str]:
    """Rows of the data, float32, and a note on how they were converted."""
    values = _tensor(array, rows, where)
    if values.dtype == torch.bool:
        raise ValueError(f"{where} must be numbers, got {values.dtype}")
    if values.dtype != torch.uint8:
        return values.float(), "" if values.is_floating_point() else "integers taken as they are"
    note = "bytes scaled from 0 ... 255 to [-1, 1]"
    if values.ndim == 4 and values.shape[-1] in CHANNELS and values.shape[1] not in CHANNELS:
        values = values.movedim(-1, 1).contiguous()
        note += ", channels moved to the front"
    return values.float() * (2 / 255) - 1, note


def _condition(array: Any, rows: Tensor, count: int, where: str) -> tuple[Tensor, tuple[str, ...] | None]:
    """Labels int64 ``[n]`` (with their names if they are words), or numbers ``[n, ...]``."""
    words = isinstance(array, np.ndarray) and array.dtype.kind in "US"
    if array.ndim < 1 or len(array) != count or (words and array.ndim > 1):
        raise ValueError(
            f"the condition {where} must have {count} rows like the data, got shape "
            f"{tuple(array.shape)}{' of words' * words}"
        )
    if words:
        names, labels = np.unique(array, return_inverse=True)
        return torch.from_numpy(labels).long()[rows], tuple(map(str, names))
    values = _tensor(array, rows, where)
    if not bool(values.float().isfinite().all()):
        raise ValueError(f"the condition {where} must be finite")
    flat = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    if flat.is_floating_point() or flat.ndim > 1:
        return values.float(), None
    if int(flat.min()) < 0:
        raise ValueError(f"{where}: labels must be from 0, got {int(flat.min())}")
    return flat.long(), None


def _mask(array: Any, rows: Tensor, full: tuple[int, ...], where: str) -> Tensor:
    """The mask for rows of data of the shape ``full``: boolean, of as many dimensions."""
    fits = len(array.shape) == len(full)
    if not fits or any(a not in (1, b) for a, b in zip(array.shape, full, strict=True)):
        raise ValueError(
            f"the mask {where} has shape {tuple(array.shape)}; expected one that broadcasts to the "
            f"data {full} with as many dimensions, 1 wherever it says the same for all positions"
        )
    rows = rows if len(array) == full[0] else torch.zeros(1).long()
    values = _tensor(array, rows, where)
    if not bool(((values == 0) | (values == 1)).all()):
        raise ValueError(f"the mask {where} must be of true and false (or 1 and 0), true = valid")
    empty = ~values.bool().flatten(1).any(dim=1)
    if bool(empty.any()):
        raise ValueError(f"the mask {where} leaves row {int(rows[empty][0])} no valid position")
    return values.bool()


def _tensor(array: Any, rows: Tensor, where: str) -> Tensor:
    """Rows of an array of real numbers as a tensor."""
    if isinstance(array, np.ndarray):
        kind, size = array.dtype.kind, array.dtype.itemsize
        if kind not in "biuf":
            raise ValueError(f"{where} must be numbers, got {array.dtype}")
        dtype: Any = np.float64 if kind == "f" and size > 8 else array.dtype.newbyteorder("=")
        if kind == "u" and size > 1:  # torch computes with signed ones only
            dtype = np.int64
        return torch.from_numpy(array[rows.numpy()].astype(dtype, order="C", copy=False))
    if array.is_complex():
        raise ValueError(f"{where} must be numbers, got {array.dtype}")
    return array[rows]


def check_size(name: str, shape: tuple[int, ...]) -> None:
    """Raise ValueError if float32 data of ``shape`` exceed ``MAX_GIB``."""
    size = 4 * torch.Size(shape).numel() / 2**30
    if size > MAX_GIB:
        raise ValueError(
            f"{name}: data of shape {tuple(shape)} take {size:.1f} GiB, more than the {MAX_GIB:g} "
            f"GiB that fit in memory; use fewer images or a smaller size"
        )


def add_mirror_images(data: InMemoryData) -> InMemoryData:
    """``data`` (ValueError unless images) and, after them, the mirror image (last dimension reversed) of each."""
    images, mask = data.batch.data, data.batch.mask
    if images.ndim < 4:
        raise ValueError(
            f"mirror images need data [N, channels, height, width], got {tuple(images.shape)}; leave out flip"
        )
    if mask is not None:
        mask = mask.broadcast_to(images.shape)
        mask = torch.cat([mask, mask.flip(-1)])
    cond: Cond = {name: torch.cat([values, values]) for name, values in (data.batch.cond or {}).items()}
    both = Batch(torch.cat([images, images.flip(-1)]), cond or None, mask)
    note = join_notes(data.note, "the mirror image of every sample is among the data")
    return replace(data, batch=both, note=note, mirrored=True)


def random_rows(count: int, max_samples: int | None, seed: int) -> Tensor:
    """``max_samples`` of ``count`` rows at random, in order; all if there are no more. ``[n]``."""
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"the number of images must be at least 1, got {max_samples}")
    if max_samples is None or max_samples >= count:
        return torch.arange(count)
    return torch.randperm(count, generator=keyed_generator(seed, "subset"))[:max_samples].sort().values


def join_notes(*notes: str) -> str:
    """The notes that are not empty, one after the other."""
    return "; ".join(note for note in notes if note)


def _subset_note(count: int, total: int, seed: int) -> str:
    return "" if count == total else f"a random {count:,} of {total:,} (seed {seed})"
