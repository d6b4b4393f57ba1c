"""What an object is made of, as a hash: two couplings that print alike need not be alike."""

import dataclasses
import enum
import functools
import hashlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PLAIN = (str, bytes, int, float, complex, type(None), np.generic, enum.Enum)
NAMED = (os.PathLike, torch.dtype, torch.device)


def content_of(value: Any) -> str:
    """Hash of the tensors, arrays and plain values that ``value`` holds, however deep.

    Functions and classes count by their names; what code they are is for ``lineup.code_of``.
    """
    content = hashlib.sha256()
    for part in _parts(value, set()):
        content.update(part)
        content.update(b"/")
    return content.hexdigest()[:16]


def bytes_of(value: Tensor) -> memoryview:
    """The content of a tensor of any dtype, bfloat16 among them, which numpy does not have."""
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _parts(value: Any, seen: set[int]) -> Iterator[bytes | memoryview]:
    if isinstance(value, (PLAIN, NAMED)):
        yield f"{type(value).__name__} {value!r}".encode()
        return
    name = getattr(value, "__qualname__", None)
    yield f"{type(value).__module__}.{type(value).__qualname__} {name or ''}".encode()
    if isinstance(value, Tensor):
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        yield bytes_of(value)
        return
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        yield f"{value.dtype} {value.shape}".encode()
        yield value.tobytes()
        return
    if name is not None or id(value) in seen:  # a function or a class; or a circle
        return
    seen.add(id(value))
    for key, inside in _held(value):
        yield str(key).encode()
        yield from _parts(inside, seen)


def _held(value: Any) -> Iterator[tuple[Any, Any]]:
    """What ``value`` holds, by name."""
    if isinstance(value, nn.Module):
        yield from value.state_dict().items()
        yield from ((name, own) for name, own in vars(value).items() if not name.startswith("_"))
    elif isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, list | tuple | np.ndarray):
        yield from enumerate(value)
    elif isinstance(value, set | frozenset):
        yield from enumerate(sorted(value, key=repr))
    elif isinstance(value, torch.Generator):
        yield "state", value.get_state()
    elif dataclasses.is_dataclass(value):
        yield from ((f.name, getattr(value, f.name, None)) for f in dataclasses.fields(value))
    else:
        yield from _attributes(value)


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """Without what was worked out from the others and kept."""
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    names = [*getattr(value, "__dict__", {}), *slots]
    for name in names:
        made = isinstance(getattr(type(value), name, None), functools.cached_property)
        if not made and hasattr(value, name):
            yield name, getattr(value, name)
