"""The images of a folder, such as ``immiscible sample --to`` wrote, in order of their numbers."""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.data.hf_images import EXTENSIONS as IMAGE_SUFFIXES
from immiscible_diffusion.data.image_decoding import decode_image
from immiscible_diffusion.data.images import to_batch
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.png import is_whole_png

PROMPTS = "prompts.txt"  # image i was asked for by line i mod their number
_NUMBER = re.compile(r"(\d+)\.png$")


class Place(NamedTuple):
    """Where the file of an image is: ``size`` bytes of a file, or all of it (-1)."""

    number: int
    path: Path
    start: int = 0
    size: int = -1


@dataclass(frozen=True, eq=False)
class SampleFolder(DataSet):
    """A data set of the images in a folder: in tar shards where there are any, else in files."""

    folder: Path
    size: int | None = None  # of the center square, after resizing; None = as they are
    channels: int = 3  # or 1

    @property
    def name(self) -> str:
        """The folder."""
        return str(self.folder)

    @cached_property
    def places(self) -> list[Place]:
        """Where every image is, in order; ValueError if there are none, or a shard is damaged."""
        places = [place for shard in self.folder.glob("*.tar") for place in _members(shard)]
        if places:
            return sorted(places)
        files = sorted(f for f in self.folder.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            cause = "holds no images" if self.folder.is_dir() else "is no folder"
            raise ValueError(f"{self.folder} {cause}")
        numbers = [_NUMBER.search(file.name) for file in files]
        if not all(numbers):  # from elsewhere: in the order of their names
            return [Place(number, file) for number, file in enumerate(files)]
        return sorted(Place(int(n[1]), f) for n, f in zip(numbers, files, strict=True) if n)

    @property
    def encoding(self) -> str:
        """What kinds of files the images are in."""
        kinds = sorted({place.path.suffix.lower().lstrip(".") for place in self.places})
        return "png in tar shards" if kinds == ["tar"] else ", ".join(kinds)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W), of the first image if no size is asked for."""
        if self.size is not None:
            return (self.channels, self.size, self.size)
        return tuple(self._decode(self.places[0]).shape)

    def __len__(self) -> int:
        return len(self.places)

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """The images at ``indices`` ``[B]`` in [-1, 1]; never augmented."""
        return to_batch(torch.stack([self._decode(self.places[int(index)]) for index in indices]), None, 255)

    def in_batches(self, size: int = 512) -> Iterator[Tensor]:
        """All images ``[b, C, H, W]`` in [-1, 1], in order."""
        for rows in torch.arange(len(self)).split(size):
            yield self.batch(rows).data

    def prompts(self) -> list[str]:
        """What the images were asked for by; ValueError if that is not known."""
        file = self.folder / PROMPTS
        if not file.is_file():
            raise ValueError(f"{file} is absent; write it: a prompt a line, image i of line i mod their number")
        return file.read_text(encoding="utf-8").removesuffix("\n").split("\n")

    def with_prompts(self, size: int = 64) -> Iterator[tuple[Tensor, list[str]]]:
        """The images ``[b, C, H, W]`` in [-1, 1], each with its prompt."""
        prompts, places = self.prompts(), iter(self.places)
        for images in self.in_batches(size):
            numbers = [place.number for place in islice(places, len(images))]
            yield images, [prompts[number % len(prompts)] for number in numbers]

    def _decode(self, place: Place) -> Tensor:
        with place.path.open("rb") as file:
            file.seek(place.start)
            content = file.read(place.size)
        if place.path.suffix in (".png", ".tar") and not is_whole_png(content):
            raise ValueError(f"image {place.number} of {place.path} is damaged; sample again, which replaces it")
        cell = {"bytes": content, "path": f"image {place.number} of {self.folder}"}
        return decode_image(cell, "L" if self.channels == 1 else "RGB", self.size)


def _members(shard: Path) -> list[Place]:
    try:
        with tarfile.open(shard) as tar:
            files = [(member, _NUMBER.search(member.name)) for member in tar.getmembers()]
    except tarfile.TarError as error:
        raise ValueError(f"{shard} is not a complete tar file ({error}); write it again") from error
    return [Place(int(n[1]), shard, member.offset_data, member.size) for member, n in files if n]
