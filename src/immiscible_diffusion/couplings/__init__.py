"""Couplings, ``noise = coupling(data)``, one idea per file, and the loader that applies them."""

import torch

from immiscible_diffusion.couplings.aligned import Aligned
from immiscible_diffusion.couplings.assignment import LinearAssignment
from immiscible_diffusion.couplings.base import Coupling, Independent, as_coupling
from immiscible_diffusion.couplings.empty_axes import EmptyAxes
from immiscible_diffusion.couplings.gaussian_ot import GaussianOT
from immiscible_diffusion.couplings.knn import KNN
from immiscible_diffusion.couplings.moments import Moments
from immiscible_diffusion.couplings.noise_distribution import NoiseDistribution
from immiscible_diffusion.couplings.noise_first import NoiseFirst
from immiscible_diffusion.couplings.paired_loader import PairedBatch, PairedLoader, pair_pool
from immiscible_diffusion.couplings.projected import Projected
from immiscible_diffusion.couplings.quantile import Quantile
from immiscible_diffusion.couplings.registry import COUPLINGS, WRAPPERS, check_coupling_name, parse_coupling
from immiscible_diffusion.couplings.semidiscrete import Semidiscrete
from immiscible_diffusion.couplings.semidiscrete_plan import SemidiscretePlan
from immiscible_diffusion.couplings.wrappers import Calibrated, MaskedCoupling, Shuffled, WarmUp

if hasattr(torch.serialization, "add_safe_globals"):  # torch 2.2 and 2.3 have no such list
    # A checkpoint that holds a coupling loads with weights_only=True: none of them does anything when it is made.
    torch.serialization.add_safe_globals([*COUPLINGS.values(), *WRAPPERS.values()])
    torch.serialization.add_safe_globals([Moments, NoiseDistribution, EmptyAxes, SemidiscretePlan])

__all__ = [
    "KNN",
    "Aligned",
    "Calibrated",
    "Coupling",
    "EmptyAxes",
    "GaussianOT",
    "Independent",
    "LinearAssignment",
    "MaskedCoupling",
    "Moments",
    "NoiseDistribution",
    "NoiseFirst",
    "PairedBatch",
    "PairedLoader",
    "Projected",
    "Quantile",
    "Semidiscrete",
    "SemidiscretePlan",
    "Shuffled",
    "WarmUp",
    "as_coupling",
    "check_coupling_name",
    "pair_pool",
    "parse_coupling",
]
