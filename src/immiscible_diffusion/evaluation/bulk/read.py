"""The pictures of a folder that ``immiscible bulk`` wrote, in order."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.data.hf_images import Decoder
from immiscible_diffusion.data.image_decoding import opened, to_bytes
from immiscible_diffusion.data.images import to_batch
from immiscible_diffusion.evaluation.bulk.run import PROMPTS
from immiscible_diffusion.evaluation.bulk.tar import whole_members
from immiscible_diffusion.utils.batch import Batch

_NUMBER = re.compile(r"(\d+)\.png$")


class Place(NamedTuple):
    """Where a picture is: bytes of a file."""

    number: int
    path: Path
    start: int
    size: int

    def read(self) -> bytes:
        """The PNG file."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(self.size)


@dataclass(frozen=True, eq=False)
class BulkPictures:
    """PNG files or tar shards of a folder.

    Args:
        folder: where they are.
    """

    folder: Path

    @property
    def shards(self) -> list[Path]:
        """The tar shards; none where pictures are single files."""
        return sorted(self.folder.glob("pictures-*.tar"))

    @cached_property
    def places(self) -> list[Place]:
        """Where every picture is, in order; in tar shards where there are any.

        Raises:
            ValueError: there are none.
        """
        found = [
            Place(_number(member.name), shard, member.start, member.size)
            for shard in self.shards
            for member in whole_members(shard)
        ]
        if not found:
            files = [file for file in self.folder.glob("*.png") if _NUMBER.search(file.name)]
            found = [Place(_number(file.name), file, 0, file.stat().st_size) for file in files]
        if not found:
            raise ValueError(f"{self.folder} holds no pictures that immiscible bulk wrote")
        return sorted(found)

    def files(self) -> Iterator[tuple[int, bytes]]:
        """Number and content of every picture, in order."""
        for place in self.places:
            yield place.number, place.read()

    def prompts(self) -> list[str]:
        """What was said for the pictures: picture i came of prompt i mod their number.

        Raises:
            ValueError: it is not known.
        """
        file = self.folder / PROMPTS
        if not file.is_file():
            raise ValueError(
                f"{file} is absent, so what the pictures were asked for by is not known; write it: "
                f"a prompt a line, picture i of line i mod their number"
            )
        return file.read_text(encoding="utf-8").removesuffix("\n").split("\n")

    def with_texts(self, size: int = 64) -> Iterator[tuple[Tensor, list[str]]]:
        """The pictures ``[b, 3, H, W]`` in [-1, 1], each with its prompt."""
        prompts, numbers = self.prompts(), (number for number, _ in self.files())
        for pictures in self.batches(size):
            yield pictures, [prompts[n % len(prompts)] for n in islice(numbers, len(pictures))]

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


@dataclass(frozen=True, eq=False)
class BulkSet(DataSet):
    """The pictures of a folder as a data set, brought to one size.

    Args:
        pictures: of the folder.
        size: of the shorter side, then the center square.
        channels: 1 or 3.
    """

    pictures: BulkPictures
    size: int
    channels: int = 3

    @property
    def name(self) -> str:
        """Name for reports."""
        return str(self.pictures.folder)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return (self.channels, self.size, self.size)

    def __len__(self) -> int:
        return len(self.pictures.places)

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """The pictures at ``indices`` ``[B]`` in [-1, 1]; never augmented."""
        decode = Decoder("picture", "L" if self.channels == 1 else "RGB", self.size)
        places = [self.pictures.places[int(index)] for index in indices]
        cells = [{"bytes": place.read(), "path": str(place.path)} for place in places]
        return to_batch(torch.stack([decode({"picture": cell}) for cell in cells]), None, 255)


def _number(name: str) -> int:
    found = _NUMBER.search(name)
    if found is None:
        raise ValueError(f"'{name}' is not named as immiscible bulk names pictures")
    return int(found[1])
