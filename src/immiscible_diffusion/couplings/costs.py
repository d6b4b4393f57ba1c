"""Costs of giving noise j to sample i, without a ``[B, B, D]`` tensor."""

import torch
from torch import Tensor

from immiscible_diffusion.couplings._validation import working_dtype

COSTS = ("inner", "norm", "l1")
CONSTANT = 1e-6  # a coordinate that varies by less is left out of what is standardized


def assignment_cost(
    kind: str, data: Tensor, noise: Tensor, valid: Tensor | None, *, squared: bool = False
) -> Tensor:
    """``[B, N]``: cost of giving noise j of ``[N, *shape]`` to sample i of ``[B, *shape]``.

    ``inner`` is half the squared distance less what does not matter to a square assignment:
    ``-<x, n>``; with ``squared``, or over valid positions alone, ``|n|^2 / 2`` does matter.
    """
    dtype = working_dtype(data.dtype)
    rows, columns = data.flatten(1).to(dtype), noise.flatten(1).to(dtype)
    inside = None if valid is None else valid.flatten(1)
    if inside is not None:
        rows = rows.masked_fill(~inside, 0)
    if kind == "inner":
        return _inner(rows, columns, inside, squared)
    if kind == "l1":
        return _absolute(rows, columns, inside)
    if inside is None:
        return torch.cdist(rows, columns)
    half = rows.square().sum(dim=1, keepdim=True) / 2 + _inner(rows, columns, inside, True)
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


def _inner(rows: Tensor, columns: Tensor, inside: Tensor | None, squared: bool) -> Tensor:
    cost = _product(rows, columns).neg_()
    if inside is not None:
        return cost.add_(_product(inside.to(rows.dtype), columns.square()), alpha=0.5)
    return cost.add_(columns.square().sum(dim=1), alpha=0.5) if squared else cost


def _absolute(rows: Tensor, columns: Tensor, inside: Tensor | None) -> Tensor:
    if inside is None:
        return torch.cdist(rows, columns, p=1)
    pairs = zip(rows, inside, strict=True)
    return torch.stack([((columns - row).abs_() * own).sum(dim=1) for row, own in pairs])


def _product(rows: Tensor, columns: Tensor) -> Tensor:
    """``rows @ columns.T``, with out=, as autocast would otherwise take it in half precision."""
    return torch.mm(rows, columns.T, out=rows.new_empty(len(rows), len(columns)))
