"""Convert between the predictions of a network: epsilon, v, data and velocity."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Prediction = Literal["epsilon", "v", "data", "velocity"]


@dataclass(frozen=True)
class Mixture:
    """``x_t = alpha data + sigma noise``, and the slopes of its coefficients in t.

    Every prediction is linear in the pair, ``output = a data + b noise``, so the pair follows from ``x_t`` and the
    output by a 2 x 2 system.

    Attributes:
        alpha: ``[B, 1, ...]``, coefficient of the data.
        sigma: the same of the noise.
        alpha_slope: d alpha / dt, for the velocity only.
        sigma_slope: d sigma / dt, for the velocity only.
    """

    alpha: Tensor
    sigma: Tensor
    alpha_slope: Tensor | None = None
    sigma_slope: Tensor | None = None

    def coefficients(self, prediction: Prediction) -> tuple[Tensor, Tensor]:
        """``(a, b)`` of ``output = a data + b noise``.

        ``v`` is ``alpha noise - sigma data`` (2202.00512), ``velocity`` is dx/dt.
        """
        if prediction == "velocity":
            if self.alpha_slope is None or self.sigma_slope is None:
                raise ValueError("a velocity needs alpha_slope and sigma_slope, got none")
            return self.alpha_slope, self.sigma_slope
        one, zero = self.alpha * 0 + 1, self.alpha * 0
        known = {"data": (one, zero), "epsilon": (zero, one), "v": (-self.sigma, self.alpha)}
        if prediction not in known:
            raise ValueError(f"a prediction is epsilon, v, data or velocity, got {prediction!r}")
        return known[prediction]

    def to_data_and_noise(self, prediction: Prediction, output: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
        """Data and noise ``[B, *shape]`` that ``output`` at ``x_t`` predicts.

        At alpha = 0 the data cannot be recovered from epsilon, nor at sigma = 0 the noise from data: they are infinite
        or NaN.
        """
        a, b = self.coefficients(prediction)
        determinant = self.alpha * b - self.sigma * a
        data = (b * x_t - self.sigma * output) / determinant
        return data, (self.alpha * output - a * x_t) / determinant

    def convert(self, output: Tensor, x_t: Tensor, prediction: Prediction, into: Prediction) -> Tensor:
        """``output``, which is a ``prediction`` at ``x_t``, as the prediction ``into``."""
        if prediction == into:
            return output
        data, noise = self.to_data_and_noise(prediction, output, x_t)
        a, b = self.coefficients(into)
        return a * data + b * noise
