"""What a loss is. Noise and path are arguments: what pairs them has been decided upstream, once."""

from typing import Protocol

from torch import Tensor

from immiscible_diffusion.diffusion.paths import Cond, Model, Path


class Loss(Protocol):
    """``loss_fn(model, path, data, noise, t, cond) -> [B]``, one loss per sample."""

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
        """Loss ``[B]`` of ``data`` and ``noise`` ``[B, *shape]`` at ``t`` ``[B]``.

        Where ``mask``, broadcast to ``data``, is False the data count for nothing.
        """


def at_share(loss: Loss, share: float) -> Loss:
    """``loss`` as it is after that share of training, for one that has a curriculum (``at``)."""
    at = getattr(loss, "at", None)
    return loss if at is None else at(share)


def undisturbed(loss: Loss) -> Loss:
    """``loss`` on the very noise it is given, for one that disturbs it in training."""
    found: Loss = getattr(loss, "undisturbed", loss)
    return found


def mean_over(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean ``[B]`` of ``values`` ``[B, *shape]`` over what ``mask`` says is valid; 0 of nothing."""
    if mask is None:
        return values.flatten(1).mean(dim=1)
    valid = mask.expand_as(values)
    total = values.masked_fill(~valid, 0).flatten(1).sum(dim=1)
    return total / valid.flatten(1).sum(dim=1).clamp_min(1)
