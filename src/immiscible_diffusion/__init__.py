"""Pair noise with data before diffusing: ``noise = coupling(data)``."""

from immiscible_diffusion.coupling import (
    KNN,
    Coupling,
    Independent,
    LinearAssignment,
    Shuffled,
    coupling_from_name,
)
from immiscible_diffusion.loss import RegressionLoss
from immiscible_diffusion.moments import Moments
from immiscible_diffusion.path import FlowPath, PathSample
from immiscible_diffusion.rng import Streams

__version__ = "0.1.0"

__all__ = [
    "KNN",
    "Coupling",
    "FlowPath",
    "Independent",
    "LinearAssignment",
    "Moments",
    "PathSample",
    "RegressionLoss",
    "Shuffled",
    "Streams",
    "__version__",
    "coupling_from_name",
]
