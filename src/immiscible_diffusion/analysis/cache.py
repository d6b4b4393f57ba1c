"""Finished parts of an analysis on disk, so that a killed one goes on where it was."""

import hashlib
import json
import math
import re
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from immiscible_diffusion.analysis.hashing import bytes_of
from immiscible_diffusion.utils.atomic_files import read_json, write_json
from immiscible_diffusion.utils.batch import Batch

MEASURES = 1  # to be raised whenever what is measured changes: parts kept before are made anew
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Parts:
    """The folder of an analysis: plan.json, parts/ and pictures/.

    Attributes:
        folder: None keeps nothing.
        data: what is analyzed: name and digest.
        settings: how, as plain values; another ``data`` or ``settings`` is another analysis.
    """

    folder: Path | None
    data: dict[str, Any]
    settings: dict[str, Any]

    def begin(self, couplings: Sequence[str]) -> tuple[str, ...]:
        """Write the plan; returns the couplings of an earlier one, and the new ones after them.

        Raises:
            ValueError: the folder holds an analysis of other data or settings, or can't be written.
        """
        every = tuple(dict.fromkeys((*self.planned(), *couplings)))
        if self.folder is None:
            return every
        plan = {"format": 1, "data": self.data, "settings": self.settings, "couplings": every}
        try:
            write_json(self.folder / "plan.json", plan)
        except OSError as error:
            raise ValueError(f"cannot write to {self.folder}: {error}") from error
        return every

    def planned(self) -> tuple[str, ...]:
        """The couplings of the plan that is there; ValueError if it is of another analysis."""
        if self.folder is None or not (self.folder / "plan.json").exists():
            return ()
        before = read_json(self.folder / "plan.json")
        plain = json.loads(json.dumps(self.settings))
        changed = [
            f"{name}: {before['settings'].get(name)} -> {plain.get(name)}"
            for name in plain | before["settings"]
            if before["settings"].get(name) != plain.get(name)
        ]
        if before["data"]["digest"] != self.data["digest"]:
            changed.insert(0, f"other data than the {before['data']['name']} there")
        if changed:
            raise ValueError(
                f"{self.folder} holds another analysis ({'; '.join(changed)}); choose another "
                f"folder (--out)"
            )
        return tuple(before["couplings"])

    def part(
        self, coupling: str, name: str, code: str, make: Callable[[], Any]
    ) -> tuple[Any, float]:
        """The part ``name`` of ``coupling`` and the seconds that it took: kept, or made now.

        Args:
            coupling: its name.
            name: of the part.
            code: hash of the code and content that make it, where they may change.
            make: makes plain values; what is not finite becomes None.
        """
        made_by = [MEASURES, version("immiscible-diffusion")]
        key = digest(made_by, self.data["digest"], self.settings, coupling, name, code)
        path = self.folder and self.folder / "parts" / f"{slug(coupling)}-{name}.json"
        if path and path.exists():
            kept = read_json(path)
            if kept["key"] == key and not self._lost(kept["value"]):
                return kept["value"], kept["seconds"]
            warnings.warn(
                f"{path} is of another version, or of other code, content, weights or pictures: "
                f"measured anew",
                stacklevel=2,
            )
        start = time.monotonic()
        value = plain(make())
        seconds = round(time.monotonic() - start, 3)
        if path:
            record = {"key": key, "coupling": coupling, "part": name, "seconds": seconds}
            write_json(path, record | {"value": value})
        return value, seconds

    def _lost(self, value: Any) -> list[str]:
        """Pictures that ``value`` names and that are no more."""
        assert self.folder is not None
        return [name for name in _pictures(value) if not (self.folder / name).is_file()]


def _pictures(value: Any) -> list[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [name for each in value for name in _pictures(each)]
    return [value] if isinstance(value, str) and re.fullmatch(r"pictures/\S+\.png", value) else []


def slug(name: str) -> str:
    """``name`` as part of a file name, told apart from similar ones."""
    short = re.sub(r"[^A-Za-z0-9.=,+-]+", "-", name).strip("-.")[:60]
    return f"{short}-{digest(name)[:6]}"


def digest(*parts: Any) -> str:
    """Hash of plain values."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_of(batch: Batch) -> str:
    """Hash of data, conditions and mask."""
    content = hashlib.sha256()
    tensors: dict[str, Tensor | None] = {"data": batch.data, "mask": batch.mask}
    for name, value in (tensors | {f"cond/{k}": v for k, v in (batch.cond or {}).items()}).items():
        if value is not None:
            content.update(f"{name}/{value.dtype}/{tuple(value.shape)}".encode())
            content.update(bytes_of(value))
    return content.hexdigest()[:16]


def plain(value: Any) -> Any:
    """``value`` for JSON: no tuples, and None for what is not finite."""
    if isinstance(value, dict):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Tally:
    """Progress over parts of unequal length.

    Args:
        whole: lengths of all parts together.
        report: called with the work done and the whole.
    """

    def __init__(self, whole: int, report: Progress | None) -> None:
        self.whole, self.done, self._report = whole, 0, report

    def inside(self, length: int) -> Progress:
        """For a part of ``length``: what is done of it and its own whole."""
        return lambda done, whole: self._say(self.done + length * done // max(1, whole))

    def finish(self, length: int) -> None:
        """A part is done."""
        self.done += length
        self._say(self.done)

    def _say(self, done: int) -> None:
        if self._report is not None:
            self._report(done, self.whole)
