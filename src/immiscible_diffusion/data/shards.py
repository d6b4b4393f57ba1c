"""Shards of pictures read from start to end: tar files as webdataset has them, and tables."""

import glob
import gzip
import json
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

from immiscible_diffusion.utils.optional_deps import require_extra

PICTURES = ("png", "jpg", "jpeg", "webp", "bmp")
TEXTS = ("txt", "text", "caption")
SAID = ("caption", "text", "prompt")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class ShardError(ValueError):
    """A shard, or a sample in it, cannot be read. ``whole`` when the rest of the shard is lost."""

    def __init__(self, text: str, *, whole: bool) -> None:
        super().__init__(text)
        self.whole = whole


@dataclass(frozen=True)
class Sample:
    """One picture of a stream, still encoded.

    Attributes:
        cell: ``bytes`` or ``path`` of the picture.
        texts: captions.
        label: its class, or None.
    """

    cell: dict[str, Any]
    texts: tuple[str, ...] = ()
    label: int | None = None


class Shards(Protocol):
    """A set in pieces that are read from start to end."""

    @property
    def names(self) -> Sequence[str]:
        """Of the shards."""

    def samples(self, shard: int) -> Iterator[Sample | ShardError]:
        """The samples of a shard; what cannot be read comes as an error in its place."""


@dataclass(frozen=True)
class TableShards:
    """The shards of a streamed ``datasets.IterableDataset``.

    Args:
        rows: the stream, pictures encoded.
        image: column of the pictures.
        text: column of the captions, or None.
        label: column of the labels, or None.
        name: of the set.
    """

    rows: Any
    image: str
    text: str | None
    label: str | None
    name: str

    @property
    def names(self) -> Sequence[str]:
        """Numbered, as a stream does not tell the names of its files."""
        return [f"{self.name}, shard {number}" for number in range(self.rows.num_shards)]

    def samples(self, shard: int) -> Iterator[Sample | ShardError]:
        """The rows of a shard."""
        rows = iter(self.rows.shard(self.rows.num_shards, shard))
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:  # noqa: BLE001  every reader has its own
                yield ShardError(
                    f"{self.names[shard]} cannot be read to its end: {error}", whole=True
                )
                return
            yield self._sample(row)

    def _sample(self, row: dict[str, Any]) -> Sample:
        said = row[self.text] if self.text else ()
        texts = (said,) if isinstance(said, str) else tuple(said or ())
        return Sample(row[self.image], texts, row[self.label] if self.label else None)


@dataclass(frozen=True)
class TarShards:
    """Samples in tar files: members of one name up to the first dot, one after the other.

    ``.png``, ``.jpg``, ``.webp``: the picture; ``.txt``: its caption; ``.cls``: its class;
    ``.json``: an object with ``caption`` (or ``text``, ``prompt``) and ``label``.

    Args:
        names: files, or addresses that fsspec opens (https://, s3://).
    """

    names: Sequence[str]

    def samples(self, shard: int) -> Iterator[Sample | ShardError]:
        """The samples of a shard; what cannot be read comes as an error in its place."""
        name = self.names[shard]
        try:
            for key, members in _groups(name):
                yield _sample(name, key, members)
        except (tarfile.TarError, OSError, EOFError, zlib.error, ShardError) as error:
            yield ShardError(f"{name} cannot be read to its end: {error}", whole=True)


def tar_names(path: str) -> list[str]:
    """The shards that ``path`` means: a file, a folder, a pattern with * or {00000..00099}.

    Raises:
        ValueError: there are none.
    """
    if found := _RANGE.search(path):
        first, last, width = int(found[1]), int(found[2]), len(found[1])
        names = [
            _RANGE.sub(f"{number:0{width}d}", path, count=1) for number in range(first, last + 1)
        ]
        return [each for name in names for each in tar_names(name)]
    if "://" in path:
        return [path]
    if Path(path).is_dir():
        names = [str(file) for file in Path(path).rglob("*") if is_tar(file.name)]
    else:
        names = [name for name in glob.glob(path) if is_tar(name)]  # noqa: PTH207
    if not names:
        raise ValueError(f"there are no tar shards at {path}")
    return sorted(names)


def is_tar(name: str) -> bool:
    """Whether a file is named as a tar shard."""
    return name.endswith((".tar", ".tar.gz", ".tgz"))


class _Tail:
    """A file read once from start to end; its last bytes can be looked at again."""

    def __init__(self, file: Any) -> None:
        self.file, self.position, self.kept = file, 0, b""

    def read(self, size: int) -> bytes:
        content: bytes = self.file.read(size)
        self.position += len(content)
        self.kept = (self.kept + content)[-4 * tarfile.RECORDSIZE :]
        return content

    def block(self, offset: int) -> bytes:
        """A tar block that was read a moment ago."""
        start = offset - (self.position - len(self.kept))
        return self.kept[start : start + tarfile.BLOCKSIZE] if start >= 0 else b""


def _open(name: str) -> Any:
    if "://" not in name:
        file: BinaryIO = Path(name).open("rb")  # noqa: SIM115
    else:
        with require_extra("train", "reading shards over a network"):
            import fsspec
        file = fsspec.open(name, "rb").open()
    return gzip.GzipFile(fileobj=file) if name.endswith(("gz", "tgz")) else file


def _groups(name: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Members by extension, those of one key together."""
    key, members = "", dict[str, bytes]()
    with _open(name) as file:
        tail = _Tail(file)
        with tarfile.open(fileobj=tail, mode="r|") as tar:  # type: ignore[call-overload]
            for info in tar:
                if not info.isfile():
                    continue
                path = PurePosixPath(info.name)
                stem, _, extension = path.name.partition(".")
                this = str(path.with_name(stem)) if stem else str(path)
                if this != key and members:
                    yield key, members
                    members = {}
                key = this
                content = tar.extractfile(info)
                members[extension.lower()] = content.read() if content else b""
            # tarfile takes a damaged header for the end; an end it is only with a block of zeros.
            if tail.block(tar.offset) != bytes(tarfile.BLOCKSIZE):
                raise ShardError(f"cut short or damaged at byte {tar.offset}", whole=True)
    if members:
        yield key, members


def _texts(said: Any) -> tuple[str, ...]:
    """A caption, or several."""
    texts = [said] if isinstance(said, str) else said
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"a caption is a text or a list of texts, got {said!r}")
    return tuple(texts)


def _sample(name: str, key: str, members: dict[str, bytes]) -> Sample | ShardError:
    where = f"{key} in {name}"
    picture = next((members[kind] for kind in PICTURES if kind in members), None)
    if picture is None:
        kinds = ", ".join(members)
        return ShardError(f"{where} has no picture (it has {kinds})", whole=False)
    try:
        texts = tuple(" ".join(members[k].decode().split()) for k in TEXTS if k in members)
        label = int(members["cls"]) if "cls" in members else None
        if "json" in members:
            said = json.loads(members["json"])
            texts = texts or next((_texts(said[k]) for k in SAID if said.get(k)), ())
            label = said.get("label") if label is None else label
        if label is not None and type(label) is not int:
            raise ValueError(f"the label {label!r} is no whole number")
    except (ValueError, AttributeError, TypeError) as error:
        return ShardError(
            f"{where} has a caption or class that cannot be read: {error}", whole=False
        )
    return Sample({"bytes": picture, "path": where}, texts, label)
