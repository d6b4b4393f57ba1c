"""The papers' ideas, one per file."""

from immiscible_diffusion.coupling.assignment import LinearAssignment
from immiscible_diffusion.coupling.base import Coupling, Independent, Shuffled, draw, pair
from immiscible_diffusion.coupling.knn import KNN
from immiscible_diffusion.coupling.names import (
    NoiseLaw,  # LEAD: temporary
    check_coupling_name,
    coupling_from_name,
)

__all__ = [
    "KNN",
    "Coupling",
    "Independent",
    "LinearAssignment",
    "Shuffled",
    "check_coupling_name",
    "coupling_from_name",
    "draw",
    "pair",
]
