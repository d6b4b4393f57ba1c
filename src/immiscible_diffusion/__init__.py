"""Pair noise with data before diffusing: ``noise = coupling(data)``."""

from immiscible_diffusion.coupling import (
    KNN,
    Calibrated,
    Coupling,
    GaussianTransport,
    ImageScaling,
    Independent,
    LinearAssignment,
    NoiseLaw,
    Shuffled,
    coupling_from_name,
    pair_pool,
    prefetch,
)
from immiscible_diffusion.interop import as_torchcfm
from immiscible_diffusion.loss import RegressionLoss
from immiscible_diffusion.moments import Moments
from immiscible_diffusion.path import DiffusionPath, FlowPath, PathSample, SigmaPath
from immiscible_diffusion.rng import Streams

__version__ = "0.1.0"

__all__ = [
    "KNN",
    "Calibrated",
    "Coupling",
    "DiffusionPath",
    "FlowPath",
    "GaussianTransport",
    "ImageScaling",
    "Independent",
    "LinearAssignment",
    "Moments",
    "NoiseLaw",
    "PathSample",
    "RegressionLoss",
    "Shuffled",
    "SigmaPath",
    "Streams",
    "__version__",
    "as_torchcfm",
    "coupling_from_name",
    "pair_pool",
    "prefetch",
]
