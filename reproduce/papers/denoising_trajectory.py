"""What a model takes a point for at each step of sampling: 2406.12303, Fig. 3, with numbers.

At the first step (layer) the point is noise alone. A model trained without pairing cannot know
then which image to make, and predicts the same mean image for every noise; with pairing the noise
tells of its image, and predictions differ. Shown at every layer: the point and the predicted image.
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

STEPS = 20  # as in the paper
Predict = Callable[[Tensor, float], Tensor]
"""``predict(x_t [B, *shape], t) -> E[data | x_t] [B, *shape]``."""


@dataclass(frozen=True)
class Layer:
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
class Layers:
    """All steps, the first at pure noise.

    Attributes:
        layers: one per step.
        x_t: ``[steps, shown, *shape]``: points of the first noises.
        predicted: ``[steps, shown, *shape]``: the images predicted there.
        data: ``[B, *shape]``: what sampling ended in.
    """

    layers: tuple[Layer, ...]
    x_t: Tensor
    predicted: Tensor
    data: Tensor

    def strip(self, sample: int, columns: int = 10) -> Tensor:
        """``[2 columns, *shape]`` to look at: points of a sample, then the images predicted there.

        Steps evenly spaced, with the first and the last.
        """
        at = torch.linspace(0, len(self.layers) - 1, min(columns, len(self.layers))).round().long()
        return torch.cat([self.x_t[at, sample], self.predicted[at, sample]])


def prediction(path: Path, model: Model, cond: Cond | None = None) -> Predict:
    """The image that ``model`` predicts, from its output by the algebra of the path.

    On FlowMatchingPath ``x_t - t velocity``.
    """

    def predict(x_t: Tensor, t: float) -> Tensor:
        mix = mixing(path, t)
        times = torch.full((len(x_t),), t, dtype=x_t.dtype, device=x_t.device)
        target = model(x_t, path.network_time(times), cond)
        return (target - mix.own * x_t) / mix.slope

    return predict


@torch.no_grad()
def predict_layers(
    predict: Predict,
    path: Path,
    noise: Tensor,
    data: Tensor,
    *,
    steps: int = STEPS,
    shown: int = 4,
    groups: Tensor | None = None,
    data_groups: Tensor | None = None,
) -> Layers:
    """Sample from ``noise`` in equal steps, and look at what is predicted on the way.

    A step keeps the predicted image and noise and moves to the next time: DDIM, which on FlowMatchingPath
    is Euler's method.

    Args:
        predict: such as ``prediction(path, model)`` or ``OptimalDenoiser``.
        path: that the model was trained on.
        noise: ``[B, *shape]`` of unit variance, to start from; 2 at least (in each group).
        data: ``[N, *shape]``, the training data as the model sees them, to compare with.
        steps: 20 as in the paper.
        shown: so many samples are kept to look at.
        groups: ``[B]``, conditions of the noises: everything is within a group, then the mean of
            all, as the condition alone makes images differ.
        data_groups: ``[N]``, the same of the data.

    Raises:
        ValueError: bad numbers, or groups of noise or data alone.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    judge = _Judge.of(data, _members(groups, data_groups, len(noise), len(data)))
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()
    x = noise * float(path.sigma(torch.ones(1, dtype=torch.float64))[0])
    found, seen, predicted = [], [], []
    for t, following in itertools.pairwise(times):
        guess = predict(x, t).to(x.dtype)
        found.append(judge(t, guess.flatten(1).double().cpu()))
        seen.append(x[:shown].cpu())
        predicted.append(guess[:shown].cpu())
        x = _next(path, x, guess, t, following)
    return Layers(tuple(found), torch.stack(seen), torch.stack(predicted), x.cpu())


def _next(path: Path, x: Tensor, guess: Tensor, t: float, following: float) -> Tensor:
    """The point at ``following`` of the image and the noise that ``guess`` means."""
    pair = torch.tensor([t, following], dtype=torch.float64)
    alpha, sigma = path.alpha(pair).tolist(), path.sigma(pair).tolist()
    noise = (x - alpha[0] * guess) / sigma[0]
    return alpha[1] * guess + sigma[1] * noise


def _members(
    groups: Tensor | None, data_groups: Tensor | None, noises: int, count: int
) -> list[tuple[Tensor, Tensor]]:
    """Rows of noise and rows of data that belong together."""
    if (groups is None) != (data_groups is None):
        raise ValueError("groups of the noise and of the data go together; give both or none")
    groups = torch.zeros(noises) if groups is None else groups.cpu()
    data_groups = torch.zeros(count) if data_groups is None else data_groups.cpu()
    found = []
    for group in groups.unique():
        mine, theirs = ((g == group).nonzero()[:, 0] for g in (groups, data_groups))
        if len(mine) < 2 or len(theirs) < 2:
            raise ValueError(
                f"two noises and two data are needed of every condition, got {len(mine)} and "
                f"{len(theirs)}"
            )
        found.append((mine, theirs))
    return found


@dataclass(frozen=True)
class _Judge:
    """Compares predicted images to the data: rows, means ``[D]`` and the variance a dimension."""

    groups: list[tuple[Tensor, Tensor]]
    variance: float

    @classmethod
    def of(cls, data: Tensor, members: list[tuple[Tensor, Tensor]]) -> "_Judge":
        flat = data.flatten(1).double().cpu()
        groups = [(mine, flat[theirs].mean(dim=0)) for mine, theirs in members]
        freedom = sum(len(theirs) - 1 for _, theirs in members)
        scatter = sum(
            float((flat[theirs] - flat[theirs].mean(dim=0)).square().sum()) for _, theirs in members
        )
        return cls(groups, scatter / freedom / flat.shape[1])

    def __call__(self, t: float, rows: Tensor) -> Layer:
        """Of the predicted images ``rows`` ``[B, D]``."""
        deviations, offset, error = [], 0.0, 0.0
        for mine, center in self.groups:
            own = rows[mine]
            deviation = (own - own.mean(dim=0)).square().mean(dim=1)
            deviations.append(deviation * len(own) / (len(own) - 1))
            away = mean_square(own - center)
            offset += away.value / len(self.groups)
            error += (away.error / len(self.groups)) ** 2
        scale = self.variance * rows.shape[1]
        square = Mean(offset / scale, math.sqrt(error) / scale)
        return Layer(t, root(mean_of(torch.cat(deviations) / self.variance)), root(square))


def root(square: Mean) -> Mean:
    """The root of a mean square, 0 where that comes out below 0."""
    value = math.sqrt(max(0.0, square.value))
    # Near 0 a root has no usual error: that of the square bounds it.
    near = math.sqrt(square.error) if square.error >= 0 else math.nan
    return Mean(value, min(near, square.error / (2 * value)) if value else near)
