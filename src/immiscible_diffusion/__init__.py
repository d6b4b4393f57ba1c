"""Pair noise with data before diffusing: ``noise = coupling(data)``."""

from immiscible_diffusion.couplings import (
    KNN,
    Aligned,
    Calibrated,
    Coupling,
    GaussianOT,
    Independent,
    LinearAssignment,
    NoiseDistribution,
    PairedBatch,
    PairedLoader,
    Projected,
    Quantile,
    Semidiscrete,
    SemidiscretePlan,
    Shuffled,
    pair_pool,
    parse_coupling,
)
from immiscible_diffusion.couplings.moments import Moments
from immiscible_diffusion.data.scaling import DataScaling
from immiscible_diffusion.diffusion.losses import RegressionLoss
from immiscible_diffusion.diffusion.paths import EDMPath, FlowMatchingPath, PathSample, Preconditioned, VPPath
from immiscible_diffusion.integrations import as_torchcfm
from immiscible_diffusion.utils.random import RandomStreams

__version__ = "0.2.0"

__all__ = [
    "KNN",
    "Aligned",
    "Calibrated",
    "Coupling",
    "DataScaling",
    "EDMPath",
    "FlowMatchingPath",
    "GaussianOT",
    "Independent",
    "LinearAssignment",
    "Moments",
    "NoiseDistribution",
    "PairedBatch",
    "PairedLoader",
    "PathSample",
    "Preconditioned",
    "Projected",
    "Quantile",
    "RandomStreams",
    "RegressionLoss",
    "Semidiscrete",
    "SemidiscretePlan",
    "Shuffled",
    "VPPath",
    "__version__",
    "as_torchcfm",
    "pair_pool",
    "parse_coupling",
]
