"""Assignment under conditions: noise that crosses them costs extra, or does not cross.

A plain assignment gives noise to data whatever their conditions, so noise comes to depend on the
condition; sampling, which draws noise from N(0, I) given a condition, then starts elsewhere than
training did. C2OT (arXiv 2503.10636) adds a cost for crossing.
"""

import warnings

import numpy as np
import torch
from torch import Tensor

from immiscible_diffusion.couplings._validation import can_sync

FEW_MOVABLE = 0.25


def take_condition(cond: dict[str, Tensor] | None, key: str | None, count: int) -> Tensor | None:
    """``cond[key]`` ``[count, ...]``; None without a key; ValueError if it is not there."""
    if key is None or (count == 0 and not cond):  # a rank without rows needs none
        return None
    if cond is None or key not in cond:
        known = ", ".join(cond or {}) or "none"
        raise ValueError(f'cond_key="{key}" needs cond["{key}"]; conditions given: {known}')
    condition = cond[key]
    if not isinstance(condition, Tensor) or condition.ndim == 0:
        raise ValueError(f'cond["{key}"] must be a tensor [{count}, ...], got {condition!r}')
    if len(condition) != count:
        raise ValueError(f'cond["{key}"] must have {count} rows, got {len(condition)}')
    if can_sync(condition) and not bool(condition.isfinite().all()):
        raise ValueError(f'cond["{key}"] is not finite; mend it before pairing by it')
    return condition


def _flat(condition: Tensor) -> Tensor:
    """``[B, k]``, of no rows too."""
    return condition[:, None] if condition.ndim == 1 else condition.flatten(1)


def groups_of(condition: Tensor) -> list[Tensor]:
    """The rows ``[n]`` of each distinct condition; warns where few rows share theirs."""
    if len(condition) == 0:
        return []
    rows = _flat(condition)
    _, kind, counts = torch.unique(rows, dim=0, return_inverse=True, return_counts=True)
    movable = float(counts[counts > 1].sum()) / max(1, len(condition))
    if movable < FEW_MOVABLE and len(condition) > 1:
        warnings.warn(
            f"only {movable:.0%} of {len(condition)} data share their condition with another and "
            f"can be paired; use a larger pool, cond_cost='soft', or KNN, which needs no partner",
            stacklevel=5,
        )
    return list(kind.argsort(stable=True).split(counts.tolist()))


def condition_distance(condition: Tensor) -> Tensor:
    """``[B, B]``: 0 or 1 for labels, 1 - cosine for vectors; conditions are left as they are."""
    rows = _flat(condition)
    if not rows.is_floating_point():
        kind = torch.unique(rows, dim=0, return_inverse=True)[1]
        return (kind[:, None] != kind[None]).to(torch.float64)
    if rows.shape[1] == 1:
        raise ValueError(
            "cond_cost='soft' compares directions, and a condition of one number has none; give "
            "whole numbers (bins), or a vector such as [cos, sin]"
        )
    rows = rows.double()
    unit = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-30)
    return (1 - unit @ unit.T).clamp_min(0)


def add_condition_cost(cost: Tensor, condition: Tensor, crossing: float) -> Tensor:
    """``cost`` ``[B, s B]`` plus a weight times the distance of the conditions.

    Noise j is preferred to the sample's own draw where ``cost_ij + w c_ij < cost_ii``. Of the pairs
    with different conditions the weight leaves the share ``crossing`` so: it is a quantile of
    ``(cost_ii - cost_ij) / c_ij``, found afresh for every batch.
    """
    distance = condition_distance(condition).repeat(1, cost.shape[1] // cost.shape[0])
    gain = cost.diagonal()[:, None].double() - cost.double()
    differ = distance > 1e-9
    if not bool(differ.any()):
        return cost
    limits = (gain[differ] / distance[differ]).numpy()
    weight = max(0.0, float(np.quantile(limits, 1 - crossing)))
    return cost.double() + weight * distance
