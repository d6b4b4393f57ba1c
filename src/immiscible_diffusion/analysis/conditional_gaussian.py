"""Noise that is Gaussian given its sample: a first guess at a coupling's law, from its pairs."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.analysis.noise_density import squares
from immiscible_diffusion.couplings.moments import Moments
from immiscible_diffusion.couplings.noise_distribution import basis_of
from immiscible_diffusion.utils.batch import Batch

LEAST_WIDTH = 0.05


@dataclass(frozen=True)
class Pilot:
    """Along axis r the noise is N(drift + gain o_r, width^2), across N(outside o, scale^2).

    ``o`` is the sample less the mean of the data.

    Attributes:
        mean: ``[D]`` of the data.
        axes: ``[r, D]`` orthonormal: leading directions of the data, and their mean.
        drift: ``[r]``.
        gain: ``[r]``.
        width: ``[r]``.
        outside: gain across the axes.
        scale: standard deviation across the axes.
    """

    mean: Tensor
    axes: Tensor
    drift: Tensor
    gain: Tensor
    width: Tensor
    outside: float
    scale: float

    @classmethod
    def fit(cls, pairs: Iterable[tuple[Batch, Tensor]], moments: Moments) -> "Pilot":
        """From batches of data and their noise ``[B, D]`` float64."""
        axes, mean = basis_of(moments).double(), moments.mean.double().flatten()
        sums = torch.zeros(5, len(axes)).double()  # of o, n, o n, o^2, n^2 along the axes
        whole, count = torch.zeros(3).double(), 0  # of o n, o^2, n^2 in all dimensions
        for truth, noise in pairs:
            offset = truth.data.flatten(1).double().cpu() - mean
            noise, count = noise.cpu(), count + len(noise)
            o, n = offset @ axes.T, noise @ axes.T
            sums += torch.stack([x.sum(dim=0) for x in (o, n, o * n, o * o, n * n)])
            both = [(offset, noise), (offset, offset), (noise, noise)]
            whole += torch.stack([(x * y).sum() for x, y in both])
        across = whole - sums[2:].sum(dim=1)
        o, n, joint, square, own = sums / count
        gain = (joint - o * n) / (square - o * o).clamp_min(1e-12)
        width = (own - n * n - gain**2 * (square - o * o)).clamp_min(LEAST_WIDTH**2).sqrt()
        rest = mean.numel() - len(axes)
        flat = rest == 0 or float(across[1]) < 1e-9 * float(whole[1])
        outside = 0.0 if flat else float(across[0] / across[1])
        left = float(across[2] - outside**2 * across[1]) / (count * rest) if rest else 1.0
        scale = math.sqrt(max(left, LEAST_WIDTH**2))
        return cls(mean, axes, n - gain * o, gain, width, outside, scale)

    def sample(self, images: Batch, fresh: Tensor) -> Tensor:
        """Noise ``[B, D]`` for ``images`` out of ``fresh`` N(0, I) ``[B, D]``."""
        axes = self.axes.to(fresh)
        offset = images.data.flatten(1).to(fresh) - self.mean.to(fresh)
        across = self.outside * offset + self.scale * fresh
        inside = self.drift.to(fresh) + self.gain.to(fresh) * (offset @ axes.T)
        inside = inside + self.width.to(fresh) * (fresh @ axes.T)
        return across + (inside - across @ axes.T) @ axes

    def ratio(self, points: Tensor, shifts: Tensor, images: Batch) -> Tensor:
        """``[P, N]``: log ratio to N(0, I) of the noises ``points[p] - shifts[i]``."""
        axes, width = self.axes.to(points), self.width.to(points)
        offset = images.data.flatten(1).to(points) - self.mean.to(points)
        o, along, shift = offset @ axes.T, points @ axes.T, shifts @ axes.T
        center = shift + self.drift.to(points) + self.gain.to(points) * o
        inside = squares(along, shift) - squares(along / width, center / width)
        moved = shifts + self.outside * offset
        across = squares(points, shifts) - squares(along, shift)
        left = squares(points, moved) - squares(along, shift + self.outside * o)
        volume = float(width.log().sum()) + (len(self.mean) - len(axes)) * math.log(self.scale)
        return (inside + across - left / self.scale**2) / 2 - volume
