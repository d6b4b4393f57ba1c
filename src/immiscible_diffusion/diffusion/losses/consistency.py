"""Consistency training: the network predicts the same sample at two noise levels."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from immiscible_diffusion.diffusion.losses.base import Loss
from immiscible_diffusion.diffusion.paths import Cond, EDMPath, Model, Path
from immiscible_diffusion.diffusion.samplers import SamplerConfig
from immiscible_diffusion.utils.checks import NonNegativeFloat, PositiveInt, Probability, check_fields


@dataclass(frozen=True)
class ConsistencyLoss(Loss):
    """``weight * d(model(x + sigma n, sigma), stop_gradient(model(x + r n, r)))``, ``r < sigma``.

    Consistency training without a pretrained teacher (ECT, 2406.14548). Both points have the same sample, the same
    paired noise and the same dropout. ``r / sigma`` rises in stages to 1; while it is 0 this is denoising (with the
    distance, not its square as in EDM). ``d`` is the pseudo-Huber distance of iCT (2310.14189); iCT's grid of noise
    levels is not built.

    Args:
        q: base of the gap: in stage n ``(sigma - r) / sigma`` is about ``q^-(n + 1)``.
        num_stages: number of stages, of equal length.
        pretrain_fraction: part of training, at its beginning, with ``r = sigma_min``: denoising.
        k: how much wider the gap is at small sigma.
        huber: c of the pseudo-Huber distance in units of ``sqrt(D)`` (iCT: 0.00054); 0 is the Euclidean distance.
        weighting: ``gap``: ``1 / (sigma - r)`` (ECT on CIFAR-10, iCT); ``edm``: ``1 / sigma^2 + 1 / sigma_data^2``
            (ECT on ImageNet).
    """

    has_curriculum: ClassVar[bool] = True

    q: Annotated[float, "> 1"] = 2.0
    num_stages: PositiveInt = 8
    pretrain_fraction: Probability = 0.0
    k: NonNegativeFloat = 8.0
    huber: NonNegativeFloat = 0.00054
    weighting: Literal["edm", "gap"] = "edm"

    def __post_init__(self) -> None:
        check_fields(self, "loss.")

    def identity_sigma(self, path: EDMPath) -> float:
        """``sigma_min``: there a consistency model returns its input."""
        return path.sigma_min

    def check(self, path: Path, sampler: SamplerConfig) -> None:
        """Raise ValueError unless the path is an EDMPath and sampling that of consistency models.

        The noise levels of training must be continuous, as in ECT.
        """
        if not isinstance(path, EDMPath):
            raise ValueError(f"ConsistencyLoss needs an EDMPath, got {type(path).__name__}")
        if sampler.method != "consistency":
            raise ValueError(f"ConsistencyLoss needs sampler.method consistency, got {sampler.method}")
        if path.time == "discrete":
            raise ValueError(
                "ConsistencyLoss needs continuous noise levels (ECT), and path.time discrete is "
                "iCT's grid; use path.time lognormal"
            )

    def stage(self, progress: float) -> int | None:
        """Stage of the curriculum, from 0; None during the denoising at its beginning."""
        if progress < self.pretrain_fraction:
            return None
        within = (progress - self.pretrain_fraction) / (1 - self.pretrain_fraction)
        return min(self.num_stages - 1, int(within * self.num_stages))

    def earlier_sigma(self, sigma: Tensor, sigma_min: float, progress: float) -> Tensor:
        """``r`` for ``sigma`` ``[B]``: at least ``sigma_min``, below ``sigma`` (ECT, eq. 21)."""
        stage = self.stage(progress)
        if stage is None:
            return torch.full_like(sigma, sigma_min)
        gap = (1 + self.k * torch.sigmoid(-sigma)) / self.q ** (stage + 1)
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
        *,
        progress: float = 1.0,
    ) -> Tensor:
        """Loss ``[B]``; ``model`` must be the identity at ``sigma_min`` (``Preconditioned``)."""
        if not isinstance(path, EDMPath):
            raise ValueError(f"ConsistencyLoss needs an EDMPath, got {type(path).__name__}")
        sigma = path.sigma(t)
        r = self.earlier_sigma(sigma, path.sigma_min, progress)
        t_earlier = path.time_of(r)
        x_t, x_r = (path.sample(data, noise, time).x_t for time in (t, t_earlier))
        with _restored_random_state(data.device):
            prediction = model(x_t, path.network_time(t), cond)
        with torch.no_grad():
            target = model(x_r, path.network_time(t_earlier), cond)
        error = (prediction.float() - target.float()).square()
        if mask is not None:
            error = error.masked_fill(~mask.expand_as(error), 0)
        c = self.huber * math.sqrt(data[0].numel())
        # 1e-12: the root has no derivative at 0, where the two predictions agree.
        distance = (error.flatten(1).sum(dim=1) + c**2 + 1e-12).sqrt() - c
        if self.weighting == "gap":
            return 1 / (sigma - r).clamp_min(1e-6) * distance
        return (1 / sigma.square() + 1 / path.sigma_data**2) * distance


@contextmanager
def _restored_random_state(device: torch.device) -> Iterator[None]:
    """Restore it at the end, so that the same dropout is drawn once more."""
    mps = torch.mps.get_rng_state() if device.type == "mps" else None
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
    if mps is not None:
        torch.mps.set_rng_state(mps)
