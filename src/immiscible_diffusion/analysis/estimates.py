"""A measured mean with its standard error."""

import math

from torch import Tensor

from immiscible_diffusion.reporting.analysis.records import UNKNOWN, Mean

__all__ = ["Mean", "mean_of"]


def mean_of(values: Tensor) -> Mean:
    """Mean of ``values`` ``[n]`` and its standard error; unknown (NaN) where it is not finite."""
    values = values.double().flatten()
    mean = float(values.mean())
    error = float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return Mean(mean, error) if math.isfinite(mean) else UNKNOWN
