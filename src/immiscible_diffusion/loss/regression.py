"""The loss of diffusion and flow matching."""

from dataclasses import dataclass

from torch import Tensor

from immiscible_diffusion.loss.base import mean_over
from immiscible_diffusion.path import Cond, Model, Path


@dataclass(frozen=True)
class RegressionLoss:
    """Weighted mean squared error between the model's output and the path's target."""

    def __call__(
        self,
        model: Model,
        path: Path,
        data: Tensor,
        noise: Tensor,
        t: Tensor,
        cond: Cond | None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Loss ``[B]``: mean over the valid dimensions of a datum, times ``path.weight(t)``."""
        point = path.sample(data, noise, t)
        prediction = model(point.x_t, path.network_time(t), cond)
        error = (prediction.float() - point.target.float()).square()
        return path.weight(t) * mean_over(error, mask)
