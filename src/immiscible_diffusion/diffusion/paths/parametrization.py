"""What a network says, in other words: epsilon, v, data and velocity are one another's algebra."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Prediction = Literal["epsilon", "v", "data", "velocity"]


@dataclass(frozen=True)
class Mixture:
    """``x_t = alpha data + sigma noise``, and how the shares change with t.

    Every prediction is linear in the pair, ``output = a data + b noise``, so the pair follows from
    ``x_t`` and the output by a 2 x 2 system.

    Attributes:
        alpha: ``[B, 1, ...]`` or a number: share of the data.
        sigma: the same for the noise.
        alpha_slope: d alpha / dt, for the velocity only.
        sigma_slope: d sigma / dt, for the velocity only.
    """

    alpha: Tensor
    sigma: Tensor
    alpha_slope: Tensor | None = None
    sigma_slope: Tensor | None = None

    def shares(self, kind: Prediction) -> tuple[Tensor, Tensor]:
        """``(a, b)`` of ``output = a data + b noise``.

        ``v`` is ``alpha noise - sigma data`` (2202.00512), ``velocity`` is dx/dt.
        """
        if kind == "velocity":
            if self.alpha_slope is None or self.sigma_slope is None:
                raise ValueError("a velocity needs alpha_slope and sigma_slope, got none")
            return self.alpha_slope, self.sigma_slope
        one, zero = self.alpha * 0 + 1, self.alpha * 0
        known = {"data": (one, zero), "epsilon": (zero, one), "v": (-self.sigma, self.alpha)}
        if kind not in known:
            raise ValueError(f"a prediction is epsilon, v, data or velocity, got {kind!r}")
        return known[kind]

    def pair(self, kind: Prediction, output: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
        """Sample and noise of which ``output`` at ``x_t`` speaks.

        Without data in ``x_t`` (alpha = 0) epsilon says nothing of the sample, and without noise
        data say nothing of the noise: infinite or NaN.
        """
        a, b = self.shares(kind)
        volume = self.alpha * b - self.sigma * a
        data = (b * x_t - self.sigma * output) / volume
        return data, (self.alpha * output - a * x_t) / volume

    def convert(self, output: Tensor, x_t: Tensor, kind: Prediction, into: Prediction) -> Tensor:
        """``output`` of the kind ``kind`` as one of the kind ``into``."""
        if kind == into:
            return output
        data, noise = self.pair(kind, output, x_t)
        a, b = self.shares(into)
        return a * data + b * noise
