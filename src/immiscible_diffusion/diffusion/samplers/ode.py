"""ODE samplers: plain functions from noise (t = 1) to data (t = 0).

Each takes a velocity ``(x [B, *shape], t [B]) -> dx/dt``, such as ``path.velocity(model, cond)``, and counts its
evaluations. Times are ``shift u / (1 + (shift - 1) u)`` at equal steps of ``u`` (2403.03206, eq. 23): a ``shift``
above 1 takes more steps near the noise.
"""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.diffusion.paths import Velocity
from immiscible_diffusion.diffusion.samplers.base import SamplerOutput
from immiscible_diffusion.utils.optional_deps import require_extra


def sample_euler(velocity: Velocity, noise: Tensor, *, steps: int = 50, shift: float = 1) -> SamplerOutput:
    """Euler's method: first order, one evaluation a step."""
    return _integrate(lambda x, t, dt: x + dt * velocity(x, t), noise, steps, shift, evaluations=1)


def sample_heun(velocity: Velocity, noise: Tensor, *, steps: int = 25, shift: float = 1) -> SamplerOutput:
    """Heun's method (trapezoid): second order, two evaluations a step."""

    def step(x: Tensor, t: Tensor, dt: Tensor) -> Tensor:
        first = velocity(x, t)
        second = velocity(x + dt * first, t + dt)
        return x + dt * (first + second) / 2

    return _integrate(step, noise, steps, shift, evaluations=2)


def sample_midpoint(velocity: Velocity, noise: Tensor, *, steps: int = 25, shift: float = 1) -> SamplerOutput:
    """The midpoint method: second order, two evaluations a step."""

    def step(x: Tensor, t: Tensor, dt: Tensor) -> Tensor:
        return x + dt * velocity(x + dt / 2 * velocity(x, t), t + dt / 2)

    return _integrate(step, noise, steps, shift, evaluations=2)


@torch.no_grad()
def sample_dopri5(velocity: Velocity, noise: Tensor, *, tolerance: float = 1e-5) -> SamplerOutput:
    """Adaptive Dormand-Prince 5(4) through torchdiffeq; relative and absolute ``tolerance``.

    All samples of a batch share the step sizes, so they depend on it, within the tolerance.
    """
    with require_extra("train", "the adaptive sampler dopri5"):
        from torchdiffeq import odeint
    evaluations = 0

    def field(t: Tensor, x: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        return velocity(x, t.to(x.dtype).expand(len(x)))

    times = torch.tensor([1.0, 0.0], device=noise.device)
    # step_t makes it end at 0: by default it evaluates at times below 0 too.
    options: dict[str, Any] = {"step_t": times[1:]}
    if noise.device.type == "mps":  # has no float64, torchdiffeq's type for times
        options["dtype"] = torch.float32
    bounds = {"rtol": tolerance, "atol": tolerance}
    states = odeint(field, noise, times, method="dopri5", options=options, **bounds)
    return SamplerOutput(states[-1], evaluations)


@torch.no_grad()
def _integrate(
    step: Callable[[Tensor, Tensor, Tensor], Tensor], noise: Tensor, steps: int, shift: float, evaluations: int
) -> SamplerOutput:
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    times = (shift * times / (1 + (shift - 1) * times)).to(noise.dtype).to(noise.device)
    x = noise
    for t, t_next in itertools.pairwise(times):
        x = step(x, t.expand(len(x)), t_next - t)
    return SamplerOutput(x, steps * evaluations)
