"""The papers' ideas, one per file."""

from immiscible_diffusion.couplings.assignment import LinearAssignment
from immiscible_diffusion.couplings.base import Coupling, Independent, Shuffled, draw, pair
from immiscible_diffusion.couplings.calibrated import Calibrated
from immiscible_diffusion.couplings.gaussian_ot import GaussianTransport
from immiscible_diffusion.couplings.knn import KNN
from immiscible_diffusion.couplings.moments import Moments
from immiscible_diffusion.couplings.noise_distribution import NoiseDistribution
from immiscible_diffusion.couplings.paired_loader import PairedBatch, PairedLoader, pair_pool
from immiscible_diffusion.couplings.registry import check_coupling_name, parse_coupling

__all__ = [
    "KNN",
    "Calibrated",
    "Coupling",
    "GaussianTransport",
    "Independent",
    "LinearAssignment",
    "Moments",
    "NoiseDistribution",
    "PairedBatch",
    "PairedLoader",
    "Shuffled",
    "check_coupling_name",
    "draw",
    "pair",
    "pair_pool",
    "parse_coupling",
]
