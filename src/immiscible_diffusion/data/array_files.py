"""Files of arrays: .npy, .npz and .safetensors, read without pickles."""

import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from immiscible_diffusion.utils.optional_deps import require_extra

EXTENSIONS = (".npy", ".npz", ".safetensors")
DEFAULT_KEY = "data"
CHANNELS = (1, 3)
MAX_GIB = 8.0  # of data as float32; what works on them needs several times as much


def is_array_file(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is named as a file of arrays."""
    return Path(path).suffix.lower() in EXTENSIONS


@dataclass(frozen=True)
class ArrayFile:
    """The arrays of a file by name, read when asked for.

    Attributes:
        path: of the file, for messages.
        names: of the arrays; ``data`` for that of a .npy.
        read: a name to its array, numpy's or torch's.
    """

    path: Path
    names: Sequence[str]
    read: Callable[[str], Any]

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> "Iterator[ArrayFile]":
        """The arrays of ``path``; ValueError if it is no such file."""
        if not is_array_file(path):
            raise ValueError(f"{path} is no file of arrays; expected {', '.join(EXTENSIONS)}")
        if not path.is_file():
            raise ValueError(f"{path} does not exist")
        if path.suffix.lower() == ".safetensors":
            yield from _safetensors(path)
        else:
            yield from _numpy(path)

    def data_key(self, name: str | None, others: Sequence[str]) -> str:
        """Which array is the data: ``name``, the one called data, or the only one left."""
        if name is not None:
            return name
        left = [name for name in self.names if name not in others]
        if DEFAULT_KEY in left:
            return DEFAULT_KEY
        if len(left) == 1:
            return left[0]
        raise ValueError(
            f"{self.path} has several arrays ({', '.join(self.names) or 'none'}); say which are "
            f"the data: --array KEY"
        )

    def count(self, key: str) -> int:
        """Number of samples; ValueError if there are none, or they are single numbers."""
        shape = tuple(self._array(key).shape)
        if len(shape) < 2 or 0 in shape:
            raise ValueError(
                f"'{key}' in {self.path} must be data [N, ...] with at least one sample of at "
                f"least one dimension, got {shape}"
            )
        return int(shape[0])

    def data(self, key: str, rows: Tensor) -> tuple[Tensor, str]:
        """Rows of the data, float32, and a note on how they were converted."""
        array, where = self._array(key), f"'{key}' in {self.path}"
        check_size(where, (len(rows), *array.shape[1:]), MAX_GIB)
        values = _tensor(array, rows, where)
        if values.dtype == torch.bool or values.is_complex():
            raise ValueError(f"{where} must be numbers, got {values.dtype}")
        if values.dtype != torch.uint8:
            note = "" if values.is_floating_point() else "integers taken as they are"
            return values.float(), note
        note = "bytes scaled from 0 ... 255 to [-1, 1]"
        channels_last = values.ndim == 4 and values.shape[-1] in CHANNELS
        if channels_last and values.shape[1] not in CHANNELS:
            values = values.movedim(-1, 1).contiguous()
            note += ", channels moved to the front"
        return values.float() * (2 / 255) - 1, note

    def condition(
        self, key: str, rows: Tensor, count: int
    ) -> tuple[Tensor, tuple[str, ...] | None]:
        """Labels int64 ``[n]`` (with their names if they are words), or numbers ``[n, ...]``."""
        array, where = self._array(key), f"the condition '{key}' in {self.path}"
        if array.ndim < 1 or len(array) != count:
            raise ValueError(
                f"{where} must have {count} rows like the data, got shape {tuple(array.shape)}"
            )
        if isinstance(array, np.ndarray) and array.dtype.kind in "US":
            if array.ndim != 1:
                raise ValueError(f"{where}: words must be [{count}], got {array.shape}")
            names, labels = np.unique(array, return_inverse=True)
            return torch.from_numpy(labels).long()[rows], tuple(str(name) for name in names)
        values = _tensor(array, rows, where)
        if values.is_complex() or not bool(values.float().isfinite().all()):
            raise ValueError(f"{where} must be finite real numbers")
        flat = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
        if flat.is_floating_point() or flat.ndim > 1:
            return values.float(), None
        if int(flat.min()) < 0:
            raise ValueError(f"{where}: labels must be from 0, got {int(flat.min())}")
        return flat.long(), None

    def mask(self, key: str, rows: Tensor, count: int, data: Tensor) -> Tensor:
        """The mask for ``data`` ``[n, *shape]``: boolean, of as many dimensions."""
        array, where = self._array(key), f"the mask '{key}' in {self.path}"
        full = (count, *data.shape[1:])
        if len(array.shape) != data.ndim or any(
            size not in (1, expected) for size, expected in zip(array.shape, full, strict=True)
        ):
            raise ValueError(
                f"{where} has shape {tuple(array.shape)}; expected one that broadcasts to the data "
                f"{full} with as many dimensions, 1 wherever it says the same for all positions"
            )
        single = array.shape[0] == 1 != count
        values = _tensor(array, torch.zeros(1).long() if single else rows, where)
        if values.dtype != torch.bool and not bool(((values == 0) | (values == 1)).all()):
            raise ValueError(f"{where} must be of true and false (or 1 and 0), true = valid")
        values = values.bool()
        empty = ~values.flatten(1).any(dim=1)
        if bool(empty.any()):
            row = int(empty.nonzero()[0]) if single else int(rows[empty][0])
            raise ValueError(f"{where} leaves row {row} no valid position")
        return values

    def _array(self, key: str) -> Any:
        if key not in self.names:
            raise ValueError(
                f"{self.path} has no array '{key}'; there are: {', '.join(self.names)}"
            )
        return self.read(key)


def check_size(name: str, shape: tuple[int, ...], max_gib: float) -> None:
    """Raise ValueError if float32 data of ``shape`` exceed ``max_gib``."""
    size = 4 * torch.Size(shape).numel() / 2**30
    if size > max_gib:
        raise ValueError(
            f"{name}: data of shape {tuple(shape)} take {size:.1f} GiB, more than the "
            f"{max_gib:g} GiB that fit in memory; use fewer images or a smaller size"
        )


def check_finite(data: Tensor, mask: Tensor | None, key: str, rows: Tensor) -> None:
    """Raise ValueError, naming the row, unless valid data ``[n, *shape]`` are finite."""
    fine = data.isfinite()
    if mask is not None:
        fine |= ~mask
    if not bool(fine.all()):
        bad = int((~fine.flatten(1).all(dim=1)).nonzero()[0])
        raise ValueError(
            f"'{key}' is not finite in row {int(rows[bad])}; repair the data, or mask what is not "
            f"valid"
        )


def _tensor(array: Any, rows: Tensor, where: str) -> Tensor:
    """Rows of an array of numbers as a tensor."""
    if isinstance(array, Tensor):
        return array[rows]
    values = np.ascontiguousarray(array[rows.numpy()])
    if not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    known_types = {
        "uint16": np.int32,
        "uint32": np.int64,
        "uint64": np.int64,
        "longdouble": np.float64,
        "float128": np.float64,
    }
    if values.dtype.name in known_types:
        values = values.astype(known_types[values.dtype.name])
    try:
        return torch.from_numpy(values)
    except TypeError:
        raise ValueError(f"{where} must be numbers, got {values.dtype}") from None


def _numpy(path: Path) -> Iterator[ArrayFile]:
    mode: Any = "r" if path.suffix == ".npy" else None
    arrays = _readable(f"{path}", lambda: np.load(path, mmap_mode=mode, allow_pickle=False))
    if isinstance(arrays, np.ndarray):
        yield ArrayFile(path, (DEFAULT_KEY,), {DEFAULT_KEY: arrays}.__getitem__)
        return
    with arrays:
        yield ArrayFile(path, tuple(arrays.files), cache(partial(_from_zip, path, arrays)))


def _from_zip(path: Path, arrays: Mapping[str, Any], name: str) -> Any:
    return _readable(f"'{name}' in {path}", lambda: arrays[name])


def _readable(where: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        pickled = any(word in str(error) for word in ("pickle", "Python objects"))
        hint = " (pickles are never read: save plain numbers)" if pickled else ""
        raise ValueError(f"{where} cannot be read: {error}{hint}") from error


def _safetensors(path: Path) -> Iterator[ArrayFile]:
    with require_extra("train", "reading safetensors"):
        from safetensors import SafetensorError, safe_open
    try:
        with safe_open(str(path), framework="pt") as file:
            yield ArrayFile(path, tuple(file.keys()), cache(file.get_tensor))
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
