"""Samplers: plain functions from noise (t = 1) to data (t = 0)."""

from immiscible_diffusion.diffusion.samplers.base import SamplerOutput, StepNoise, pruned_noise, start_noise
from immiscible_diffusion.diffusion.samplers.config import METHODS, SamplerConfig
from immiscible_diffusion.diffusion.samplers.ddpm import sample_ddim, sample_dpm, select_timesteps
from immiscible_diffusion.diffusion.samplers.edm import sample_consistency, sample_edm
from immiscible_diffusion.diffusion.samplers.guidance import guided
from immiscible_diffusion.diffusion.samplers.ode import sample_dopri5, sample_euler, sample_heun, sample_midpoint
from immiscible_diffusion.diffusion.samplers.recording import Frame, RecordingModel, trajectory_grid

__all__ = [
    "METHODS", "Frame", "RecordingModel", "SamplerConfig", "SamplerOutput", "StepNoise", "guided", "pruned_noise",
    "sample_consistency", "sample_ddim", "sample_dopri5", "sample_dpm", "sample_edm",
    "sample_euler", "sample_heun", "sample_midpoint", "select_timesteps", "start_noise",
    "trajectory_grid",
]  # fmt: skip
