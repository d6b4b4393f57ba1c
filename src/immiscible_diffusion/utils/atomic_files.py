"""Files that are complete or absent: written under a temporary name, then renamed."""

import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


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
        text = f"cannot write {target}: {reason}{missing}; with that mended, the same command goes on"
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
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error})") from error


def append_jsonl(path: str | os.PathLike[str], record: dict[str, Any]) -> None:
    """Append one record as one line; the folder must exist. OSError as of ``atomic_path``."""
    path = Path(path)
    with _writing(path, path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, allow_nan=False) + "\n")


def write_jsonl(path: str | os.PathLike[str], records: list[dict[str, Any]]) -> None:
    """Write ``records``, one per line, complete or not at all."""
    write_text(path, "".join(json.dumps(record, allow_nan=False) + "\n" for record in records))


def read_jsonl(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read the records of a JSONL file, oldest first; an absent file has none.

    A last line cut short by a killed process is skipped; an invalid line before it raises.
    """
    if not Path(path).exists():
        return []
    lines = Path(path).read_text(encoding="utf-8").splitlines(keepends=True)
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise ValueError(f"{path}, line {number} is not valid JSON ({error})") from error
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
