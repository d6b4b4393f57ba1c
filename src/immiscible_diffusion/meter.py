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
    timed_steps: int = 0
    began: float = field(default_factory=time.perf_counter)

    def clock(self) -> float:
        """Now, once the device has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()

    def timed(self, coupling: Coupling) -> Coupling:
        """``coupling`` with its time taken; on a GPU at some steps only, as looking stalls it."""
        if self.device.type != "cpu" and self.steps % TIMED_EVERY:
            return coupling
        self.timed_steps += 1

        def paired(data: Tensor, **options: Any) -> Tensor:
            began = self.clock()
            noise = coupling(data, **options)
            self.pairing += self.clock() - began
            return noise

        return paired

    def mean_loss(self) -> Tensor:
        """Mean loss of this rank since the last record."""
        return torch.stack(self.loss).mean()

    def record(self) -> dict[str, float]:
        """What the steps since the last record took; starts anew."""
        now = self.clock()
        step = (now - self.began) / self.steps
        pairing = self.pairing / self.timed_steps
        record = {
            "seconds_per_step": step,
            "pairing_ms": 1000 * pairing,
            "pairing_share": pairing / step,
        }
        self.loss, self.steps, self.pairing, self.timed_steps, self.began = [], 0, 0.0, 0, now
        return record
