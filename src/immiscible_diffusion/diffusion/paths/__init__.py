"""Paths: how data and noise are mixed at time t, and what the network learns there."""

from immiscible_diffusion.diffusion.paths.base import Cond, Model, Path, PathSample, Velocity, per_row
from immiscible_diffusion.diffusion.paths.edm import EDMPath
from immiscible_diffusion.diffusion.paths.flow_matching import FlowMatchingPath
from immiscible_diffusion.diffusion.paths.parametrization import Mixture
from immiscible_diffusion.diffusion.paths.preconditioning import Preconditioned
from immiscible_diffusion.diffusion.paths.vp import VPPath

__all__ = [
    "Cond", "EDMPath", "FlowMatchingPath", "Mixture", "Model", "Path", "PathSample",
    "Preconditioned", "VPPath", "Velocity", "per_row",
]  # fmt: skip
