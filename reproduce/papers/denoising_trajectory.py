"""The image that a model predicts at each step of sampling: 2406.12303, Fig. 3, with numbers.

At the first step the point is noise alone. A model trained without pairing cannot know then which
image to make, and predicts the same mean image for every noise; with pairing the noise tells of its
image, and predictions differ.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.analysis.estimates import Mean, mean_of
from immiscible_diffusion.analysis.noise_statistics import mean_square
from immiscible_diffusion.analysis.posterior import mixing
from immiscible_diffusion.diffusion.paths import Cond, Model, Path
from reproduce.papers.statistics import root

STEPS = 20  # as in the paper
Predict = Callable[[Tensor, float], Tensor]
"""``predict(x_t [B, *shape], t) -> E[data | x_t] [B, *shape]``."""


@dataclass(frozen=True)
class Step:
    """One step of sampling; means over noises.

    Attributes:
        t: time, 1 = noise.
        spread: standard deviation of the predicted images over noises, in units of that of the
            data over images; 0 where every noise gives the same image, 1 as of the data.
        offset: distance of the mean predicted image to the mean of the data, root mean square over
            dimensions and less what chance adds, in units of the data's standard deviation.
    """

    t: float
    spread: Mean
    offset: Mean


@dataclass(frozen=True, eq=False)
class Trajectory:
    """All steps, the first at pure noise; ``x_t`` and ``predicted`` are ``[steps, B, *shape]``.

    ``data`` ``[B, *shape]`` is the end of sampling.
    """

    steps: tuple[Step, ...]
    x_t: Tensor
    predicted: Tensor
    data: Tensor


def data_prediction(path: Path, model: Model, cond: Cond | None = None) -> Predict:
    """The image that ``model`` predicts: ``x_t - t velocity`` on FlowMatchingPath."""

    def predict(x_t: Tensor, t: float) -> Tensor:
        mix = mixing(path, t)
        times = torch.full((len(x_t),), t, dtype=x_t.dtype, device=x_t.device)
        target = model(x_t, path.network_time(times), cond)
        return (target - mix.own * x_t) / mix.slope

    return predict


@torch.no_grad()
def denoising_trajectory(
    predict: Predict,
    path: Path,
    noise: Tensor,
    data: Tensor,
    *,
    steps: int = STEPS,
    groups: Tensor | None = None,
    data_groups: Tensor | None = None,
) -> Trajectory:
    """Sample from ``noise`` in equal steps, and compare the predictions on the way to the data.

    A step keeps the predicted image and noise and moves to the next time: DDIM, which on
    FlowMatchingPath is Euler's method.

    Args:
        predict: such as ``data_prediction(path, model)`` or ``OptimalDenoiser``.
        path: that the model was trained on.
        noise: ``[B, *shape]`` of unit variance, to start from; 2 at least (in each group).
        data: ``[N, *shape]``, the training data as the model sees them, to compare with.
        steps: 20 as in the paper.
        groups: ``[B]``, conditions of the noises: everything is within a group, then the mean of
            all, as the condition alone makes images differ.
        data_groups: ``[N]``, the same of the data.

    Raises:
        ValueError: bad numbers, or groups of noise or data alone.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if (groups is None) != (data_groups is None):
        raise ValueError("groups of the noise and of the data go together; give both or none")
    flat = data.flatten(1).double().cpu()
    of_noise = torch.zeros(len(noise)) if groups is None else groups.cpu()
    of_data = torch.zeros(len(data)) if data_groups is None else data_groups.cpu()
    centers, scatter, freedom = [], 0.0, 0
    for group in of_noise.unique():
        rows, own = (of_noise == group).nonzero()[:, 0], flat[of_data == group]
        if len(rows) < 2 or len(own) < 2:
            raise ValueError(f"two noises and two data are needed of every condition, got {len(rows)} and {len(own)}")
        centers.append((rows, own.mean(dim=0)))
        scatter += float((own - own.mean(dim=0)).square().sum())
        freedom += len(own) - 1
    variance = scatter / freedom / flat.shape[1]
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()
    x = noise * float(path.sigma(torch.ones(1, dtype=torch.float64))[0])
    result, x_t, predicted = [], [], []
    for t, following in itertools.pairwise(times):
        image = predict(x, t).to(x.dtype)
        result.append(_compare(t, image.flatten(1).double().cpu(), centers, variance))
        x_t.append(x.cpu())
        predicted.append(image.cpu())
        pair = torch.tensor([t, following], dtype=torch.float64)
        alpha, sigma = path.alpha(pair).tolist(), path.sigma(pair).tolist()
        x = alpha[1] * image + sigma[1] * (x - alpha[0] * image) / sigma[0]
    return Trajectory(tuple(result), torch.stack(x_t), torch.stack(predicted), x.cpu())


def _compare(t: float, images: Tensor, centers: list[tuple[Tensor, Tensor]], variance: float) -> Step:
    """Of predicted ``images`` ``[B, D]``; centers: the rows and the mean of the data by group."""
    deviations, offset, error = [], 0.0, 0.0
    for rows, center in centers:
        own = images[rows]
        deviation = (own - own.mean(dim=0)).square().mean(dim=1)
        deviations.append(deviation * len(own) / (len(own) - 1))
        away = mean_square(own - center)
        offset += away.value / len(centers)
        error += (away.error / len(centers)) ** 2
    scale = variance * images.shape[1]
    spread = mean_of(torch.cat(deviations) / variance)
    return Step(t, root(spread), root(Mean(offset / scale, math.sqrt(error) / scale)))
