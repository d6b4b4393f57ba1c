"""Tar files that grow member by member, and go on where a killed process left them."""

import os
import tarfile
from dataclasses import dataclass
from pathlib import Path

BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)
PNG_END = b"IEND\xaeB`\x82"


@dataclass(frozen=True)
class Member:
    """A file in a tar.

    Attributes:
        name: of the file.
        start: where its content begins.
        size: of its content, bytes.
    """

    name: str
    start: int
    size: int

    @property
    def end(self) -> int:
        """Where the next member begins."""
        return self.start + -(-self.size // BLOCK) * BLOCK


def whole_members(path: Path) -> list[Member]:
    """The PNG files of a tar up to the first that is not whole, or the end of the archive."""
    found: list[Member] = []
    size = path.stat().st_size
    with path.open("rb") as file:
        while True:
            member = _next(file.read(BLOCK), file.tell())
            if member is None or member.end > size:
                return found
            file.seek(member.start + member.size - len(PNG_END))
            if member.size < len(PNG_END) or file.read(len(PNG_END)) != PNG_END:
                return found
            found.append(member)
            file.seek(member.end)


def _next(header: bytes, start: int) -> Member | None:
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
    except (tarfile.HeaderError, ValueError):
        return None
    return Member(info.name, start, info.size)


def packed(name: str, content: bytes) -> bytes:
    """A member as it stands in a tar; without times and owners, so equal content is equal bytes."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % BLOCK)


def cut_to(path: Path, members: list[Member]) -> None:
    """Cut a tar behind ``members``, so that more can be appended."""
    os.truncate(path, members[-1].end if members else 0)


def finish(part: Path, path: Path) -> None:
    """Close the archive ``part`` and give it its name."""
    with part.open("ab") as file:
        file.write(END)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
