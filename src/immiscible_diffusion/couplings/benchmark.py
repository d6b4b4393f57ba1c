"""Time and memory of a coupling's call here, beside ``torch.randn``."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from immiscible_diffusion.couplings.base import Coupling


@dataclass(frozen=True)
class CallCost:
    """Time and memory of one call, the least of some repeats.

    Attributes:
        rows: data in the batch.
        milliseconds: time of the call.
        randn_milliseconds: time of ``torch.randn`` of the same shape.
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


def measure_cost(coupling: Coupling, data: Tensor) -> CallCost:
    """Time and memory of ``coupling(data)``, in some 0.2 s where a call is shorter than that.

    On a CPU by one thread: the time of several that wait for one another on a busy machine means nothing.
    """
    from torch.utils.benchmark import Timer

    memory = peak_bytes(lambda: coupling(data), data) / data.nbytes  # warms up, too
    times = [
        Timer("f(data)", globals={"f": f, "data": data}).blocked_autorange(min_run_time=0.1).times
        for f in (coupling, torch.randn_like)
    ]
    return CallCost(len(data), 1e3 * min(times[0]), 1e3 * min(times[1]), memory)


def peak_bytes(call: Callable[[], Any], *inputs: Tensor) -> int:
    """Most bytes that tensors made in ``call`` held at a time, its result included.

    Views of the ``inputs`` do not count.
    """
    with _HeldBytes(inputs) as held:
        result = call()
    del result
    return held.peak


class _HeldBytes(TorchDispatchMode):
    """Counts the storages that operations return, until they are freed."""

    def __init__(self, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in inputs}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # skipping it would import all of torch's compiler: seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func`` and count the storages it returns."""
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self._known:
                    self._known.add(key)
                    self.now += size
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._forget, key, size).atexit = False
        return out

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
