"""Files of arrays: .npy, .npz and .safetensors, read without pickles."""

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

KINDS = (".npy", ".npz", ".safetensors")
ONE = "data"
CHANNELS = (1, 3)


@dataclass(frozen=True)
class Arrays:
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
    def open(cls, path: Path) -> "Iterator[Arrays]":
        """The arrays of ``path``; ValueError if it is no such file."""
        if path.suffix.lower() not in KINDS:
            raise ValueError(f"{path} is no file of arrays; expected {', '.join(KINDS)}")
        if not path.is_file():
            raise ValueError(f"{path} does not exist")
        if path.suffix.lower() == ".safetensors":
            yield from _safetensors(path)
        else:
            yield from _numpy(path)

    def data_key(self, wanted: str | None, others: Sequence[str]) -> str:
        """Which array is the data: that asked for, the one named data, or the only one left."""
        if wanted is not None:
            return wanted
        left = [name for name in self.names if name not in others]
        if ONE in left:
            return ONE
        if len(left) == 1:
            return left[0]
        raise ValueError(
            f"{self.path} has several arrays ({', '.join(self.names) or 'none'}); say which are "
            f"the data: --array KEY"
        )

    def rows(self, key: str) -> int:
        """How many data; ValueError if there are none, or they are single numbers."""
        shape = tuple(self._array(key).shape)
        if len(shape) < 2 or 0 in shape:
            raise ValueError(
                f"'{key}' in {self.path} must be data [N, ...] with at least one sample of at least "
                f"one dimension, got {shape}"
            )
        return int(shape[0])

    def data(self, key: str, rows: Tensor, largest_gib: float) -> tuple[Tensor, str]:
        """Rows of the data, float32, and what was done to them."""
        array = self._array(key)
        shape = (len(rows), *array.shape[1:])
        size = 4 * torch.Size(shape).numel() / 2**30
        if size > largest_gib:
            raise ValueError(
                f"'{key}' in {self.path}: data of shape {shape} take {size:.1f} GiB, more than "
                f"the {largest_gib:g} GiB that are worked at once; give fewer images"
            )
        values = _tensor(array, rows, f"'{key}' in {self.path}")
        if values.dtype == torch.bool or values.is_complex():
            raise ValueError(f"'{key}' in {self.path} must be numbers, got {values.dtype}")
        if values.dtype != torch.uint8:
            whole = "" if values.is_floating_point() else "integers taken as they are"
            return values.float(), whole
        last = values.ndim == 4 and values.shape[-1] in CHANNELS
        last = last and values.shape[1] not in CHANNELS
        values = values.movedim(-1, 1).contiguous() if last else values
        moved = ", channels moved to the front" if last else ""
        return values.float() * (2 / 255) - 1, f"bytes scaled from 0 ... 255 to [-1, 1]{moved}"

    def condition(
        self, key: str, rows: Tensor, count: int
    ) -> tuple[Tensor, tuple[str, ...] | None]:
        """Labels int64 ``[n]`` (with their names if they are words), or numbers ``[n, ...]``."""
        array, where = self._array(key), f"the condition '{key}' in {self.path}"
        self._check_rows(where, array, count)
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
        fits = len(array.shape) == data.ndim and array.shape[0] in (1, count)
        fits = fits and all(
            a in (1, b) for a, b in zip(array.shape[1:], data.shape[1:], strict=True)
        )
        if not fits:
            raise ValueError(
                f"{where} has shape {tuple(array.shape)}; expected one that broadcasts to the data "
                f"{(count, *data.shape[1:])} with as many dimensions, 1 wherever it says the same "
                f"for all positions"
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

    def _check_rows(self, where: str, array: Any, count: int) -> None:
        if array.ndim < 1 or len(array) != count:
            raise ValueError(
                f"{where} must have {count} rows like the data, got shape {tuple(array.shape)}"
            )


def _tensor(array: Any, rows: Tensor, where: str) -> Tensor:
    """Rows of an array of numbers as a tensor."""
    if isinstance(array, Tensor):
        return array[rows]
    picked = np.ascontiguousarray(array[rows.numpy()])
    if not picked.dtype.isnative:
        picked = picked.astype(picked.dtype.newbyteorder("="))
    unsigned = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64}
    if picked.dtype.name in unsigned:
        picked = picked.astype(unsigned[picked.dtype.name])
    if picked.dtype.name in ("longdouble", "float128"):
        picked = picked.astype(np.float64)
    try:
        return torch.from_numpy(picked)
    except TypeError:
        raise ValueError(f"{where} must be numbers, got {picked.dtype}") from None


def _numpy(path: Path) -> Iterator[Arrays]:
    try:
        found = np.load(path, mmap_mode="r" if path.suffix == ".npy" else None, allow_pickle=False)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read: {error}{_hint(error)}") from error
    if isinstance(found, np.ndarray):
        yield Arrays(path, (ONE,), {ONE: found}.__getitem__)
        return
    with found:
        yield Arrays(path, tuple(found.files), cache(partial(_from_zip, path, found)))


def _from_zip(path: Path, found: Mapping[str, Any], name: str) -> Any:
    try:
        return found[name]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"'{name}' in {path} cannot be read: {error}{_hint(error)}") from error


def _hint(error: Exception) -> str:
    asks = any(word in str(error) for word in ("pickle", "Python objects"))
    return " (pickles are never read: save plain numbers)" if asks else ""


def _safetensors(path: Path) -> Iterator[Arrays]:
    with require_extra("train", "reading safetensors"):
        from safetensors import SafetensorError, safe_open
    try:
        with safe_open(str(path), framework="pt") as file:
            yield Arrays(path, tuple(file.keys()), cache(file.get_tensor))
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
