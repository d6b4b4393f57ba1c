"""The papers' ideas, one per file."""

from immiscible_diffusion.coupling.assignment import LinearAssignment
from immiscible_diffusion.coupling.base import (
    Coupling,
    Independent,
    Shuffled,
    check_coupling_name,
    coupling_from_name,
)
from immiscible_diffusion.coupling.knn import KNN

__all__ = [
    "KNN",
    "Coupling",
    "Independent",
    "LinearAssignment",
    "Shuffled",
    "check_coupling_name",
    "coupling_from_name",
]
