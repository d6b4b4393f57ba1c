"""The papers' ideas, one per file."""

from immiscible_diffusion.coupling.assignment import LinearAssignment
from immiscible_diffusion.coupling.base import Coupling, Independent, Shuffled, draw, pair
from immiscible_diffusion.coupling.calibrated import Calibrated
from immiscible_diffusion.coupling.knn import KNN
from immiscible_diffusion.coupling.law import NoiseLaw
from immiscible_diffusion.coupling.names import check_coupling_name, coupling_from_name
from immiscible_diffusion.coupling.pool import pair_pool
from immiscible_diffusion.coupling.prefetch import Paired, prefetch
from immiscible_diffusion.coupling.scaling import ImageScaling
from immiscible_diffusion.coupling.transport import GaussianTransport

__all__ = [
    "KNN",
    "Calibrated",
    "Coupling",
    "GaussianTransport",
    "ImageScaling",
    "Independent",
    "LinearAssignment",
    "NoiseLaw",
    "Paired",
    "Shuffled",
    "check_coupling_name",
    "coupling_from_name",
    "draw",
    "pair",
    "pair_pool",
    "prefetch",
]
