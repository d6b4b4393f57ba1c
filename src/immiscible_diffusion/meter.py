"""What a training step loses and takes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from immiscible_diffusion.coupling import Coupling, draw

TIMED_EVERY = 10


@dataclass
class Meter:
    """Loss and time since the last line of the log.

    Pairing is timed where it is done, in the thread that prefetches or in the step; waiting is the
    time that the step stood still for its data and noise, by the clock of the host.

    Attributes:
        device: that trains.
        loss: of every micro-batch.
        steps: done.
        waited: seconds.
        pairings: seconds of every call of the coupling; None for those not timed.
        began: when, by ``clock``.
    """

    device: torch.device
    loss: list[Tensor] = field(default_factory=list)
    steps: int = 0
    waited: float = 0.0
    pairings: list[float | None] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)

    def clock(self) -> float:
        """Now, once the device has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self.stream_clock()

    def stream_clock(self) -> float:
        """Now, once the device has done what it was told by this thread."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        elif self.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time within as waiting."""
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    def record(self) -> dict[str, float]:
        """What the steps since the last record took; starts anew.

        ``pairing_share`` is how much of the step pairing may have added: no more than it took, and
        no more than the step waited.
        """
        now = self.clock()
        step, waited = (now - self.began) / self.steps, self.waited / self.steps
        calls, self.pairings = self.pairings, []  # the thread goes on writing
        timed = [seconds for seconds in calls if seconds is not None]
        pairing = sum(timed) / len(timed) * len(calls) / self.steps if timed else 0.0
        self.loss, self.steps, self.waited, self.began = [], 0, 0.0, now
        return {
            "seconds_per_step": step,
            "pairing_ms": 1000 * pairing,
            "waiting_ms": 1000 * waited,
            "pairing_share": min(pairing, waited) / step,
        }

    def mean_loss(self) -> Tensor:
        """Mean loss of this rank since the last record."""
        return torch.stack(self.loss).mean()


@dataclass(frozen=True)
class Timed:
    """``coupling`` with its time taken; on a GPU at some calls only, as looking stalls it."""

    coupling: Coupling
    meter: Meter

    def __call__(
        self,
        data: Tensor,
        *,
        cond: dict[str, Tensor] | None = None,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """As ``coupling``."""
        meter = self.meter
        looks = meter.device.type == "cpu" or len(meter.pairings) % TIMED_EVERY == 0
        began = meter.stream_clock() if looks else 0.0
        noise = draw(self.coupling, data, cond=cond, mask=mask, generator=generator)
        meter.pairings.append(meter.stream_clock() - began if looks else None)
        return noise
