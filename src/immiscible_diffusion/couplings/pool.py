"""Several batches paired as one: more data to choose from than one micro-batch holds."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.couplings._validation import valid_positions
from immiscible_diffusion.couplings.base import Coupling, draw
from immiscible_diffusion.utils.batch import Batch


def pool_size(coupling: Any) -> int:
    """How many batches ``coupling``, or one that it wraps, pairs as one; 1 = each by itself."""
    pool = getattr(coupling, "pool", 1)
    inner = getattr(coupling, "coupling", None)
    return max(pool if isinstance(pool, int) else 1, 1 if inner is None else pool_size(inner))


@torch.no_grad()
def pair_pool(
    coupling: Coupling, batches: Sequence[Batch], *, generator: torch.Generator | None = None
) -> list[Tensor]:
    """Noise for each of ``batches``, paired over all of them.

    Batches whose data have the same shape, dtype and device form one batch for the coupling; those
    groups are paired one after the other, in the order of their first batches. A coupling that
    works across ranks needs the same shapes in the same order on all ranks.

    Returns:
        A tensor like ``data`` for every batch, in their order.

    Raises:
        ValueError: batches of a group differ in the names or shapes of their conditions.
    """
    groups: dict[Any, list[int]] = {}
    for index, batch in enumerate(batches):
        kind = (batch.data.shape[1:], batch.data.dtype, batch.data.device)
        groups.setdefault(kind, []).append(index)
    whole = _unpooled(coupling)
    noises: dict[int, Tensor] = {}
    for rows in groups.values():
        joined = _joined([batches[index] for index in rows])
        noise = draw(whole, joined.data, cond=joined.cond, mask=joined.mask, generator=generator)
        noises |= zip(rows, noise.split([len(batches[index]) for index in rows]), strict=True)
    return [noises[index] for index in range(len(batches))]


def _unpooled(coupling: Any) -> Any:
    """``coupling`` as it is called on a whole pool."""
    if pool_size(coupling) == 1:
        return coupling
    if not dataclasses.is_dataclass(coupling) or isinstance(coupling, type):
        raise ValueError(
            f"{coupling!r} has a pool and must be a dataclass with a field 'pool' or 'coupling', "
            f"as it is called on whole pools with pool=1"
        )
    changes: dict[str, Any] = {}
    if pool_size(inner := getattr(coupling, "coupling", None)) > 1:
        changes["coupling"] = _unpooled(inner)
    if getattr(coupling, "pool", 1) != 1:
        changes["pool"] = 1
    return dataclasses.replace(coupling, **changes)


def _joined(batches: Sequence[Batch]) -> Batch:
    """One batch of the rows of all."""
    if len(batches) == 1:
        return batches[0]
    names = [sorted(batch.cond or {}) for batch in batches]
    if any(other != names[0] for other in names):
        raise ValueError(
            f"batches paired as one must have the same conditions, got {names}; give all of them "
            f"the same, or use pool=1"
        )
    try:
        cond = {name: torch.cat([(b.cond or {})[name] for b in batches]) for name in names[0]}
    except RuntimeError as error:
        raise ValueError(
            f"the conditions of batches paired as one cannot be joined ({error}); pad them to one "
            f"shape, or use pool=1"
        ) from error
    return Batch(torch.cat([batch.data for batch in batches]), cond or None, _joined_mask(batches))


def _joined_mask(batches: Sequence[Batch]) -> Tensor | None:
    """The masks of all, in full; valid everywhere where there is none."""
    masks = [valid_positions(batch.mask, batch.data) for batch in batches]
    if all(mask is None for mask in masks):
        return None
    return torch.cat(
        [
            torch.ones_like(batch.data, dtype=torch.bool) if mask is None else mask
            for mask, batch in zip(masks, batches, strict=True)
        ]
    )
