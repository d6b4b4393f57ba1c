"""What a shard holds, sample by sample, and in its place every loss of data as an error that names the shard.

Tables (parquet files, sets of the hub) are streamed by the ``datasets`` library. Its reader of tar files takes a
damaged header for the end of a file and expects the same members of every sample, so tar shards are read here.
"""

import json
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any

from immiscible_diffusion.data.captions import caption_column
from immiscible_diffusion.data.hf_images import columns, open_rows
from immiscible_diffusion.data.load import DataConfig
from immiscible_diffusion.utils.optional_deps import require_extra

IMAGES = ("png", "jpg", "jpeg", "webp", "bmp")
TEXTS = ("txt", "text", "caption")
JSON_TEXTS = ("caption", "text", "prompt")
HINT = "a stream of the hub needs a network all the time; or download it and set data.path"


class ShardError(ValueError):
    """A sample cannot be read."""


class ShardEndError(ShardError):
    """Nor can what follows it in its shard ``name``."""

    def __init__(self, name: str, error: Exception) -> None:
        super().__init__(f"{_plain(name)} cannot be read to its end: {error}; repair or remove it")


@dataclass(frozen=True)
class Sample:
    """One image, still encoded: ``bytes`` or ``path``, its captions and its class."""

    cell: dict[str, Any]
    texts: tuple[str, ...] = ()
    label: int | None = None
    place: tuple[int, int, int, int] = (0, 0, 0, 0)  # in a stream: where it was read; once shuffled, what comes next


Shard = Callable[[], Iterator[Sample | ShardError]]


def table_shards(
    config: DataConfig, arguments: dict[str, Any], caption: str | None
) -> tuple[dict[str, Shard], Sequence[str] | None]:
    """The shards, by name, of the table that ``load_arguments`` found, and the names of its classes.

    The column ``caption`` has the captions, by default one of a usual name. The first of parquet files has the
    columns, with ``on_error`` skip the first that can be read. ValueError for no such file or column, or the hub out
    of reach.
    """
    files = arguments["data_files"][config.split] if arguments["path"] == "parquet" else []
    for file in files:
        try:
            one = replace(config, path=_plain(file))
            alone = open_rows(one, HINT, arguments | {"data_files": {config.split: [file]}})
            arguments = arguments | {"features": alone.features}
            break
        except ValueError as error:
            if config.on_error == "raise":
                raise ValueError(f"{error}; --data.on_error skip leaves it out") from error
            if file == files[-1]:
                raise ValueError(f"{no_sample_of(files)}: {error}") from error
    rows = open_rows(config, HINT, arguments)
    image, label = columns(rows, config)
    text = caption_column(rows, caption)
    names = files or [f"{config.path or config.name}, shard {number}" for number in range(rows.num_shards)]

    def read(number: int) -> Iterator[Sample | ShardError]:
        try:
            for row in rows.shard(rows.num_shards, number):
                texts = row[text] if text else ()
                texts = (texts,) if isinstance(texts, str) else tuple(texts or ())
                yield Sample(row[image], texts, row[label] if label else None)
        except Exception as error:  # noqa: BLE001  every reader has its own
            yield ShardEndError(names[number], error)

    shards: dict[str, Shard] = {name: partial(read, number) for number, name in enumerate(names)}
    return shards, getattr(rows.features[label], "names", None) if label else None


def no_sample_of(names: Sequence[str]) -> str:
    """Say that none of the shards ``names`` can be read."""
    more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
    return f"no sample of {_plain(names[0])}{more} can be read"


def _plain(name: str) -> str:
    """The name of a file that ``glob.escape`` may have made a pattern."""
    return re.sub(r"\[([*?[])\]", r"\1", name)


def read_tar(name: str) -> Iterator[Sample | ShardError]:
    """The samples of a tar shard in webdataset's layout: consecutive members of one stem.

    ``.png``, ``.jpg``, ``.webp``: the image; ``.txt``: its caption; ``.cls``: its class;
    ``.json``: an object with ``caption`` (or ``text``, ``prompt``) and ``label``. ``name`` is a
    file, or an address that fsspec opens (https://, s3://).
    """
    with require_extra("train", "reading shards"):
        import fsspec
    compression = "gzip" if name.endswith("gz") else None
    try:
        with (
            fsspec.open(name, "rb", compression=compression) as file,
            tarfile.open(fileobj=file, mode="r|", tarinfo=_StrictHeader) as tar,
        ):
            for stem, group in groupby(filter(tarfile.TarInfo.isfile, tar), _stem):
                members = {_extension(info): tar.extractfile(info).read() for info in group}  # type: ignore[union-attr]
                yield _to_sample(f"{stem} in {name}", members)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        yield ShardEndError(name, error)


class _StrictHeader(tarfile.TarInfo):
    """The header of a member; tarfile takes a damaged one for the end, here it is an error."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_StrictHeader":
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # zeros mark the end
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"cut short or damaged at byte {tar.offset}") from error


def _stem(info: tarfile.TarInfo) -> str:
    path = PurePosixPath(info.name)
    first = path.name.partition(".")[0]
    return str(path.with_name(first)) if first else str(path)


def _extension(info: tarfile.TarInfo) -> str:
    return PurePosixPath(info.name).name.partition(".")[2].lower()


def _to_sample(where: str, members: dict[str, bytes]) -> Sample | ShardError:
    image = next((members[extension] for extension in IMAGES if extension in members), None)
    if image is None:
        return ShardError(f"{where} has no image (it has {', '.join(members)})")
    try:
        texts = tuple(" ".join(members[name].decode().split()) for name in TEXTS if name in members)
        label = int(members["cls"]) if "cls" in members else None
        record = json.loads(members.get("json", b"{}"))
        texts = texts or next((_texts(record[k]) for k in JSON_TEXTS if record.get(k)), ())
        label = record.get("label") if label is None else label
        if label is not None and type(label) is not int:
            raise ValueError(f"the label {label!r} is no integer")
    except (ValueError, AttributeError, TypeError) as error:
        return ShardError(f"{where} has a caption or class that cannot be read: {error}")
    return Sample({"bytes": image, "path": where}, texts, label)


def _texts(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"a caption is a text or a list of texts, got {value!r}")
    return tuple(texts)
