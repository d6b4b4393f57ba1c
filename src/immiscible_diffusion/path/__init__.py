"""Paths: how data and noise are mixed at time t, and what the network learns there."""

from immiscible_diffusion.path.base import Cond, Model, Path, PathSample, Velocity, per_row
from immiscible_diffusion.path.convert import Mixture
from immiscible_diffusion.path.diffusion import DiffusionPath
from immiscible_diffusion.path.flow import FlowPath
from immiscible_diffusion.path.sigma import Preconditioned, SigmaPath

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
