"""Paths: how data and noise are mixed at time t, and what the network learns there."""

from immiscible_diffusion.diffusion.paths.base import (
    Cond,
    Model,
    Path,
    PathSample,
    Velocity,
    per_row,
)
from immiscible_diffusion.diffusion.paths.edm import Preconditioned, SigmaPath
from immiscible_diffusion.diffusion.paths.flow_matching import FlowPath
from immiscible_diffusion.diffusion.paths.parametrization import Mixture
from immiscible_diffusion.diffusion.paths.vp import DiffusionPath

__all__ = [
    "Cond",
    "DiffusionPath",
    "FlowPath",
    "Mixture",
    "Model",
    "Path",
    "PathSample",
    "Preconditioned",
    "SigmaPath",
    "Velocity",
    "per_row",
]
