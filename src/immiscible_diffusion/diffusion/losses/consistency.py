"""Consistency training: the network says the same at two noise levels of one sample and noise."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from immiscible_diffusion.diffusion.paths import Cond, EDMPath, Model, Path


@dataclass(frozen=True)
class ConsistencyLoss:
    """Consistency training without a teacher of its own (ECT, 2406.14548).

    The path is sampled twice, at sigma and at an earlier ``r < sigma``, with the same paired noise
    and the same dropout; what the network says at ``r``, without gradient, is the target at
    ``sigma``. ``r / sigma`` rises in stages to 1; while it is 0 this is denoising (of the distance,
    not its square as in EDM). The pseudo-Huber loss is iCT's (2310.14189); its grid of noise levels
    is not built.

    Args:
        base: q of ECT: in stage n the gap ``(sigma - r) / sigma`` is about ``base^-(n + 1)``.
        stages: of equal length.
        denoise: share of training, at its beginning, with ``r`` at ``sigma_min``: denoising.
        widen: k of ECT: how much wider the gap is at small sigma.
        huber: c of the pseudo-Huber loss in units of ``sqrt(D)`` (iCT: 0.00054); 0 is the distance.
        weighting: ``gap``: ``1 / (sigma - r)`` (ECT on CIFAR-10, iCT); ``edm``: ``1 / sigma^2 +
            1 / sigma_data^2`` (ECT on ImageNet).
        share: of training that is over; the trainer sets it.
    """

    base: float = 2.0
    stages: int = 8
    denoise: float = 0.0
    widen: float = 8.0
    huber: float = 0.00054
    weighting: Literal["edm", "gap"] = "edm"
    share: float = 0.0

    def __post_init__(self) -> None:
        if not self.base > 1 or self.stages < 1 or self.widen < 0 or self.huber < 0:
            raise ValueError(
                f"expected base > 1, stages >= 1, widen >= 0 and huber >= 0, got {self.base}, "
                f"{self.stages}, {self.widen} and {self.huber}"
            )
        if not 0 <= self.denoise < 1 or not 0 <= self.share <= 1:
            raise ValueError(
                f"denoise must be from 0 to below 1 and share from 0 to 1, got {self.denoise} and "
                f"{self.share}"
            )
        if self.weighting not in ("edm", "gap"):
            raise ValueError(f"weighting must be edm or gap, got {self.weighting!r}")

    def at(self, share: float) -> "ConsistencyLoss":
        """As it is after that share of training."""
        return dataclasses.replace(self, share=min(1.0, share))

    @property
    def stage(self) -> int | None:
        """Of the curriculum, from 0; None while denoising."""
        if self.share < self.denoise:
            return None
        within = (self.share - self.denoise) / (1 - self.denoise)
        return min(self.stages - 1, int(within * self.stages))

    def earlier(self, sigma: Tensor, sigma_min: float) -> Tensor:
        """``r`` for ``sigma`` ``[B]``: at least ``sigma_min``, below ``sigma`` (ECT, eq. 21)."""
        if self.stage is None:
            return torch.full_like(sigma, sigma_min)
        gap = (1 + self.widen * torch.sigmoid(-sigma)) / self.base ** (self.stage + 1)
        return (sigma * (1 - gap)).clamp_min(sigma_min)

    def __call__(
        self,
        model: Model,
        path: Path,
        data: Tensor,
        noise: Tensor,
        t: Tensor,
        cond: Cond | None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Loss ``[B]``; ValueError for another path than EDMPath.

        ``model`` must be the identity at ``sigma_min`` (``Preconditioned(..., sigma_min)``).
        """
        if not isinstance(path, EDMPath):
            raise ValueError(f"consistency training needs a EDMPath, got {type(path).__name__}")
        sigma = path.sigma(t)
        before = self.earlier(sigma, path.sigma_min)
        earlier = path.time_of(before)
        again = _dropout_repeater(data.device)
        said = model(path.sample(data, noise, t).x_t, path.network_time(t), cond)
        again()
        with torch.no_grad():
            point = path.sample(data, noise, earlier)
            wanted = model(point.x_t, path.network_time(earlier), cond)
        error = (said.float() - wanted.float()).square()
        if mask is not None:
            error = error.masked_fill(~mask.expand_as(error), 0)
        distance = error.flatten(1).sum(dim=1)
        size = self.huber * math.sqrt(data[0].numel())
        # The root has no slope at 0, where the two agree.
        loss = (distance + size**2 + 1e-12).sqrt() - size
        return self._weight(path, sigma, before) * loss

    def _weight(self, path: EDMPath, sigma: Tensor, before: Tensor) -> Tensor:
        if self.weighting == "gap":
            return 1 / (sigma - before).clamp_min(1e-6)
        return 1 / sigma.square() + 1 / path.sigma_data**2


def _dropout_repeater(device: torch.device) -> Callable[[], None]:
    """What puts the random state back to where it is now, so that dropout repeats itself."""
    host = torch.get_rng_state()
    there = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    on_mps = torch.mps.get_rng_state() if device.type == "mps" else None

    def again() -> None:
        torch.set_rng_state(host)
        if there is not None:
            torch.cuda.set_rng_state(there, device)
        if on_mps is not None:
            torch.mps.set_rng_state(on_mps)

    return again
