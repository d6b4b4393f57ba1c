"""Loss and time of training steps between two lines of the log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

TIME_BINS = 10
WAITING_SHARE = 0.1  # of a step, from which on it is said that it waits for loading


@dataclass
class StepMetrics:
    """Loss and time since the last line of the log, on the ``device`` that trains.

    Attributes:
        losses: mean loss of every micro-batch.
        by_time: ``[2, TIME_BINS]`` on the device: sum and number of the losses by bin of t.
        steps: optimizer steps.
        waited: seconds that steps stood still for their data and noise, by the clock of the host.
        pairing: seconds of pairing a micro-batch; None for those not timed.
        loading: seconds that all micro-batches took to be loaded.
        began: when, by ``time.perf_counter``.
    """

    device: torch.device
    losses: list[Tensor] = field(default_factory=list)
    by_time: Tensor = field(init=False)
    steps: int = 0
    waited: float = 0.0
    pairing: list[float | None] = field(default_factory=list)
    loading: float = 0.0
    began: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.by_time = torch.zeros(2, TIME_BINS, device=self.device)

    def add(
        self, losses: Tensor, t: Tensor, pairing_seconds: float | None = None, loading_seconds: float = 0.0
    ) -> None:
        """Add the losses ``[B]`` of a micro-batch at times ``t`` ``[B]``; waits for no device."""
        losses = losses.detach()
        self.losses.append(losses.mean())
        self.pairing.append(pairing_seconds)
        self.loading += loading_seconds
        bins = (t * TIME_BINS).long().clamp(0, TIME_BINS - 1)
        both = torch.stack([losses.float(), torch.ones_like(losses, dtype=torch.float32)])
        self.by_time.index_add_(1, bins, both)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time within as waiting."""
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    def times(self) -> dict[str, float]:
        """Return what a step took: ``seconds_per_step``, ``pairing_ms``, ``waiting_ms``, ``pairing_share``.

        The share is how much of a step pairing may have added: no more than it took, and no more than the step waited;
        ``loading_ms`` and ``loading_share`` say the same of loading. With ``batches_per_second``, micro-batches of
        this process, and ``batches_needed_per_second``, what the step would take if loading took no time.
        """
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        step = (time.perf_counter() - self.began) / self.steps
        waited = self.waited / self.steps
        timed = [seconds for seconds in self.pairing if seconds is not None]
        pairing = sum(timed) / len(timed) * len(self.pairing) / self.steps if timed else 0.0
        loading = self.loading / self.steps
        rate, loading_share = len(self.pairing) / self.steps / step, min(loading, waited) / step
        return {
            "seconds_per_step": step,
            "pairing_ms": 1000 * pairing,
            "waiting_ms": 1000 * waited,
            "pairing_share": min(pairing, waited) / step,
            "loading_ms": 1000 * loading,
            "loading_share": loading_share,
            "batches_per_second": rate,
            "batches_needed_per_second": rate / (1 - loading_share),
        }


def bottleneck(times: dict[str, float]) -> str:
    """Say how far loading is behind, by the ``times`` of a step, if steps wait for it; else nothing."""
    if times["loading_share"] < WAITING_SHARE:
        return ""
    made, needed = times["batches_per_second"], times["batches_needed_per_second"]
    return f"loading is the bottleneck: {made:.1f} of {needed:.1f} batches a second"


def loss_by_time(sums: Tensor) -> dict[str, Any]:
    """Return the mean loss by bin of t from its ``sums`` ``[2, TIME_BINS]`` over all ranks.

    ``time_bins`` are the edges; a bin holds the times from its lower edge up to its upper one, and the last bin t = 1
    as well. None where no time fell.
    """
    totals, counts = sums.tolist()
    means = [s / n if n else None for s, n in zip(totals, counts, strict=True)]
    return {"loss_by_time": means, "time_bins": [i / TIME_BINS for i in range(TIME_BINS + 1)]}
