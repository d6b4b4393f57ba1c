"""Record the inputs and predictions of a model while it samples, to show trajectories."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from immiscible_diffusion.diffusion.paths import Cond, Model, Path


@dataclass(frozen=True)
class Frame:
    """One evaluation of a model at time ``t``.

    ``x_t`` ``[B, *shape]`` is its input divided by ``sqrt(alpha^2 + sigma^2)``: of the size of data or noise, whatever
    the path; ``data`` ``[B, *shape]`` what it predicted.
    """

    t: float
    x_t: Tensor
    data: Tensor


@dataclass
class RecordingModel:
    """A model of ``path``, guided already, that keeps a frame of each of its evaluations."""

    model: Model
    path: Path
    frames: list[Frame] = field(default_factory=list)

    def __call__(self, x: Tensor, network_time: Tensor, cond: Cond | None = None) -> Tensor:
        """Return the model's output at ``x`` ``[B, *shape]``."""
        output = self.model(x, network_time, cond)
        t = self.path.from_network_time(network_time)
        mixture = self.path.mixture(t, x)
        norm = (mixture.alpha.square() + mixture.sigma.square()).sqrt()
        data = mixture.convert(output, x, self.path.prediction, "data")
        self.frames.append(Frame(float(t[0]), (x / norm).cpu(), data.cpu()))
        return output


def trajectory_grid(frames: list[Frame], samples: Tensor, columns: int = 8) -> Tensor:
    """Two rows of ``columns`` images for each sample: ``x_t`` and the predicted data over time.

    Returns ``[B * 2 * columns, *shape]``: ``columns - 1`` evenly spaced frames, the first and the last among them,
    then the result ``samples`` ``[B, *shape]``. Fewer frames give fewer columns: ``len(frames) + 1``.
    """
    if not frames or columns < 2:
        raise ValueError(f"expected frames and columns >= 2, got {len(frames)} and {columns}")
    count = min(len(frames), columns - 1)
    shown = [frames[round(i * (len(frames) - 1) / max(1, count - 1))] for i in range(count)]
    inputs = torch.stack([*(frame.x_t for frame in shown), samples.cpu()], dim=1)
    predictions = torch.stack([*(frame.data for frame in shown), samples.cpu()], dim=1)
    return torch.stack([inputs, predictions], dim=1).flatten(0, 2)
