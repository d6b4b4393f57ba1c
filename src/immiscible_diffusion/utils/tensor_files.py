"""Files of tensors, safetensors with a checksum: what is not as it was written is an error."""

import os
import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

from immiscible_diffusion.utils.atomic_files import atomic_path
from immiscible_diffusion.utils.optional_deps import require_extra

CHECKSUM = "checksum"  # among the metadata


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None
) -> None:
    """Write ``tensors``, with texts ``about`` them, complete or not at all."""
    with require_extra("train", f"writing {path}"):
        from safetensors.torch import save_file
    state = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    about = dict(about or {})
    with atomic_path(path, sum(value.nbytes for value in state.values())) as temporary:
        save_file(state, str(temporary), {**about, CHECKSUM: _checksum(state, about)})


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what ``save_tensors`` wrote: tensors, and texts about them.

    ValueError names a file that cannot be read or is damaged. One without a checksum, of an older release, is taken.
    """
    with require_extra("train", f"reading {path}"):
        from safetensors import SafetensorError, safe_open
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from error
    if about.pop(CHECKSUM, None) not in (None, _checksum(tensors, about)):
        raise ValueError(f"{path} is damaged: its checksum is another; take a copy, or remove it and make it again")
    return tensors, about


def row_checksums(rows: Tensor) -> Tensor:
    """``[N]`` int64: the CRC-32 of the bytes of every row of ``[N, ...]`` on the CPU."""
    return torch.tensor([zlib.crc32(_bytes(row)) for row in rows])


def _checksum(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """CRC-32, which finds what happens to files by chance, not by intent."""
    crc = zlib.crc32(repr(sorted(about.items())).encode())
    for name in sorted(tensors):
        value = tensors[name]
        crc = zlib.crc32(f"{name}/{value.dtype}/{tuple(value.shape)}".encode(), crc)
        crc = zlib.crc32(_bytes(value), crc)
    return f"{crc:08x}"


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data
