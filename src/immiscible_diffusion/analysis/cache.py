"""Finished parts of an analysis on disk, so that an interrupted one resumes where it was."""

import enum
import functools
import hashlib
import inspect
import json
import os
import re
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from immiscible_diffusion.couplings import Coupling
from immiscible_diffusion.reporting.analysis.records import SCHEMA
from immiscible_diffusion.utils.atomic_files import read_record, write_record
from immiscible_diffusion.utils.serialization import from_dict, to_dict

MEASURES = 2  # to be raised when what is measured changes, within a version of the package
PLAIN = (str, bytes, int, float, complex, type(None), np.generic, enum.Enum, os.PathLike)
T = TypeVar("T")


class PlanRecord(NamedTuple):
    """plan.json."""

    data: dict[str, str]
    settings: dict[str, Any]
    couplings: tuple[str, ...]


class PartRecord(NamedTuple):
    """A file of parts/."""

    key: str
    seconds: float
    value: Any


@dataclass(frozen=True)
class Cache:
    """The folder of an analysis: plan.json and parts/.

    A part is reused only where its key is the same: version of the package, schema, data, settings,
    and the content of the coupling.
    """

    folder: Path | None  # None keeps nothing
    data: dict[str, str]  # name and digest of what is analyzed
    settings: dict[str, Any]  # how, as JSON values

    def planned(self) -> list[str]:
        """Names of the couplings of plan.json.

        Raises:
            ValueError: the folder holds an analysis of other data or settings.
        """
        if self.folder is None or not (self.folder / "plan.json").exists():
            return []
        path = self.folder / "plan.json"
        plan: PlanRecord = from_dict(PlanRecord, read_record(path), str(path))
        old, new = plan.settings, json.loads(json.dumps(self.settings))
        pairs = {name: (old.get(name), new.get(name)) for name in new | old}
        changed = [f"{name}: {a} -> {b}" for name, (a, b) in pairs.items() if a != b]
        if plan.data.get("digest") != self.data["digest"]:
            changed.insert(0, f"other data than the {plan.data.get('name')} there")
        if changed:
            reason = f"holds another analysis ({'; '.join(changed)}); choose another folder (--out)"
            raise ValueError(f"{self.folder} {reason}")
        return list(plan.couplings)

    def write_plan(self, couplings: Sequence[str]) -> None:
        """Write plan.json; ValueError if the folder cannot be written."""
        if self.folder is None:
            return
        plan = PlanRecord(self.data, self.settings, tuple(couplings))
        try:
            write_record(self.folder / "plan.json", plan._asdict())
        except OSError as error:
            raise ValueError(f"cannot write to {self.folder}: {error}") from error

    def part(
        self,
        coupling: str,
        name: str,
        content: str,
        kind: Any,
        make: Callable[[], T],
        usable: Callable[[T], bool] = lambda value: True,
    ) -> tuple[T, float]:
        """The part ``name`` of ``coupling`` and the seconds it took: read, or made now.

        Args:
            coupling: its name.
            name: of the part.
            content: hash of the coupling (``content_of_coupling``).
            kind: class of the part, for ``from_dict``.
            make: makes it.
            usable: whether a part that was read still is.
        """
        release = [MEASURES, SCHEMA, version("immiscible-diffusion")]
        key = digest(release, self.data["digest"], self.settings, coupling, name, content)
        path = self.folder and self.folder / "parts" / f"{slug(coupling)}-{name}.json"
        if path and path.exists():
            reason = f"{path} is of another version or coupling, or its images are gone"
            try:
                part: PartRecord = from_dict(PartRecord, read_record(path), str(path))
                if part.key == key:
                    value: T = from_dict(kind, part.value, str(path))
                    if usable(value):
                        return value, part.seconds
            except ValueError as error:
                reason = str(error)
            warnings.warn(f"{reason}: measured again", stacklevel=2)
        start = time.monotonic()
        value = make()
        seconds = round(time.monotonic() - start, 3)
        if path:
            write_record(path, PartRecord(key, seconds, to_dict(value, kinds=False))._asdict())
        return value, seconds


def content_of_coupling(coupling: Coupling, *, by_name: bool) -> str:
    """Hash of what ``coupling`` is besides its name; empty of our own built by name.

    It covers what an object holds (moments among it), and the source of a user's class or function.
    """
    inner: Any = coupling
    while _is_own(inner) and (hasattr(inner, "coupling") or hasattr(inner, "function")):
        inner = getattr(inner, "coupling", None) or inner.function
    if _is_own(inner):
        return "" if by_name else content_of(coupling)
    try:
        kind = inner if inspect.isroutine(inner) else type(inner)
        source = inspect.getsource(inspect.getmodule(kind) or kind)
    except (OSError, TypeError):  # defined in a console
        source = ""
    return digest(source, content_of(inner if by_name else coupling))


def _is_own(coupling: Any) -> bool:
    return type(coupling).__module__.startswith("immiscible_diffusion.")


def content_of(value: Any) -> str:
    """Hash of the tensors, arrays and plain values that ``value`` holds, however deep.

    Functions and classes count by their names; cached properties do not count.
    """
    return digest(_plain(value, frozenset()))


def _plain(value: Any, outer: frozenset[int]) -> Any:
    """``value`` as JSON values, with hashes for tensors; ``outer`` are the objects around it."""
    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(value, (*PLAIN, torch.dtype, torch.device)):
        return name, repr(value)
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return name, str(value.dtype), value.shape, hashlib.sha256(value.tobytes()).hexdigest()
    if isinstance(value, Tensor):
        content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
        return name, str(value.dtype), tuple(value.shape), hashlib.sha256(content).hexdigest()
    if hasattr(value, "__qualname__") or id(value) in outer:  # a function or a class; a circle
        return name, getattr(value, "__qualname__", "")
    outer |= {id(value)}
    return name, [(str(key), _plain(item, outer)) for key, item in _items(value)]


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    """What ``value`` holds, by name."""
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, list | tuple | np.ndarray):
        return enumerate(value)
    if isinstance(value, set | frozenset):
        return enumerate(sorted(value, key=repr))
    if isinstance(value, torch.Generator):
        return [("state", value.get_state())]
    kind = type(value)
    slots = (name for base in kind.__mro__ for name in getattr(base, "__slots__", ()))
    fields = [
        (name, getattr(value, name))
        for name in (*getattr(value, "__dict__", {}), *slots)
        if hasattr(value, name) and not isinstance(getattr(kind, name, None), functools.cached_property)
    ]
    if isinstance(value, nn.Module):
        public = ((name, item) for name, item in fields if not name.startswith("_"))
        return [*value.state_dict().items(), *public]
    return fields


def digest(*parts: Any) -> str:
    """Hash of JSON values."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def slug(name: str) -> str:
    """``name`` as part of a file name, with a hash that keeps similar names apart."""
    short = re.sub(r"[^A-Za-z0-9.=,+-]+", "-", name).strip("-.")[:60]
    return f"{short}-{digest(name)[:6]}"
