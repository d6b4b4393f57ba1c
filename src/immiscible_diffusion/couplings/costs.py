"""Costs of giving noise j to sample i, without a ``[B, B, D]`` tensor, and of crossing conditions.

A plain assignment gives noise to data whatever their conditions, so noise comes to depend on the condition; sampling,
which draws noise from N(0, I) given a condition, then starts elsewhere than training did. C2OT (arXiv 2503.10636) adds
a cost for crossing.
"""

import warnings

import torch
from torch import Tensor

from immiscible_diffusion.couplings._validation import can_sync, kind_of, product, take_condition, working_dtype

COSTS = ("inner", "norm", "l1")
CONSTANT = 1e-6  # a coordinate that varies by less is left out of what is standardized
FEW_MOVABLE = 0.25


def assignment_cost(kind: str, data: Tensor, noise: Tensor, valid: Tensor | None, squared: bool = False) -> Tensor:
    """``[B, N]``: cost of giving noise j of ``[N, *shape]`` to sample i of ``[B, *shape]``.

    ``inner`` is half the squared distance less what does not matter to a square assignment: ``-<x, n>``; with
    ``squared``, or over valid positions alone, ``|n|^2 / 2`` does matter.
    """
    dtype = working_dtype(data.dtype)
    rows, columns = data.flatten(1).to(dtype), noise.flatten(1).to(dtype)
    inside = None if valid is None else valid.flatten(1)
    if inside is not None:
        rows = rows.masked_fill(~inside, 0)
    if kind != "inner" and inside is None:
        return torch.cdist(rows, columns, p=1 if kind == "l1" else 2)
    if kind == "l1" and inside is not None:
        pairs = zip(rows, inside, strict=True)
        return torch.stack([((columns - row).abs_() * own).sum(dim=1) for row, own in pairs])
    cost = product(rows, columns.T).neg_()
    if inside is not None:
        cost.add_(product(inside.to(dtype), columns.square().T), alpha=0.5)
    elif squared:
        cost.add_(columns.square().sum(dim=1), alpha=0.5)
    if kind == "inner":
        return cost
    half = rows.square().sum(dim=1, keepdim=True) / 2 + cost
    return (2 * half).clamp_min_(0).sqrt_()


def standardized(data: Tensor, valid: Tensor | None) -> Tensor:
    """``data`` ``[B, *shape]`` with mean 0 and variance 1 in every coordinate over the batch.

    Over valid positions; a coordinate that does not vary is 0. float32, or float64 as ``data``.
    """
    rows = data.to(working_dtype(data.dtype))
    inside = torch.ones_like(rows, dtype=torch.bool) if valid is None else valid
    count = inside.sum(dim=0).clamp_min(1)
    rows = rows.masked_fill(~inside, 0)
    rows = (rows - rows.sum(dim=0) / count).masked_fill(~inside, 0)
    spread = (rows.square().sum(dim=0) / count).sqrt()
    return torch.where(spread > CONSTANT, rows / spread.clamp_min(CONSTANT), torch.zeros_like(rows))


def checked_condition(cond: dict[str, Tensor] | None, key: str, count: int) -> Tensor:
    """``cond[key]`` ``[count, ...]``; ValueError if missing, of other length or not finite."""
    condition = take_condition(cond, key, f'cond_key="{key}"')
    if not isinstance(condition, Tensor) or condition.shape[:1] != (count,):
        raise ValueError(f'cond["{key}"] must be a tensor [{count}, ...], got {kind_of(condition)}')
    if can_sync(condition) and not bool(condition.isfinite().all()):
        raise ValueError(f'cond["{key}"] is not finite; mend it before pairing by it')
    return condition


def groups_of(condition: Tensor) -> list[Tensor]:
    """The rows ``[n]`` of each distinct condition; warns where few rows share theirs."""
    if len(condition) == 0:
        return []
    rows = condition.reshape(len(condition), -1)
    _, group, counts = torch.unique(rows, dim=0, return_inverse=True, return_counts=True)
    movable = float(counts[counts > 1].sum()) / max(1, len(condition))
    if movable < FEW_MOVABLE and len(condition) > 1:
        warnings.warn(
            f"only {movable:.0%} of {len(condition)} data share their condition with another and can be paired; use a "
            f"larger pool, cond_cost='soft', or KNN, which needs no partner",
            stacklevel=5,
        )
    return list(group.argsort(stable=True).split(counts.tolist()))


def condition_distance(condition: Tensor) -> Tensor:
    """``[B, B]``: 0 or 1 for labels, 1 - cosine for vectors; conditions are left as they are."""
    rows = condition.reshape(len(condition), -1)
    if not rows.is_floating_point():
        group = torch.unique(rows, dim=0, return_inverse=True)[1]
        return (group[:, None] != group[None]).to(torch.float64)
    if rows.shape[1] == 1:
        raise ValueError("cond_cost='soft' compares directions: a condition of one number has none; give bins")
    rows = rows.double()
    unit = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-30)
    return (1 - unit @ unit.T).clamp_min(0)


def add_condition_cost(cost: Tensor, condition: Tensor, mismatch_rate: float) -> Tensor:
    """``cost`` ``[B, s B]`` plus a weight times the distance of the conditions.

    Noise j is preferred to the sample's own draw where ``cost_ij + w c_ij < cost_ii``. Of the pairs with different
    conditions the weight leaves the share ``mismatch_rate`` so: it is a quantile of ``(cost_ii - cost_ij) / c_ij`` of
    the batch.
    """
    import numpy as np  # scipy, which solves the assignment, needs it too

    distance = condition_distance(condition).repeat(1, cost.shape[1] // cost.shape[0])
    gain = cost.diagonal()[:, None].double() - cost.double()
    differ = distance > 1e-9
    if not bool(differ.any()):
        return cost
    limits = (gain[differ] / distance[differ]).numpy()
    weight = max(0.0, float(np.quantile(limits, 1 - mismatch_rate)))
    return cost.double() + weight * distance
