"""What a coupling costs here: time and memory of a call, beside ``torch.randn``."""

import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from immiscible_diffusion.couplings.base import Coupling

ENOUGH_SECONDS, TOO_MANY_SECONDS = 0.15, 1.0
FEWEST, MOST = 3, 50


@dataclass(frozen=True)
class Expense:
    """Of one call, the least of some repeats.

    Attributes:
        rows: data in the batch.
        milliseconds: of the call.
        randn_milliseconds: of ``torch.randn`` of the same shape, by turns with the call.
        memory: most that torch held at a time, the noise included, in units of the data.
    """

    rows: int
    milliseconds: float
    randn_milliseconds: float
    memory: float

    @property
    def times_randn(self) -> float:
        """The call in units of ``torch.randn``."""
        return self.milliseconds / self.randn_milliseconds


def expense(coupling: Coupling, data: Tensor) -> Expense:
    """Time and memory of ``coupling(data)``, in some 0.2 s where a call is shorter than that.

    On a CPU by one thread: several that wait for one another on a busy machine tell nothing.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measured(coupling, data)
    finally:
        torch.set_num_threads(threads)


def _measured(coupling: Coupling, data: Tensor) -> Expense:
    memory = peak_bytes(lambda: coupling(data), data) / data.nbytes  # warms up, too
    torch.randn_like(data)
    ours: list[float] = []
    randn: list[float] = []
    began = time.perf_counter()
    while _goes_on(len(ours), time.perf_counter() - began):
        ours.append(_seconds(lambda: coupling(data), data.device))
        randn.append(_seconds(lambda: torch.randn_like(data), data.device))
    return Expense(len(data), 1e3 * min(ours), 1e3 * min(randn), memory)


def _goes_on(repeats: int, seconds: float) -> bool:
    if repeats < FEWEST:
        return seconds < TOO_MANY_SECONDS
    return repeats < MOST and seconds < ENOUGH_SECONDS


def _seconds(call: Callable[[], Tensor], device: torch.device) -> float:
    _wait(device)
    began = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def peak_bytes(call: Callable[[], Any], *given: Tensor) -> int:
    """Most bytes that tensors made in ``call`` held at a time, its result included.

    Views of the tensors ``given`` do not count.
    """
    with _Held(given) as held:
        result = call()
    del result
    return held.peak


class _Held(TorchDispatchMode):
    """Counts the storages that operations return, until they are freed."""

    def __init__(self, given: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in given}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # skipping it would import all of torch's compiler: seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs ``func`` and looks at what it returns."""
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        return out

    def _see(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size).atexit = False

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
