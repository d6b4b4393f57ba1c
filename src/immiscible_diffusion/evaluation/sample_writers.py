"""Images of samples in a folder: single PNG files, or tar shards as webdataset reads them."""

import io
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from immiscible_diffusion.utils.atomic_files import atomic_path, remove_unfinished
from immiscible_diffusion.utils.checks import PositiveInt, check_fields
from immiscible_diffusion.utils.png import is_whole_png

_LONGEST = 60  # letters of a class in a file name: a tar header has room for 100


@dataclass(frozen=True)
class SampleWriter:
    """Writes ``count`` images; image i is of class i mod the number of classes.

    So the classes get equally many, and more can be asked for later: the images that exist stay. A
    file that exists is whole. A shard is written when all of its images are made, so a killed
    process repeats at most one. Equal images give equal bytes.
    """

    folder: Path  # for ``{class}_{i}.png``, or for ``images-00000.tar`` ... of such members in order
    count: PositiveInt  # images in all, over all processes
    classes: Sequence[str] = ()  # names of the classes, or prompts, for the file names; none for numbers alone
    format: Literal["png", "tar", "both"] = "png"  # single files, shards, or both
    shard_size: PositiveInt = 1000  # images in a shard

    def __post_init__(self) -> None:
        check_fields(self)

    def file_name(self, index: int) -> str:
        """``{class}_{i}.png`` of plain letters: class names may repeat, as ImageNet's do."""
        if not self.classes:
            return f"{index:06d}.png"
        name = self.classes[index % len(self.classes)]
        plain = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:_LONGEST] or "class"
        return f"{plain}_{index:06d}.png"

    def existing(self) -> int:
        """Count the images that exist; ValueError if there are others than asked for."""
        files = {file.name for file in self.folder.glob("*.png")}
        if self.format != "tar":
            self._check(self.folder, files <= set(map(self.file_name, range(self.count))))
        members = sum(map(self._members, self.folder.glob("images-*.tar")))
        return {"png": len(files), "tar": members, "both": min(len(files), members)}[self.format]

    def missing(self, rank: int = 0, world: int = 1) -> Iterator[tuple[list[int], Path | None]]:
        """Yield groups of images that a process is to make, each with its shard if it is one.

        Every world-th image belongs to the process, or every world-th shard, whatever exists. What a killed process
        left of their files is removed.
        """
        files = {file.name for file in self.folder.glob("*.png")}
        groups: list[tuple[list[int], Path | None]] = [([*range(rank, self.count, world)], None)]
        if self.format != "png":
            shards = range(rank, -(-self.count // self.shard_size), world)
            groups = [(list(self._indices(shard)), self.folder / f"images-{shard:05d}.tar") for shard in shards]
        for indices, shard in groups:
            names = {self.file_name(index) for index in indices}
            remove_unfinished(self.folder, names | {shard.name} if shard else names)
            if shard and self._members(shard, whole=True) < len(indices):
                yield indices, shard
            elif self.format != "tar":
                whole = {name for name in names & files if is_whole_png((self.folder / name).read_bytes())}
                yield [index for index in indices if self.file_name(index) not in whole], None

    def write(self, images: dict[int, bytes], shard: Path | None = None) -> None:
        """Write PNG files by their index, and the shard that they are."""
        files = {self.file_name(index): content for index, content in images.items()}
        if self.format != "tar":
            for name, content in files.items():
                with atomic_path(self.folder / name) as temporary:
                    temporary.write_bytes(content)
        if shard is not None:
            with atomic_path(shard) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
                for name, content in files.items():
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))

    def _indices(self, shard: int) -> range:
        return range(shard * self.shard_size, min(self.count, (shard + 1) * self.shard_size))

    def _members(self, path: Path, *, whole: bool = False) -> int:
        """How many images a shard holds: none if absent or damaged, some if written for a smaller count.

        With ``whole`` the images themselves are looked at.
        """
        if not path.is_file():
            return 0
        try:
            with tarfile.open(path) as tar:
                names = tar.getnames()
                files = map(tar.extractfile, tar.getmembers() if whole else ())
                if not all(file is not None and is_whole_png(file.read()) for file in files):
                    return 0
        except (tarfile.TarError, EOFError):
            return 0
        expected = map(self.file_name, self._indices(int(path.stem.removeprefix("images-"))))
        self._check(path, names == list(expected)[: len(names)])
        return len(names)

    def _check(self, place: Path, fine: bool) -> None:
        if not fine:
            raise ValueError(
                f"{place} holds images that are not among those asked for; choose another folder, "
                f"or ask for as many as before"
            )
