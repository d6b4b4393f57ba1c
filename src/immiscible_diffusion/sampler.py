"""ODE samplers: plain functions from noise (t = 1) to data (t = 0).

Each takes a velocity ``(x [B, *shape], t [B]) -> dx/dt`` (``path.velocity(model, cond)``) and says
how often it called it.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from immiscible_diffusion.extra import needs_extra
from immiscible_diffusion.path import Velocity
from immiscible_diffusion.rng import keyed_generator


@dataclass(frozen=True)
class Sampled:
    """What a sampler made.

    Attributes:
        data: ``[B, *shape]``.
        nfe: number of function evaluations: calls of the velocity on the batch.
    """

    data: Tensor
    nfe: int


def start_noise(
    seed: int, indices: Iterable[int], shape: tuple[int, ...], device: torch.device | str = "cpu"
) -> Tensor:
    """Noise ``[len(indices), *shape]`` to start from: row i depends on ``(seed, index)`` alone.

    So an image does not depend on how sampling was split in batches or over devices.
    """
    rows = [
        torch.randn(shape, generator=keyed_generator(seed, index, "sample")) for index in indices
    ]
    return torch.stack(rows).to(device)


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
    with needs_extra("train", "the adaptive sampler dopri5"):
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


STARTS = ("normal", "matched")
METHODS = {"euler": sample_euler, "heun": sample_heun, "midpoint": sample_midpoint}


@dataclass(frozen=True)
class Sampler:
    """Which sampler, and how long.

    Args:
        method: ``euler``, ``heun``, ``midpoint`` or ``dopri5``.
        steps: equal steps, for the first three.
        tolerance: relative and absolute, for ``dopri5``.
        start: the law to start from: ``normal``, N(0, I) as everyone does, or ``matched``, the law
            of the noise the model was trained on (``NoiseLaw``).
    """

    method: Literal["euler", "heun", "midpoint", "dopri5"] = "euler"
    steps: int = 50
    tolerance: float = 1e-5
    start: Literal["normal", "matched"] = "normal"

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            raise ValueError(f"start must be one of {', '.join(STARTS)}, got {self.start!r}")
        if self.method not in (*METHODS, "dopri5"):
            known = ", ".join((*METHODS, "dopri5"))
            raise ValueError(f"sampler method must be one of {known}, got {self.method!r}")
        if self.steps < 1 or not self.tolerance > 0:
            raise ValueError(
                f"steps must be >= 1 and tolerance above 0, got {self.steps} and {self.tolerance}"
            )

    def __call__(self, velocity: Velocity, noise: Tensor) -> Sampled:
        """Integrate from ``noise`` ``[B, *shape]`` at t = 1 to data at t = 0."""
        if self.method == "dopri5":
            return sample_dopri5(velocity, noise, tolerance=self.tolerance)
        return METHODS[self.method](velocity, noise, steps=self.steps)

    def __str__(self) -> str:
        length = f"{self.tolerance:g}" if self.method == "dopri5" else str(self.steps)
        return f"{self.method} {length}" + (" matched" if self.start == "matched" else "")
