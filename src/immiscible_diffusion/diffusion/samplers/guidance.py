"""Classifier-free guidance."""

from collections.abc import Callable

import torch
from torch import Tensor

from immiscible_diffusion.diffusion.paths import Cond, Model


def guided(model: Model, weight: float, without: Callable[[Cond], Cond]) -> Model:
    """``model`` pushed towards its condition (2207.12598): two evaluations in one batch.

    Args:
        model: trained with its condition left out now and then.
        weight: 1 is the model itself, above 1 pushes, 0 is without condition.
        without: the condition that stands for none.
    """

    def both(x: Tensor, time: Tensor, cond: Cond | None) -> Tensor:
        if cond is None:
            raise ValueError("guidance needs a condition to push towards, got none")
        none = without(cond)
        twice = {name: torch.cat([cond[name], none[name]]) for name in cond}
        given, free = model(torch.cat([x, x]), torch.cat([time, time]), twice).chunk(2)
        return torch.lerp(free, given, weight)

    return model if weight == 1 else both
