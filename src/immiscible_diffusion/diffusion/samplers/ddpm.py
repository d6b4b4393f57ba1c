"""Samplers of variance-preserving diffusion: DDIM, DDPM, DPM-Solver++, PNDM."""

import itertools
import warnings
from typing import Literal, get_args

import torch
from torch import Tensor

from immiscible_diffusion.diffusion.paths import Cond, Model, VPPath
from immiscible_diffusion.diffusion.samplers.base import SamplerOutput, StepNoise
from immiscible_diffusion.utils.optional_deps import require_extra

Spacing = Literal["linear", "quadratic", "trailing"]
_PREDICTION_TYPES = {"epsilon": "epsilon", "v": "v_prediction", "data": "sample"}  # diffusers' names


def select_timesteps(path: VPPath, count: int, spacing: Spacing = "linear") -> list[int]:
    """``count`` of the path's steps, falling.

    ``linear`` and ``quadratic`` are those of DDIM (2010.02502, D.2), which end at step 0 and leave the last ones out
    (quadratic steps that coincide are taken once; they begin at 0.8 of all, where a cosine schedule still shows a
    third of the data); ``trailing`` starts at the last (2305.08891), as zero SNR needs.

    Raises:
        ValueError: more steps than the path has, an unknown spacing, or one step that is not ``trailing``: it would be
            step 0, which returns the noise unchanged.
    """
    if not 1 <= count <= path.steps:
        raise ValueError(f"steps must be from 1 to {path.steps}, those of the path, got {count}")
    if spacing not in get_args(Spacing):
        raise ValueError(f"spacing must be linear, quadratic or trailing, got {spacing!r}")
    if count == 1 and spacing != "trailing":
        raise ValueError(f"one {spacing} step is step 0, which returns the noise; use trailing or more steps")
    if spacing == "trailing":
        return [round(path.steps * (count - i) / count) - 1 for i in range(count)]
    if spacing == "linear":
        return [i * path.steps // count for i in range(count)][::-1]
    quadratic = (0.8 * path.steps * (i / max(1, count - 1)) ** 2 for i in range(count))
    return sorted({int(step) for step in quadratic}, reverse=True)


@torch.no_grad()
def sample_ddim(
    path: VPPath,
    model: Model,
    noise: Tensor,
    cond: Cond | None = None,
    steps: int = 50,
    spacing: Spacing = "linear",
    *,
    eta: float = 0.0,
    clip: float | None = None,
    step_noise: StepNoise | None = None,
) -> SamplerOutput:
    """DDIM (2010.02502, eq. 12 and 16): predict the data, mix them again one step earlier.

    Args:
        path: that the model was trained on.
        model: predicts ``path.prediction``.
        noise: ``[B, *shape]`` at t = 1.
        cond: of the model.
        steps: evaluations of the model.
        spacing: which of the path's steps.
        eta: fresh noise: 0 is deterministic, 1 with all steps is DDPM's posterior.
        clip: predicted data are clamped to plus and minus this (1 for images).
        step_noise: the fresh noise of every step, if ``eta > 0``.
    """
    if eta and step_noise is None:
        raise ValueError(f"eta {eta} adds noise at every step; give step_noise")
    timesteps = select_timesteps(path, steps, spacing)
    times = [(step + 1) / path.steps for step in timesteps]
    x = noise
    for number, (t, t_next) in enumerate(itertools.pairwise([*times, 0.0])):
        rows = torch.full((len(x),), t, device=x.device, dtype=torch.float32)
        mixture, output = path.mixture(rows, x), model(x, path.network_time(rows), cond)
        data, epsilon = mixture.to_data_and_noise(path.prediction, output, x)
        if clip is not None:
            data = data.clamp(-clip, clip)
            epsilon = (x - mixture.alpha * data) / mixture.sigma
        alpha, sigma, fresh = _ddim_coefficients(path, t, t_next, eta)
        x = alpha * data + sigma * epsilon
        if fresh and step_noise is not None:
            x = x + fresh * step_noise(number)
    return SamplerOutput(x, len(timesteps))


def _ddim_coefficients(path: VPPath, t: float, t_next: float, eta: float) -> tuple[float, float, float]:
    """Coefficients of the data, the predicted noise and fresh noise at ``t_next``."""
    times = torch.tensor([t, t_next], dtype=torch.float64)
    alpha, alpha_next = path.alpha(times).tolist()
    sigma, sigma_next = path.sigma(times).tolist()
    beta = max(0.0, 1 - (alpha / alpha_next) ** 2) if alpha_next else 1.0
    fresh = eta * sigma_next / sigma * beta**0.5
    return alpha_next, max(0.0, sigma_next**2 - fresh**2) ** 0.5, fresh


@torch.no_grad()
def sample_dpm(
    path: VPPath, model: Model, noise: Tensor, cond: Cond | None = None, steps: int = 20, spacing: Spacing = "trailing"
) -> SamplerOutput:
    """DPM-Solver++ of second order, multistep (2211.01095), by diffusers' scheduler."""
    with require_extra("train", "DPM-Solver++"):
        from diffusers import DPMSolverMultistepScheduler
    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=path.steps,
        trained_betas=path.betas.tolist(),
        prediction_type=_PREDICTION_TYPES[path.prediction],
        final_sigmas_type="zero",
        rescale_betas_zero_snr=path.zero_snr,
    )
    timesteps = select_timesteps(path, steps, spacing)
    if spacing == "linear":
        # Without step 0: a second-order step from there to data would be too long.
        timesteps = [i * path.steps // (steps + 1) for i in range(steps, 0, -1)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # diffusers and NumPy 2
        scheduler.set_timesteps(timesteps=timesteps, device=noise.device)
    x = noise
    for step in timesteps:
        times = torch.full((len(x),), float(step), device=x.device)
        x = scheduler.step(model(x, times, cond), step, x).prev_sample
    return SamplerOutput(x, len(timesteps))


@torch.no_grad()
def sample_pndm(path: VPPath, model: Model, noise: Tensor, cond: Cond | None = None, steps: int = 20) -> SamplerOutput:
    """PNDM without Runge-Kutta steps (2202.09778, PLMS), by diffusers' scheduler with Stable Diffusion's settings.

    Its steps are every ``path.steps // steps``-th, one later; the second is taken twice, so there is one evaluation
    more.
    """
    with require_extra("train", "PNDM"):
        from diffusers import PNDMScheduler
    if not 1 <= steps < path.steps:
        raise ValueError(f"steps must be from 1 to {path.steps - 1}, those of the path, got {steps}")
    scheduler = PNDMScheduler(
        num_train_timesteps=path.steps,
        trained_betas=path.betas.tolist(),
        skip_prk_steps=True,
        prediction_type=_PREDICTION_TYPES[path.prediction],
        steps_offset=1,
    )
    scheduler.set_timesteps(steps)
    x = noise
    for step in scheduler.timesteps.tolist():
        times = torch.full((len(x),), float(step), device=x.device)
        x = scheduler.step(model(x, times, cond), step, x).prev_sample
    return SamplerOutput(x, len(scheduler.timesteps))
