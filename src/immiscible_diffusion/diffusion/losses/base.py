"""What a loss is. Noise is an argument: which noise goes with which sample is decided upstream."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from immiscible_diffusion.diffusion.paths import Cond, EDMPath, Model, Path
from immiscible_diffusion.diffusion.samplers import SamplerConfig


class Loss(ABC):
    """``loss_fn(model, path, data, noise, t, cond) -> [B]``: one loss per sample."""

    has_curriculum: ClassVar[bool] = False
    """The loss depends on ``progress``, so a run's length must not be changed."""

    @abstractmethod
    def __call__(
        self,
        model: Model,
        path: Path,
        data: Tensor,
        noise: Tensor,
        t: Tensor,
        cond: Cond | None,
        mask: Tensor | None = None,
        *,
        progress: float = 1.0,
    ) -> Tensor:
        """Loss ``[B]`` of ``data`` and ``noise`` ``[B, *shape]`` at ``t`` ``[B]``.

        Where ``mask``, broadcast to ``data``, is False the data count for nothing. ``progress`` in [0, 1] is the
        fraction of training that is done.
        """

    def without_augmentation(self) -> "Loss":
        """The loss for validation: on the given noise itself, with nothing added at random."""
        return self

    def identity_sigma(self, path: EDMPath) -> float:
        """Noise level at which ``Preconditioned`` must be the identity: 0 for a denoiser."""
        return 0.0

    def check(self, path: Path, sampler: SamplerConfig) -> None:
        """Raise ValueError for a path or sampler that does not go with this loss."""
        if sampler.method == "consistency":
            raise ValueError(f"sampler.method consistency needs ConsistencyLoss, got {type(self).__name__}")


def mean_over(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean ``[B]`` of ``values`` ``[B, *shape]`` where ``mask`` is True; 0 if it is nowhere."""
    if mask is None:
        return values.flatten(1).mean(dim=1)
    valid = mask.expand_as(values)
    total = values.masked_fill(~valid, 0).flatten(1).sum(dim=1)
    return total / valid.flatten(1).sum(dim=1).clamp_min(1)
