"""Gaussian transport: entropic optimal transport between the data's Gaussian and N(0, I)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.couplings._validation import (
    check_fitted,
    check_rows_finite,
    product,
    to_float64,
    working_dtype,
)
from immiscible_diffusion.couplings.base import Cond, Coupling, Mask, Noise, Rng, start_noise
from immiscible_diffusion.couplings.moments import Moments


@dataclass(frozen=True)
class GaussianOT(Coupling):
    """Noise correlated with its sample along the leading directions of the data.

    The entropic plan between N(mean, Sigma) and N(0, I) for the cost ``|x - n|^2 + eps KL`` is diagonal in the
    principal directions: with ``s`` the standard deviation along one and ``w = <x - mean, v> / s``,
    ``<n, v> = rho w + sqrt(1 - rho^2) e``, ``e ~ N(0, 1)``, ``rho = 4 s / (sqrt(eps^2 + 16 s^2) + eps)``. Every sample
    is paired by itself, so batch size 1 will do. Mean and covariance of the noise over the data set are those of
    N(0, I); higher moments are those of the data where rho is near 1 (``kurtosis``), so small ``eps`` distorts.

    Args:
        moments: of the data, with directions.
        eps: > 0, in units of squared distance; large = independent noise, small = deterministic.
        rank: how many of the leading directions; all that ``moments`` hold by default.
    """

    moments: Moments
    eps: float = 4.0
    rank: int | None = None

    name = "gaussian_ot"
    takes_mask = False  # its directions are of complete samples

    def __post_init__(self) -> None:
        if self.moments.directions is None or self.moments.spectrum is None:
            raise ValueError("GaussianOT needs Moments.fit with directions and spectrum")
        if isinstance(self.eps, bool) or not isinstance(self.eps, (int, float)):
            raise ValueError(f"eps must be a number above 0, got {self.eps!r}")
        if not 0 < self.eps < float("inf"):
            raise ValueError(f"eps must be above 0 (large = independent noise), got {self.eps}")
        known = len(self.moments.directions)
        if self.rank is not None and not (type(self.rank) is int and 1 <= self.rank <= known):
            raise ValueError(f"rank must be 1 to {known}, the known directions, got {self.rank!r}")

    def choose(self, data: Tensor, noise: Noise, cond: Cond, mask: Mask, generator: Rng) -> Tensor:
        """``n + sum_v (rho w + (sqrt(1 - rho^2) - 1) <n, v>) v`` for noise n ``[B, *shape]``."""
        dtype = working_dtype(data.dtype)
        fresh = start_noise(data, noise, generator).flatten(1).to(dtype)
        offset, basis = self._offset_and_basis(data, dtype)
        check_rows_finite(offset)
        check_rows_finite(fresh, what="noise")
        along, own = product(offset, basis.T), product(fresh, basis.T)
        gain, rho = (x.to(data.device, dtype) for x in (self.gain, self.correlation))
        change = gain * along + ((1 - rho.square()).clamp_min(0).sqrt() - 1) * own
        moved = torch.addmm(fresh, change, basis, out=torch.empty_like(fresh))
        return moved.view(data.shape).to(data.dtype)

    @property
    def gain(self) -> Tensor:
        """``[r]``: rho / s; finite where the data have no spread."""
        return 4 / ((self.eps**2 + 16 * self._spread().square()).sqrt() + self.eps)

    @property
    def correlation(self) -> Tensor:
        """``[r]``: rho, the correlation of noise and sample along each direction."""
        return self.gain * self._spread()

    @torch.no_grad()
    def kurtosis(self, data: Tensor) -> Tensor:
        """``[r]``: excess kurtosis of the noise along the directions on ``data`` ``[N, *shape]``.

        0 for a Gaussian: rho^4 times that of the data.
        """
        offset, basis = self._offset_and_basis(to_float64(data), torch.float64)
        along = offset @ basis.T
        along = along - along.mean(dim=0)
        variance = along.square().mean(dim=0).clamp_min(1e-30)
        excess = along.pow(4).mean(dim=0) / variance.square() - 3
        return (to_float64(self.correlation).to(excess) ** 4 * excess).float().to(data.device)

    def _spread(self) -> Tensor:
        assert self.moments.spectrum is not None
        return self.moments.spectrum[: self.rank].clamp_min(0).sqrt()

    def _offset_and_basis(self, data: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Data less their mean ``[B, D]``, and the directions ``[r, D]``."""
        mean, directions = self.moments.mean, self.moments.directions
        check_fitted("moments were", mean.shape, data.shape[1:], "fit them on data of this shape")
        assert directions is not None
        offset = (data.to(dtype) - mean.to(data.device, dtype)).flatten(1)
        return offset, directions[: self.rank].to(data.device, dtype)
