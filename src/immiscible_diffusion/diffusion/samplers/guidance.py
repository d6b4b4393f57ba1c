"""Classifier-free guidance."""

from collections.abc import Callable

import torch
from torch import Tensor

from immiscible_diffusion.diffusion.paths import Cond, Model


def guided(model: Model, weight: float, unconditional: Callable[[Cond], Cond]) -> Model:
    """``uncond + weight (cond - uncond)`` (2207.12598): two evaluations in one batch.

    A ``weight`` of 1 is the conditional model itself, above 1 guides, 0 is unconditional. ``unconditional`` turns a
    condition into the one that stands for none, of the same shapes.
    """

    def both(x: Tensor, time: Tensor, cond: Cond | None) -> Tensor:
        if cond is None:
            raise ValueError("guidance needs a condition to push towards, got none")
        dropped = unconditional(cond)
        twice = {name: torch.cat([cond[name], dropped[name]]) for name in cond}
        output, free = model(torch.cat([x, x]), torch.cat([time, time]), twice).chunk(2)
        return torch.lerp(free, output, weight)

    return model if weight == 1 else both
