"""Drop conditions at random in training, for classifier-free guidance (2207.12598)."""

import torch

from immiscible_diffusion.diffusion.paths import Cond


def drop_labels(cond: Cond, num_classes: int, probability: float, generator: torch.Generator | None = None) -> Cond:
    """``cond`` with some of ``cond["label"]`` ``[B]`` set to ``num_classes``, no label; drawn on their device."""
    label = cond["label"]
    draw = torch.rand(label.shape, device=label.device, generator=generator)
    return {**cond, "label": torch.where(draw < probability, num_classes, label)}


def drop_text(cond: Cond, empty: Cond, probability: float, generator: torch.Generator | None = None) -> Cond:
    """Replace some of ``cond["text"]`` ``[B, L, W]``, and ``pooled`` where ``empty`` has it.

    ``empty`` holds the conditions of the empty prompt, one row each; ``generator`` is on the device of the text.
    """
    text = cond["text"]
    drop = torch.rand(len(text), device=text.device, generator=generator) < probability
    changed = {
        name: torch.where(drop.view(-1, *(1,) * (row.ndim - 1)), row.to(cond[name]), cond[name])
        for name, row in empty.items()
    }
    return {**cond, **changed}
