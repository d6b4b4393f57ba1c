"""Samplers of EDMPath: Heun in sigma, and consistency models in any number of steps."""

import itertools

import torch
from torch import Tensor

from immiscible_diffusion.diffusion.paths import Cond, EDMPath, Model
from immiscible_diffusion.diffusion.samplers.base import SamplerOutput, StepNoise


@torch.no_grad()
def sample_edm(
    path: EDMPath, model: Model, noise: Tensor, *, cond: Cond | None = None, steps: int = 18
) -> SamplerOutput:
    """EDM's deterministic sampler (2206.00364, algorithm 1): Heun in sigma, the last step Euler.

    Args:
        path: its sigmas at equal steps of t are those of EDM's eq. 5.
        model: preconditioned, predicts the data.
        noise: ``[B, *shape]``, of unit variance.
        cond: of the model.
        steps: of two evaluations each, except the last.
    """
    sigmas = _sigmas(path, steps)
    x, nfe = sigmas[0] * noise, 0
    for sigma, sigma_next in itertools.pairwise([*sigmas, 0.0]):
        slope = (x - _denoise(path, model, x, sigma, cond)) / sigma
        x_next, nfe = x + (sigma_next - sigma) * slope, nfe + 1
        if sigma_next > 0:
            slope_next = (x_next - _denoise(path, model, x_next, sigma_next, cond)) / sigma_next
            x_next, nfe = x + (sigma_next - sigma) * (slope + slope_next) / 2, nfe + 1
        x = x_next
    return SamplerOutput(x, nfe)


@torch.no_grad()
def sample_consistency(
    path: EDMPath,
    model: Model,
    noise: Tensor,
    *,
    cond: Cond | None = None,
    steps: int = 1,
    step_noise: StepNoise | None = None,
) -> SamplerOutput:
    """A consistency model in ``steps`` steps (2303.01469, algorithm 1).

    Every step predicts the data; between steps noise is added again, at sigmas of equal steps of t.

    Args:
        path: that the model was trained on.
        model: preconditioned, the identity at ``sigma_min``.
        noise: ``[B, *shape]``, of unit variance.
        cond: of the model.
        steps: evaluations.
        step_noise: the noise that is added; needed for more than one step.
    """
    if steps > 1 and step_noise is None:
        raise ValueError(f"{steps} steps add noise between them; give step_noise")
    sigmas = _sigmas(path, steps + 1)[:-1]
    x = _denoise(path, model, sigmas[0] * noise, sigmas[0], cond)
    for number, sigma in enumerate(sigmas[1:]):
        assert step_noise is not None
        scale = max(0.0, sigma**2 - path.sigma_min**2) ** 0.5
        x = _denoise(path, model, x + scale * step_noise(number), sigma, cond)
    return SamplerOutput(x, steps)


def _sigmas(path: EDMPath, count: int) -> list[float]:
    """From ``sigma_max`` down to ``sigma_min``."""
    if count < 1:
        raise ValueError(f"steps must be at least 1, got {count}")
    sigmas: list[float] = path.sigma(torch.linspace(1, 0, count, dtype=torch.float64)).tolist()
    return sigmas


def _denoise(path: EDMPath, model: Model, x: Tensor, sigma: float, cond: Cond | None) -> Tensor:
    t = path.time_of(torch.full((len(x),), sigma, dtype=torch.float64)).to(x.dtype).to(x.device)
    return model(x, path.network_time(t), cond)
