"""Safetensors files read row by row: the format is a JSON header and plain bytes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "I64": torch.int64}


@dataclass(frozen=True)
class Array:
    """Where a tensor lies in a file.

    Attributes:
        dtype: of its numbers.
        shape: its first dimension is rows.
        start: first byte.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return prod(self.shape[1:]) * self.dtype.itemsize


@dataclass(frozen=True)
class Header:
    """What a file holds.

    Attributes:
        path: the file.
        arrays: tensors by name.
        metadata: texts by name.
    """

    path: Path
    arrays: dict[str, Array]
    metadata: dict[str, str]

    @property
    def rows(self) -> int:
        """Rows of every tensor, -1 if they differ."""
        counts = {array.shape[0] for array in self.arrays.values() if array.shape}
        return counts.pop() if len(counts) == 1 else -1

    def whole(self, name: str) -> Tensor:
        """A whole tensor."""
        array = self.arrays[name]
        with self.path.open("rb") as file:
            return _read(file, array, 0, array.shape[0], self.path).view(array.shape)

    def pieces(self, places: Sequence[tuple[int, int]], names: Sequence[str]) -> list[Tensor]:
        """``[len(places), ...]`` of each of ``names``: element ``[row, second]`` at every place."""
        with self.path.open("rb") as file:
            return [
                torch.stack([self._piece(file, self.arrays[name], place) for place in places])
                for name in names
            ]

    def _piece(self, file: Any, array: Array, place: tuple[int, int]) -> Tensor:
        row, second = place
        flat = Array(array.dtype, (array.shape[0] * array.shape[1], *array.shape[2:]), array.start)
        index = row * array.shape[1] + second
        return _read(file, flat, index, 1, self.path).view(array.shape[2:])


def _read(file: Any, array: Array, first: int, count: int, path: Path) -> Tensor:
    file.seek(array.start + first * array.row_bytes)
    size = count * array.row_bytes
    content = bytearray(file.read(size))
    if len(content) != size:
        raise ValueError(f"{path} is cut short; remove it and encode again")
    return (
        torch.frombuffer(content, dtype=array.dtype) if size else torch.empty(0, dtype=array.dtype)
    )


def read_header(path: Path) -> Header:
    """The header of a safetensors file.

    Raises:
        ValueError: names a file that is no such file, or is cut short.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"{path} is cut short, or no safetensors file; encode again")
        text = file.read(length)
    try:
        content = json.loads(text)
        metadata = content.pop("__metadata__", {})
        arrays = {name: _array(value, 8 + length) for name, value in content.items()}
        end = max((value["data_offsets"][1] for value in content.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} is no safetensors file of latents ({error})") from error
    if 8 + length + end != size:
        raise ValueError(f"{path} is cut short: {size} bytes of {8 + length + end}; encode again")
    return Header(path, arrays, metadata)


def _array(value: dict[str, Any], start: int) -> Array:
    return Array(DTYPES[value["dtype"]], tuple(value["shape"]), start + value["data_offsets"][0])
