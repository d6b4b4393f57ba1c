"""What a model sees and says on the way from noise to data: for pictures of sampling."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from immiscible_diffusion.diffusion.paths import Cond, Model, Path


@dataclass(frozen=True)
class Frame:
    """One evaluation of a model.

    Attributes:
        t: where on the path.
        x_t: ``[B, *shape]``, what it saw, divided by ``sqrt(alpha^2 + sigma^2)``: of the size of
            data or noise, whatever the path.
        data: ``[B, *shape]``, the sample that it took it for.
    """

    t: float
    x_t: Tensor
    data: Tensor


@dataclass
class RecordingModel:
    """A model that keeps a frame of each of its evaluations, whatever sampler calls it.

    Args:
        model: already guided, if it is to be.
        path: that it was trained on.
    """

    model: Model
    path: Path
    frames: list[Frame] = field(default_factory=list)

    def __call__(self, x: Tensor, network_time: Tensor, cond: Cond | None = None) -> Tensor:
        """What the model says at ``x`` ``[B, *shape]``."""
        output = self.model(x, network_time, cond)
        t = self.path.time_seen(network_time)
        mixture = self.path.mixture(t, x)
        size = (mixture.alpha.square() + mixture.sigma.square()).sqrt()
        data = mixture.convert(output, x, self.path.prediction, "data")
        self.frames.append(Frame(float(t[0]), (x / size).cpu(), data.cpu()))
        return output


def strip_rows(frames: list[Frame], last: Tensor, columns: int = 8) -> Tensor:
    """Rows of pictures ``[B * 2 * columns, *shape]``: of each sample what was seen, what was said.

    Of many frames ``columns - 1`` evenly spaced ones, the first and the last among them; the last
    column is what the sampler made, ``last`` ``[B, *shape]``. Fewer frames give fewer columns:
    ``len(frames) + 1``.

    Raises:
        ValueError: no frame, or fewer than two columns.
    """
    if not frames or columns < 2:
        raise ValueError(f"expected frames and columns >= 2, got {len(frames)} and {columns}")
    count = min(len(frames), columns - 1)
    chosen = [frames[round(i * (len(frames) - 1) / max(1, count - 1))] for i in range(count)]
    seen = torch.stack([*(frame.x_t for frame in chosen), last.cpu()], dim=1)
    said = torch.stack([*(frame.data for frame in chosen), last.cpu()], dim=1)
    return torch.stack([seen, said], dim=1).flatten(0, 2)
