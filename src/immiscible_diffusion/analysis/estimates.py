"""A measured mean with its standard error."""

import math
from typing import NamedTuple

from torch import Tensor


class Mean(NamedTuple):
    """A mean and its standard error (NaN of fewer than two values)."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.4g} +- {self.error:.2g}"


def mean_of(values: Tensor) -> Mean:
    """Mean of ``values`` ``[n]`` and its standard error."""
    values = values.double().flatten()
    error = float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return Mean(float(values.mean()), error)
