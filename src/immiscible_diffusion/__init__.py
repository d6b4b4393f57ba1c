"""Pair noise with data before diffusing: ``noise = coupling(data)``."""

from immiscible_diffusion.couplings import (
    KNN,
    Calibrated,
    Coupling,
    GaussianTransport,
    Independent,
    LinearAssignment,
    NoiseLaw,
    Shuffled,
    coupling_from_name,
    pair_pool,
    prefetch,
)
from immiscible_diffusion.couplings.moments import Moments
from immiscible_diffusion.data.scaling import ImageScaling
from immiscible_diffusion.diffusion.losses import RegressionLoss
from immiscible_diffusion.diffusion.paths import DiffusionPath, FlowPath, PathSample, SigmaPath
from immiscible_diffusion.integrations import as_torchcfm
from immiscible_diffusion.utils.random import Streams

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
