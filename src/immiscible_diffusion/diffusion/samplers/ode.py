"""ODE samplers: plain functions from noise (t = 1) to data (t = 0).

Each takes a velocity ``(x [B, *shape], t [B]) -> dx/dt`` (``path.velocity(model, cond)``) and says
how often it called it.
"""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.diffusion.paths import Velocity
from immiscible_diffusion.diffusion.samplers.base import Sampled
from immiscible_diffusion.utils.optional_deps import require_extra


def sample_euler(velocity: Velocity, noise: Tensor, *, steps: int = 50) -> Sampled:
    """Euler's method in equal steps: first order, one evaluation a step."""

    def step(x: Tensor, t: Tensor, dt: Tensor) -> Tensor:
        return x + dt * velocity(x, t)

    return _integrate(step, noise, steps, evaluations=1)


def sample_heun(velocity: Velocity, noise: Tensor, *, steps: int = 25) -> Sampled:
    """Heun's method (trapezoid) in equal steps: second order, two evaluations a step."""

    def step(x: Tensor, t: Tensor, dt: Tensor) -> Tensor:
        first = velocity(x, t)
        second = velocity(x + dt * first, t + dt)
        return x + dt * (first + second) / 2

    return _integrate(step, noise, steps, evaluations=2)


def sample_midpoint(velocity: Velocity, noise: Tensor, *, steps: int = 25) -> Sampled:
    """The midpoint method in equal steps: second order, two evaluations a step."""

    def step(x: Tensor, t: Tensor, dt: Tensor) -> Tensor:
        return x + dt * velocity(x + dt / 2 * velocity(x, t), t + dt / 2)

    return _integrate(step, noise, steps, evaluations=2)


@torch.no_grad()
def sample_dopri5(velocity: Velocity, noise: Tensor, *, tolerance: float = 1e-5) -> Sampled:
    """Adaptive Dormand-Prince 5(4) through torchdiffeq; relative and absolute ``tolerance``.

    One step size serves the whole batch, so images depend, within the tolerance, on their batch.
    """
    with require_extra("train", "the adaptive sampler dopri5"):
        from torchdiffeq import odeint
    evaluations = 0

    def field(t: Tensor, x: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        return velocity(x, t.to(x.dtype).expand(len(x)))

    times = torch.tensor([1.0, 0.0], device=noise.device)
    # End there: by default it steps past, to times below 0.
    options: dict[str, Any] = {"step_t": times[1:]}
    if noise.device.type == "mps":  # has no float64, torchdiffeq's type for times
        options["dtype"] = torch.float32
    states = odeint(
        field,
        noise,
        times,
        rtol=tolerance,
        atol=tolerance,
        method="dopri5",
        options=options,
    )
    return Sampled(states[-1], evaluations)


@torch.no_grad()
def _integrate(
    step: Callable[[Tensor, Tensor, Tensor], Tensor], noise: Tensor, steps: int, evaluations: int
) -> Sampled:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64).to(noise.dtype).to(noise.device)
    x = noise
    for t, following in itertools.pairwise(times):
        x = step(x, t.expand(len(x)), following - t)
    return Sampled(x, steps * evaluations)
