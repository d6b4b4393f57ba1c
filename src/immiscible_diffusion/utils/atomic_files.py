"""Files that are complete or absent: written under a temporary name, then renamed."""

import errno
import json
import os
import re
import shutil
import uuid
import zlib
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

CHECKSUM = "checksum"  # a key of every record
RECORDS = 1  # version of how records are written
_FINISHED = re.compile(rb'"checksum": "[^"]*"}')


@contextmanager
def _writing(target: Path, temporary: Path, size: int | None = None) -> Iterator[None]:
    """Turn an error of the system while ``temporary`` is written into one OSError with what to do.

    Of libraries that raise errors of their own as well: safetensors, and torch around a Python file.
    """
    try:
        yield
    except Exception as error:
        if (reason := _system_reason(error)) is None:
            raise
        missing = ""
        if size is not None:
            room = temporary.stat().st_size if temporary.exists() else 0
            if reason == os.strerror(errno.ENOSPC):
                room += shutil.disk_usage(target.parent).free
            lacking = _mib(max(1, size - room))
            missing = f"; it takes {_mib(size)}, and there is room for {_mib(room)}: at least {lacking} are missing"
        text = f"cannot write {target}: {reason}{missing}; with that mended, the same command resumes"
        raise OSError(text) from error


def _system_reason(error: BaseException | None) -> str | None:
    """Return what the system said of a failed write; None if ``error`` has another cause."""
    while error is not None:
        if isinstance(error, OSError):
            return error.strerror or str(error)
        if of_rust := re.search(r"\(os error (\d+)\)", str(error)):
            return os.strerror(int(of_rust[1]))
        error = error.__cause__ or error.__context__
    return None


def _mib(size: int) -> str:
    return f"{size / 2**20:,.2f} MiB"


@contextmanager
def atomic_path(path: str | os.PathLike[str], size: int | None = None) -> Iterator[Path]:
    """Yield a temporary sibling of ``path``, renamed to ``path`` on success, removed on error.

    A process that dies inside leaves ``path`` as it was. OSError if it cannot be written, such as on a full disk: it
    says how much of ``size`` bytes, if that is known, is missing.
    """
    target = Path(path)
    # Not the process id: two nodes that share a folder may have the same one.
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with _writing(target, temporary, size):
            target.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            temporary.replace(target)
    finally:
        with suppress(OSError):  # it may not be there, or its folder may be gone
            temporary.unlink(missing_ok=True)


def remove_unfinished(folder: str | os.PathLike[str], names: Container[str]) -> None:
    """Remove temporary files of ``names`` that killed processes left; nobody may write them now."""
    for file in Path(folder).glob(".*.tmp"):
        if file.name[1:].rsplit(".", 2)[0] in names:
            file.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` (UTF-8) to ``path``, complete or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as indented JSON, complete or not at all; NaN or infinity raises."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file; ValueError names the file if it does not parse."""
    return _parse(Path(path).read_bytes(), path)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def _parse(content: bytes, where: Any) -> Any:
    try:
        return json.loads(content.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not valid JSON ({error})") from error


# -- records: JSON objects of ours, with a checksum ------------------------------------------------


def write_record(path: str | os.PathLike[str], values: Mapping[str, Any]) -> None:
    """Write ``values`` as JSON with a checksum, complete or not at all; ``read_record`` reads them."""
    write_json(path, _with_checksum(values))


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what ``write_record`` wrote; ValueError names a file that is no JSON object, or is damaged.

    A file without a checksum, of an older release, is taken.
    """
    return _checked(read_json(path), path)


def _with_checksum(values: Mapping[str, Any]) -> dict[str, Any]:
    return {**values, CHECKSUM: f"{RECORDS}-{_checksum(values)}"}


def _checked(values: Any, where: Any) -> dict[str, Any]:
    """Return ``values`` without their checksum, which is compared."""
    if not isinstance(values, dict):
        raise ValueError(f"{where} is {type(values).__name__}, not a JSON object; it was not written so")
    if (written := values.pop(CHECKSUM, None)) is not None:
        version, _, checksum = str(written).partition("-")
        if version != str(RECORDS):
            raise ValueError(f"{where} was written by another release (records of version {version}, not {RECORDS})")
        if checksum != _checksum(values):
            raise ValueError(
                f"{where} is damaged or was edited: its checksum is another; take a copy, or remove its {CHECKSUM} if "
                f"it is to be taken as it is"
            )
    return values


def _checksum(values: Mapping[str, Any]) -> str:
    """CRC-32 of ``values`` as they are read back, in any order: finds what happens by chance, not by intent."""
    try:
        read_back = json.loads(json.dumps(values, allow_nan=False))
        return f"{zlib.crc32(json.dumps(read_back, sort_keys=True).encode()):08x}"
    except RecursionError as error:
        raise ValueError("a record is too deep") from error


def append_jsonl(path: str | os.PathLike[str], record: dict[str, Any]) -> None:
    """Append one record, with its checksum, as one line; the folder must exist. OSError as of ``atomic_path``."""
    path = Path(path)
    with _writing(path, path), path.open("a", encoding="utf-8") as file:
        file.write(_line(record))


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(_with_checksum(record), allow_nan=False) + "\n"


def write_jsonl(path: str | os.PathLike[str], records: list[dict[str, Any]]) -> None:
    """Write ``records``, one per line, complete or not at all."""
    write_text(path, "".join(map(_line, records)))


def read_jsonl(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read the records of a JSONL file, oldest first; an absent file has none.

    A last line cut short by a killed process is skipped; a line before it that is no record, or damaged, raises.
    """
    if not Path(path).exists():
        return []
    lines = Path(path).read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        try:
            records.append(_checked(_parse(line, where), where))
        except ValueError:
            if number < len(lines) or _FINISHED.search(line):  # the last is empty, or was cut short
                raise
    return records


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary sibling of the folder ``path``, renamed on success, removed on error.

    A process that dies inside leaves ``path`` as it was; one that dies during the renaming may leave it absent, never
    half written.
    """
    target, mark = Path(path), uuid.uuid4().hex[:12]
    temporary = target.with_name(f".{target.name}.{mark}.tmp")
    before = target.with_name(f".{target.name}.{mark}.old")
    try:
        with _writing(target, temporary):
            temporary.mkdir(parents=True)
            yield temporary
            if target.exists():
                target.rename(before)
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)
