"""Variance-exploding paths and the preconditioning of EDM."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from immiscible_diffusion.diffusion.paths.base import Path, PathSample, check_sample, per_row
from immiscible_diffusion.diffusion.paths.parametrization import Mixture, Prediction
from immiscible_diffusion.utils.checks import FiniteFloat, PositiveFloat, check_fields


@dataclass(frozen=True)
class EDMPath(Path):
    """``x_t = data + sigma(t) noise``; the network, preconditioned, predicts the data.

    EDM (2206.00364). ``sigma`` rises with t from ``sigma_min`` to ``sigma_max`` (eq. 5). Wrap the network in
    ``Preconditioned``.

    Args:
        sigma_min: noise level at t = 0.
        sigma_max: noise level at t = 1.
        rho: ``sigma^(1 / rho)`` is linear in t.
        sigma_data: standard deviation of the data; weights take it as given here, whatever a network measures.
        time: distribution of training times: ``lognormal`` (log sigma is Gaussian), or ``discrete``: the upper ends of
            ``levels - 1`` equal steps of t, each with the Gaussian's probability of the step (iCT, 2310.14189, eq. 10:
            the student's level).
        mean: mean of log sigma; -1.2 in EDM, -1.1 in iCT.
        std: standard deviation of log sigma; 1.2 in EDM, 2.0 in iCT.
        levels: noise levels of ``discrete``, ``sigma_min`` and ``sigma_max`` among them.
    """

    prediction: ClassVar[Prediction] = "data"

    sigma_min: PositiveFloat = 0.002
    sigma_max: PositiveFloat = 80.0
    rho: PositiveFloat = 7.0
    sigma_data: PositiveFloat = 0.5
    time: Literal["lognormal", "discrete"] = "lognormal"
    mean: FiniteFloat = -1.2
    std: PositiveFloat = 1.2
    levels: Annotated[int, ">= 2"] = 1280

    def __post_init__(self) -> None:
        check_fields(self, "path.")
        if not self.sigma_max > self.sigma_min:
            raise ValueError(f"path.sigma_max must be > {self.sigma_min}, path.sigma_min, got {self.sigma_max}")

    def alpha(self, t: Tensor) -> Tensor:
        """One at every ``t``."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """``sigma_min`` at 0, ``sigma_max`` at 1."""
        low, high = self._roots
        return (low + t * (high - low)) ** self.rho

    def time_of(self, sigma: Tensor) -> Tensor:
        """The ``t`` in [0, 1] of ``sigma``; beyond the ends, the ends."""
        low, high = self._roots
        return ((sigma ** (1 / self.rho) - low) / (high - low)).clamp(0, 1)

    def sample(self, data: Tensor, noise: Tensor, t: Tensor) -> PathSample:
        """Add ``noise`` ``[B, *shape]`` to ``data`` at ``t`` ``[B]`` in [0, 1]."""
        check_sample(data, noise, t)
        return PathSample(data + per_row(self.sigma(t), data) * noise, t, data)

    def sample_time(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Times ``[count]`` in [0, 1], on the device of ``generator``."""
        device = generator.device if generator is not None else torch.device("cpu")
        if self.time == "lognormal":
            normal = torch.randn(count, device=device, generator=generator)
            return self.time_of((self.mean + self.std * normal).exp())
        grid = torch.linspace(0, 1, self.levels, device=device)
        edges = (self.sigma(grid).log() - self.mean) / (self.std * math.sqrt(2))
        probability = edges.erf().diff()
        step = torch.multinomial(probability, count, replacement=True, generator=generator)
        return grid[step + 1]

    def weight(self, t: Tensor) -> Tensor:
        """``(sigma^2 + sigma_data^2) / (sigma sigma_data)^2``: weight 1 for the bare network."""
        sigma, sigma_data = self.sigma(t).square(), self.sigma_data**2
        return (sigma + sigma_data) / (sigma * sigma_data)

    def network_time(self, t: Tensor) -> Tensor:
        """``log(sigma) / 4``, EDM's ``c_noise``."""
        return self.sigma(t).log() / 4

    def from_network_time(self, network_time: Tensor) -> Tensor:
        """The inverse of ``network_time``."""
        return self.time_of((4 * network_time).exp())

    def mixture(self, t: Tensor, like: Tensor) -> Mixture:
        """Coefficients at ``t`` ``[B]``, to broadcast over ``like`` ``[B, *shape]``."""
        low, high = self._roots
        rise = self.rho * (high - low) * (low + t * (high - low)) ** (self.rho - 1)
        sigma, slope = per_row(self.sigma(t), like), per_row(rise, like)
        return Mixture(torch.ones_like(sigma), sigma, torch.zeros_like(slope), slope)

    @property
    def _roots(self) -> tuple[float, float]:
        return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
