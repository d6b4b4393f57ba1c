"""Labels that a network does not see, so that it can be guided."""

import torch

from immiscible_diffusion.path import Cond


def dropped_labels(
    cond: Cond, classes: int, share: float, generator: torch.Generator | None = None
) -> Cond:
    """``cond`` with a random ``share`` of ``cond["label"]`` ``[B]`` set to ``classes``: no label.

    ``generator`` is on the device of the labels.
    """
    label = cond["label"]
    draw = torch.rand(label.shape, device=label.device, generator=generator)
    return {**cond, "label": torch.where(draw < share, classes, label)}
