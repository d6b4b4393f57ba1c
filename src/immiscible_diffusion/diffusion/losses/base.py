"""What a loss is. Noise is an argument: which noise goes with which sample is decided upstream."""

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from immiscible_diffusion.diffusion.paths import EDMPath, Path
from immiscible_diffusion.diffusion.samplers import SamplerConfig


class Loss:
    """``loss_fn(model, path, data, noise, t, cond, mask=None, progress=1.0) -> [B]``: one loss per sample.

    Of ``data`` and ``noise`` ``[B, *shape]`` at ``t`` ``[B]``; where ``mask``, broadcast to data, is False they
    count for nothing. ``progress`` in [0, 1] is the fraction of training that is done.
    """

    has_curriculum: ClassVar[bool] = False
    """The loss depends on ``progress``, so a run's length must not be changed."""

    __call__: Callable[..., Tensor]

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
