"""Files of tensors, safetensors with a checksum: what is not as it was written is an error."""

import json
import os
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.utils.atomic_files import atomic_path
from immiscible_diffusion.utils.optional_deps import require_extra

ABOUT, CHECKSUM = "about", "checksum"


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None
) -> None:
    """Write ``tensors``, with texts ``about`` them, complete or not at all."""
    with require_extra("train", f"writing {path}"):
        from safetensors.torch import save_file
    state = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with atomic_path(path, sum(value.nbytes for value in state.values())) as temporary:
        save_file(state, str(temporary), to_metadata(state, about or {}))


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what ``save_tensors`` wrote: tensors, and texts about them.

    ValueError names a file that cannot be read or is damaged. One without a checksum, of an older release, is taken.
    """
    with require_extra("train", f"reading {path}"):
        from safetensors import SafetensorError, safe_open
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from error
    return tensors, from_metadata(metadata, tensors, path)


def to_metadata(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> dict[str, str]:
    """Return texts ``about`` tensors with a checksum as metadata: one text, as safetensors keeps no order of many."""
    return {ABOUT: json.dumps({**about, CHECKSUM: _checksum(tensors, about)}, sort_keys=True)}


def from_metadata(
    metadata: Mapping[str, str] | None, tensors: Mapping[str, Tensor], path: str | os.PathLike[str]
) -> dict[str, str]:
    """Return the texts of ``to_metadata``; ValueError names a file whose checksum is another."""
    about: Any = dict(metadata or {})
    first = next(iter(about.values()), "")
    try:
        if ABOUT in about or (len(about) == 1 and first.startswith("{")):
            about = json.loads(first)
        if about.pop(CHECKSUM, None) in (None, _checksum(tensors, about)):
            return dict(about)
    except (ValueError, AttributeError, TypeError):
        pass
    raise ValueError(f"{path} is damaged: its checksum is another; take a copy, or remove it and make it again")


def crc32(tensor: Tensor) -> int:
    """CRC-32 of the bytes of a tensor on the CPU."""
    return zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().data)


def _checksum(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """CRC-32 of tensors and texts, which finds what happens to files by chance, not by intent."""
    parts = [(name, str(value.dtype), tuple(value.shape), crc32(value)) for name, value in sorted(tensors.items())]
    return f"{zlib.crc32(repr((sorted(about.items()), parts)).encode()):08x}"
