"""Assignment under conditions: noise that crosses them costs extra, or does not cross.

A plain assignment gives noise to data whatever their conditions, so noise comes to depend on the
condition; sampling, which draws noise from N(0, I) given a condition, then starts elsewhere than
training did. C2OT (arXiv 2503.10636) adds a cost for crossing.
"""

import warnings

import numpy as np
import torch
from torch import Tensor

FEW_MOVABLE = 0.25


def take_condition(cond: dict[str, Tensor] | None, key: str | None, count: int) -> Tensor | None:
    """``cond[key]`` ``[count, ...]``; None without a key; ValueError if it is not there."""
    if key is None:
        return None
    if cond is None or key not in cond:
        known = ", ".join(cond or {}) or "none"
        raise ValueError(f'cond_key="{key}" needs cond["{key}"]; conditions given: {known}')
    if len(cond[key]) != count:
        raise ValueError(f'cond["{key}"] must have {count} rows, got {len(cond[key])}')
    return cond[key]


def groups_of(condition: Tensor) -> list[Tensor]:
    """The rows ``[n]`` of each distinct condition; warns where few rows share theirs."""
    rows = condition.reshape(len(condition), -1)
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
    rows = condition.reshape(len(condition), -1)
    if not rows.is_floating_point():
        return (rows[:, None] != rows[None]).any(dim=2).to(torch.float64)
    rows = rows.double()
    unit = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-30)
    return (1 - unit @ unit.T).clamp_min(0)


def add_condition_cost(cost: Tensor, condition: Tensor, crossing: float) -> Tensor:
    """``cost`` ``[B, s B]`` plus a weight times the distance of the conditions.

    Noise j is preferred to the datum's own draw where ``cost_ij + w c_ij < cost_ii``. Of the pairs
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
