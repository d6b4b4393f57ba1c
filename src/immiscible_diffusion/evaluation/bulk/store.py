"""Where pictures go: single PNG files, or tar shards of them. What is there is whole."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from immiscible_diffusion.evaluation.bulk.plan import Plan
from immiscible_diffusion.evaluation.bulk.tar import cut_to, finish, packed, whole_members
from immiscible_diffusion.utils.atomic_files import atomic_path, remove_unfinished

PNG_UNIT = 16  # a process makes so many pictures in a row


class Store(Protocol):
    """Keeps the pictures of a plan."""

    @property
    def plan(self) -> Plan:
        """Which pictures."""

    @property
    def unit(self) -> int:
        """Pictures in a row that one process must make."""

    def missing(self, rows: Sequence[int]) -> list[int]:
        """Those of ``rows``, whole units in order, that are not there; mends what is half there."""

    def there(self) -> int:
        """Number of pictures that are there, whoever made them; changes nothing."""

    def write(self, rows: Sequence[int], pictures: Sequence[bytes]) -> None:
        """Keep PNG files, rows in order, none that is there."""


@dataclass(frozen=True)
class PngStore:
    """One file a picture, ``{class}_{i}.png``; written whole or not at all.

    Args:
        plan: names them.
        folder: for the files.
    """

    plan: Plan
    folder: Path

    unit = PNG_UNIT

    def missing(self, rows: Sequence[int]) -> list[int]:
        """Rows whose file is absent; what a killed process was writing of them is removed."""
        names = self._names()
        remove_unfinished(self.folder, {self.plan.file_name(row) for row in rows})
        return [row for row in rows if self.plan.file_name(row) not in names]

    def there(self) -> int:
        """Number of files; ValueError if one is not of the plan."""
        names = self._names()
        wanted = {self.plan.file_name(row) for row in range(self.plan.count)}
        if foreign := sorted(names - wanted):
            raise ValueError(
                f"{self.folder} holds {len(foreign)} pictures that are not among those asked for, "
                f"such as {foreign[0]}; choose another folder, or ask for as many as before"
            )
        return len(names)

    def write(self, rows: Sequence[int], pictures: Sequence[bytes]) -> None:
        """Write a file for each."""
        for row, content in zip(rows, pictures, strict=True):
            with atomic_path(self.folder / self.plan.file_name(row)) as temporary:
                temporary.write_bytes(content)

    def _names(self) -> set[str]:
        if not self.folder.is_dir():
            return set()
        return {file.name for file in self.folder.glob("*.png") if file.name[0] != "."}


@dataclass(frozen=True)
class TarStore:
    """Shards ``pictures-00000.tar`` ... of ``unit`` pictures in order, members ``{class}_{i}.png``.

    A shard grows under another name, and is given its own when its pictures are all there. What a
    killed process left of a shard is kept up to the last whole picture.

    Args:
        plan: names the pictures.
        folder: for the shards.
        unit: pictures in a shard.
    """

    plan: Plan
    folder: Path
    unit: int = 1000

    def __post_init__(self) -> None:
        if self.unit < 1:
            raise ValueError(f"a shard must hold at least 1 picture, got {self.unit}")

    def path(self, shard: int) -> Path:
        """The file of a shard."""
        return self.folder / f"pictures-{shard:05d}.tar"

    def part(self, shard: int) -> Path:
        """The file of a shard that is being made."""
        return self.folder / f".pictures-{shard:05d}.tar.part"

    def rows(self, shard: int) -> range:
        """The pictures of a shard."""
        return range(shard * self.unit, min(self.plan.count, (shard + 1) * self.unit))

    def missing(self, rows: Sequence[int]) -> list[int]:
        """Rows that are in no shard."""
        absent: list[int] = []
        for shard in sorted({row // self.unit for row in rows}):
            done = self._mended(shard)
            absent += self.rows(shard)[done:]
        return absent

    def _mended(self, shard: int) -> int:
        """How many pictures of a shard are there; it is ready to be appended to."""
        path, part = self.path(shard), self.part(shard)
        wanted = [self.plan.file_name(row) for row in self.rows(shard)]
        if path.is_file():
            names = [member.name for member in whole_members(path)]
            if names == wanted:
                return len(wanted)
            if names != wanted[: len(names)]:
                raise ValueError(
                    f"{path} holds other pictures than those asked for; choose another folder, or "
                    f"ask for as many as before"
                )
            path.replace(part)  # of a smaller plan: the shard has room for more
        if not part.is_file():
            return 0
        members = whole_members(part)
        good = [a for a, name in zip(members, wanted, strict=False) if a.name == name]
        good = good if members[: len(good)] == good else []
        cut_to(part, good)
        if len(good) == len(wanted):  # killed before it got its name
            finish(part, path)
        return len(good)

    def there(self) -> int:
        """Number of pictures in finished shards; ValueError if one is not of the plan."""
        total = 0
        for path in sorted(self.folder.glob("pictures-*.tar")):
            shard = int(path.stem.removeprefix("pictures-"))
            names = [member.name for member in whole_members(path)]
            if names != [self.plan.file_name(row) for row in self.rows(shard)][: len(names)]:
                raise ValueError(
                    f"{path} holds pictures that are not among those asked for; choose another "
                    f"folder, or ask for as many as before"
                )
            total += len(names)
        return total

    def write(self, rows: Sequence[int], pictures: Sequence[bytes]) -> None:
        """Append to the shards of the rows."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for row, content in zip(rows, pictures, strict=True):
            shard = row // self.unit
            with self.part(shard).open("ab") as file:
                file.write(packed(self.plan.file_name(row), content))
            if row == self.rows(shard)[-1]:
                finish(self.part(shard), self.path(shard))
