"""Files of arrays: .npy, .npz and .safetensors, read without pickles."""

import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from immiscible_diffusion.utils.optional_deps import require_extra

EXTENSIONS = (".npy", ".npz", ".safetensors")


def is_array_file(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is named as a file of arrays."""
    return Path(path).suffix.lower() in EXTENSIONS


@dataclass(frozen=True)
class ArrayFile:
    """The arrays of a file by ``names`` (``data`` for that of a .npy), read when asked for."""

    path: Path
    names: Sequence[str]
    load: Callable[[str], Any]

    def read(self, name: str) -> Any:
        """The array ``name``, numpy's or torch's; ValueError if it is not there."""
        if name not in self.names:
            raise ValueError(f"{self.path} has no array '{name}'; there are: {', '.join(self.names)}")
        return self.load(name)

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> "Iterator[ArrayFile]":
        """The arrays of ``path``; ValueError if it is no such file."""
        if not is_array_file(path):
            raise ValueError(f"{path} is no file of arrays; expected {', '.join(EXTENSIONS)}")
        if not path.is_file():
            raise ValueError(f"{path} does not exist")
        if path.suffix.lower() == ".safetensors":
            with require_extra("train", "reading safetensors"):
                from safetensors import SafetensorError, safe_open
            try:
                with safe_open(str(path), framework="pt") as file:
                    yield cls(path, tuple(file.keys()), cache(file.get_tensor))
            except SafetensorError as error:
                raise ValueError(f"{path} cannot be read: {error}") from error
            return
        with _readable(str(path)):
            arrays = np.load(path, mmap_mode="r" if path.suffix == ".npy" else None, allow_pickle=False)
        if isinstance(arrays, np.ndarray):
            yield cls(path, ("data",), {"data": arrays}.__getitem__)
            return

        def load(name: str) -> Any:
            with _readable(f"'{name}' in {path}"):
                return arrays[name]

        with arrays:
            yield cls(path, tuple(arrays.files), cache(load))


@contextmanager
def _readable(where: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        pickled = any(word in str(error) for word in ("pickle", "Python objects"))
        hint = " (pickles are never read: save plain numbers)" if pickled else ""
        raise ValueError(f"{where} cannot be read: {error}{hint}") from error
