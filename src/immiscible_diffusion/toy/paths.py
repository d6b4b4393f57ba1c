"""Exact sampling paths: where the best network there can be takes a noise."""

import itertools

import torch
from torch import Tensor

from immiscible_diffusion.analysis.posterior import OptimalDenoiser


def path_times(steps: int) -> Tensor:
    """``[steps + 1]`` from 1 to 0, closer together near the data, where points part."""
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64).square()


@torch.no_grad()
def exact_paths(denoiser: OptimalDenoiser, noise: Tensor, *, steps: int = 80) -> Tensor:
    """Solve the flow of the best network on a FlowMatchingPath from ``noise`` ``[P, *shape]``.

    A predictor and corrector of second order on ``x_s = (s / t) x_t + (1 - s / t) E[data | x]``,
    which is exact as long as the expected sample does not change. The last step gives the expected
    sample itself.

    Returns:
        ``[steps + 1, P, *shape]`` float64 at ``path_times(steps)``.
    """
    times = path_times(steps).tolist()
    x = noise.double()
    found, mean = [x], denoiser(x, times[0])
    for t, s in itertools.pairwise(times):
        ahead, before = (s / t) * x + (1 - s / t) * mean, mean
        if s > 0:
            # Once a step: the next one starts from what is expected at the prediction.
            mean = denoiser(ahead, s)
            ahead = ahead + (1 - s / t) * (mean - before) / 2
        x = ahead
        found.append(x)
    return torch.stack(found)


@torch.no_grad()
def euler_ends(denoiser: OptimalDenoiser, noise: Tensor, steps: int) -> Tensor:
    """Where ``steps`` equal Euler steps along the exact velocity end: ``[P, *shape]`` float64."""
    x = noise.double()
    for number in range(steps, 0, -1):
        x = x - denoiser.target(x, number / steps) / steps
    return x


def straightness(paths: Tensor) -> float:
    """Length of ``paths`` ``[T, P, 2]`` over the distance between their ends; 1 is straight."""
    length = paths.diff(dim=0).norm(dim=2).sum()
    return float(length / (paths[-1] - paths[0]).norm(dim=1).sum())
