"""Conditions that a network does not see, so that it can be guided."""

import torch

from immiscible_diffusion.diffusion.paths import Cond


def drop_labels(
    cond: Cond, classes: int, share: float, generator: torch.Generator | None = None
) -> Cond:
    """``cond`` with a random ``share`` of ``cond["label"]`` ``[B]`` set to ``classes``: no label.

    ``generator`` is on the device of the labels.
    """
    label = cond["label"]
    draw = torch.rand(label.shape, device=label.device, generator=generator)
    return {**cond, "label": torch.where(draw < share, classes, label)}


def drop_text(
    cond: Cond, empty: Cond, share: float, generator: torch.Generator | None = None
) -> Cond:
    """``cond`` with a random ``share`` of its prompts replaced by the ``empty`` one.

    Args:
        cond: with ``text`` ``[B, L, W]``, and ``pooled`` where ``empty`` has it.
        empty: the conditions of the empty prompt, one row each.
        share: of rows that see no prompt.
        generator: on the device of the text.
    """
    text = cond["text"]
    hidden = torch.rand(len(text), device=text.device, generator=generator) < share
    changed = {
        name: torch.where(hidden.view(-1, *(1,) * (row.ndim - 1)), row.to(cond[name]), cond[name])
        for name, row in empty.items()
    }
    return {**cond, **changed}
