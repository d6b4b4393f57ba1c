"""What a training step loses and takes."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.coupling import Coupling

TIMED_EVERY = 10


@dataclass
class Meter:
    """Loss and time since the last line of the log."""

    device: torch.device
    loss: list[Tensor] = field(default_factory=list)
    steps: int = 0
    pairing: float = 0.0
    began: float = field(default_factory=time.perf_counter)

    def clock(self) -> float:
        """Now, once the device has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def timed(self, coupling: Coupling) -> Coupling:
        """``coupling`` with its time taken; on a GPU at some steps only, as looking stalls it."""
        every = TIMED_EVERY if self.device.type == "cuda" else 1
        if self.steps % every:
            return coupling

        def paired(data: Tensor, **options: Any) -> Tensor:
            began = self.clock()
            noise = coupling(data, **options)
            self.pairing += every * (self.clock() - began)
            return noise

        return paired

    def mean_loss(self) -> Tensor:
        """Mean loss of this rank since the last record."""
        return torch.stack(self.loss).mean()

    def record(self) -> dict[str, float]:
        """What the steps since the last record took; starts anew."""
        now = self.clock()
        seconds = now - self.began
        record = {
            "seconds_per_step": seconds / self.steps,
            "pairing_ms": 1000 * self.pairing / self.steps,
            "pairing_share": self.pairing / seconds,
        }
        self.loss, self.steps, self.pairing, self.began = [], 0, 0.0, now
        return record
