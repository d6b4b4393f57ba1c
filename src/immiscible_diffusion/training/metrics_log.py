"""What a training step loses and takes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.couplings import Coupling, draw

TIMED_EVERY = 10
TIME_BINS = 10


@dataclass
class StepMetrics:
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
        by_time: ``[2, TIME_BINS]`` on the device: sum and number of the losses by bin of t.
    """

    device: torch.device
    loss: list[Tensor] = field(default_factory=list)
    steps: int = 0
    waited: float = 0.0
    pairings: list[float | None] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)
    by_time: Tensor | None = None

    def add(self, losses: Tensor, t: Tensor) -> None:
        """The losses ``[B]`` of a micro-batch at times ``t`` ``[B]``; nothing waits for the device.

        As trained on: weighted by the path, of the raw weights while they change.
        """
        losses = losses.detach()
        self.loss.append(losses.mean())
        if self.by_time is None:
            self.by_time = torch.zeros(2, TIME_BINS, device=losses.device)
        bins = (t * TIME_BINS).long().clamp(0, TIME_BINS - 1)
        both = torch.stack([losses.float(), torch.ones_like(losses, dtype=torch.float32)])
        self.by_time.index_add_(1, bins, both)

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
        self.by_time = None
        return {
            "seconds_per_step": step,
            "pairing_ms": 1000 * pairing,
            "waiting_ms": 1000 * waited,
            "pairing_share": min(pairing, waited) / step,
        }

    def mean_loss(self) -> Tensor:
        """Mean loss of this rank since the last record."""
        return torch.stack(self.loss).mean()

    def sums_by_time(self) -> Tensor:
        """``by_time``, zeros before the first loss."""
        zeros = torch.zeros(2, TIME_BINS, device=self.device)
        return zeros if self.by_time is None else self.by_time


def loss_by_time(sums: Tensor) -> dict[str, Any]:
    """Mean loss by bin of t from its ``sums`` ``[2, TIME_BINS]`` over all ranks.

    ``time_bins`` are the edges; a bin holds the times from its lower edge up to its upper one, and
    the last bin t = 1 as well. None where no time fell.
    """
    totals, counts = sums.tolist()
    means = [s / n if n else None for s, n in zip(totals, counts, strict=True)]
    return {"loss_by_time": means, "time_bins": [i / TIME_BINS for i in range(TIME_BINS + 1)]}
