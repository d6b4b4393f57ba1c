"""The pictures of a folder that ``immiscible bulk`` wrote, in order."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from immiscible_diffusion.bulk.tar import whole_members
from immiscible_diffusion.data.decode import opened, to_bytes

_NUMBER = re.compile(r"(\d+)\.png$")


@dataclass(frozen=True)
class BulkPictures:
    """PNG files or tar shards of a folder.

    Args:
        folder: where they are.
    """

    folder: Path

    def files(self) -> Iterator[tuple[int, bytes]]:
        """Number and content of every picture, in order; those in tar shards where there are any.

        Raises:
            ValueError: there are none.
        """
        shards = sorted(self.folder.glob("pictures-*.tar"))
        if shards:
            for shard in shards:
                yield from _of_shard(shard)
            return
        pictures = [file for file in self.folder.glob("*.png") if _NUMBER.search(file.name)]
        if not pictures:
            raise ValueError(f"{self.folder} holds no pictures that immiscible bulk wrote")
        for file in sorted(pictures, key=lambda file: _number(file.name)):
            yield _number(file.name), file.read_bytes()

    def batches(self, size: int = 512, channels: int = 3) -> Iterator[Tensor]:
        """The pictures ``[b, C, H, W]`` in [-1, 1]."""
        mode, held = "L" if channels == 1 else "RGB", []
        for number, content in self.files():
            cell = {"bytes": content, "path": f"picture {number} of {self.folder}"}
            held.append(to_bytes(opened(cell, mode)))
            if len(held) == size:
                yield torch.stack(held).float() * (2 / 255) - 1
                held = []
        if held:
            yield torch.stack(held).float() * (2 / 255) - 1


def _of_shard(shard: Path) -> Iterator[tuple[int, bytes]]:
    with shard.open("rb") as file:
        for member in whole_members(shard):
            file.seek(member.start)
            yield _number(member.name), file.read(member.size)


def _number(name: str) -> int:
    found = _NUMBER.search(name)
    if found is None:
        raise ValueError(f"'{name}' is not named as immiscible bulk names pictures")
    return int(found[1])
