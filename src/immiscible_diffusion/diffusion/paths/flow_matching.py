"""Straight paths between data and noise."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from immiscible_diffusion.diffusion.paths.base import Path, PathSample, check_sample, per_row
from immiscible_diffusion.diffusion.paths.parametrization import Mixture, Prediction
from immiscible_diffusion.utils.checks import FiniteFloat, PositiveFloat, check_fields

TIMES = ("uniform", "logit_normal")


@dataclass(frozen=True)
class FlowMatchingPath(Path):
    """Straight paths: ``x_t = (1 - t) data + t noise``, target ``noise - data``.

    Flow matching, arXiv 2210.02747 / rectified flow, 2209.03003; most papers on it count time the other way round.

    Args:
        time: distribution of training times: ``uniform``, or ``logit_normal`` (2403.03206, eq. 19).
        mean: mean of the logit-normal's Gaussian; above 0 favors noise.
        std: standard deviation of the logit-normal's Gaussian.
        shift: ``t -> shift t / (1 + (shift - 1) t)`` after drawing (2403.03206, eq. 23); above 1 favors noise, as
            suits larger images. Of training times only.
        time_scale: the network sees ``time_scale * t``.
    """

    prediction: ClassVar[Prediction] = "velocity"

    time: Literal["uniform", "logit_normal"] = "uniform"
    mean: FiniteFloat = 0.0
    std: PositiveFloat = 1.0
    shift: PositiveFloat = 1.0
    time_scale: PositiveFloat = 1000.0

    def __post_init__(self) -> None:
        check_fields(self, "path.")

    def alpha(self, t: Tensor) -> Tensor:
        """``1 - t``."""
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        """``t``."""
        return t

    def sample(self, data: Tensor, noise: Tensor, t: Tensor) -> PathSample:
        """Mix ``data`` and ``noise`` ``[B, *shape]`` at ``t`` ``[B]`` in [0, 1]."""
        check_sample(data, noise, t)
        time = per_row(t, data)
        return PathSample(torch.lerp(data, noise, time), t, noise - data)

    def sample_time(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Times ``[count]`` in [0, 1], on the device of ``generator``."""
        device = generator.device if generator is not None else "cpu"
        if self.time == "uniform":
            t = torch.rand(count, device=device, generator=generator)
        else:
            normal = torch.randn(count, device=device, generator=generator)
            t = torch.sigmoid(self.mean + self.std * normal)
        return self.shift * t / (1 + (self.shift - 1) * t)

    def network_time(self, t: Tensor) -> Tensor:
        """``time_scale * t``."""
        return self.time_scale * t

    def from_network_time(self, network_time: Tensor) -> Tensor:
        """The inverse of ``network_time``."""
        return network_time / self.time_scale

    def mixture(self, t: Tensor, like: Tensor) -> Mixture:
        """Coefficients at ``t`` ``[B]``, to broadcast over ``like`` ``[B, *shape]``."""
        time = per_row(t, like)
        return Mixture(1 - time, time, -torch.ones_like(time), torch.ones_like(time))
