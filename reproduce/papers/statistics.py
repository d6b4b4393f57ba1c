"""Standard errors that the measurements share."""

import math

from torch import Tensor

from immiscible_diffusion.analysis.estimates import Mean


def jackknife(value: float, without: Tensor) -> Mean:
    """``value`` with the error seen from ``without`` ``[n]``, the values with one of n left out.

    The error is NaN for n < 3.
    """
    n = len(without)
    if n < 3:
        return Mean(value, math.nan)
    scatter = float((without - without.mean()).square().sum())
    return Mean(value, math.sqrt((n - 1) / n * scatter))


def root(square: Mean) -> Mean:
    """The root of a mean square, 0 where the square is below 0."""
    value = math.sqrt(max(0.0, square.value))
    # Near 0 a root has no usual error: that of the square bounds it.
    bound = math.sqrt(square.error) if square.error >= 0 else math.nan
    return Mean(value, min(bound, square.error / (2 * value)) if value else bound)
