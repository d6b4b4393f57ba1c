# SPDX-License-Identifier: Apache-2.0 (immiscible-diffusion)
"""The arithmetic of KNN: candidates as scalars, and noise moved to the nearest.

Depends on torch alone.
"""

import torch
from torch import Tensor

from ._validation import working_dtype

FEW_DIMENSIONS = 64
SHORTEST = 1e-15  # data shorter than this have no direction: their pull is below rounding


def offset_of(data: Tensor, valid: Tensor | None, center: Tensor | None) -> Tensor:
    """``[n, D]``: the data, less the center, in the dtype to select in; 0 where not valid.

    float64 also in few dimensions, where a noise may lie almost along its sample.
    """
    few = data[0].numel() < FEW_DIMENSIONS and data.device.type != "mps"
    offset = data.to(torch.float64 if few else working_dtype(data.dtype))
    if center is not None:
        offset = offset - center.to(offset)
    return (offset if valid is None else offset.masked_fill(~valid, 0)).flatten(1)


def length_of(rows: Tensor) -> Tensor:
    """``[n, 1]``: lengths of rows ``[n, D]``."""
    return torch.linalg.vector_norm(rows, dim=1, keepdim=True)


def distances_to(candidates: Tensor, offset: Tensor, valid: Tensor | None) -> Tensor:
    """``[B, p]``: squared distances of candidates ``[B, p, *shape]``, less the sample's square."""
    candidates = candidates.flatten(2).to(offset.dtype)
    terms = candidates * (candidates - 2 * offset[:, None])
    if valid is not None:
        terms = terms.masked_fill_(~valid.flatten(1)[:, None], 0)
    return terms.sum(dim=2)


def nearest_rivals(length: Tensor, dims: Tensor, count: int, piece: int, generator: torch.Generator | None) -> Tensor:
    """The nearest of ``count`` noises to each sample of ``length`` and ``dims`` ``[B, 1]``.

    Scalars are drawn ``piece`` at a time. Returns ``[B, 4]``: 1 / length^2 (0 for a zero row), then of the rival its
    squared distance less length^2, its length along the sample in units of ``length``, and its length across. A zero
    row has no direction: all its noise counts as across.

    The distance is r^2 + a^2 - 2 a |x|: (a - |x|)^2 + r^2 loses its digits for long data and then picks wrongly.
    """
    directed = length > SHORTEST
    inverse = torch.where(directed, 1 / length, 0 * length)
    degrees = dims - directed.to(length.dtype)
    best = torch.cat([torch.full_like(length, torch.inf), length, length], dim=1)
    for start in range(0, count, piece):
        shape = (length.shape[0], min(piece, count - start))
        along = directed * length.new_empty(shape).normal_(generator=generator)
        square = _chi_square(degrees.expand(shape), generator)
        distance, index = (square + along * (along - 2 * length)).min(dim=1, keepdim=True)
        nearest = torch.cat([distance, along.gather(1, index), square.gather(1, index).sqrt()], dim=1)
        best = torch.where(distance < best[:, :1], nearest, best)
    distance, along, radius = best.split(1, dim=1)
    return torch.cat([inverse.square(), distance, along * inverse, radius], dim=1)


def _chi_square(degrees: Tensor, generator: torch.Generator | None) -> Tensor:
    """Chi-square draws, on the CPU for devices that have no gamma sampler (MPS)."""
    device = degrees.device
    if device.type in ("cpu", "cuda", "meta"):
        return torch._standard_gamma(degrees / 2, generator=generator).mul_(2)
    seed = torch.randint(2**31, (1,), device=device, generator=generator)
    on_cpu = torch.Generator().manual_seed(int(seed))
    return torch._standard_gamma(degrees.cpu() / 2, generator=on_cpu).mul_(2).to(device)


def move_to_nearest(noise: Tensor, offset: Tensor, rivals: Tensor, scratch: Tensor, valid: Tensor | None) -> None:
    """Give ``noise`` ``[n, D]``, in place, the lengths of its rival where the rival is nearer.

    Few passes over the noise and few operations on scalars: both count (``benchmarks/``). A row of data that is not
    finite stays at nothing and gets NaN.
    """
    inverse_square, rival_distance, rival_along, rival_radius = rivals.split(1, dim=1)
    dot = torch.mul(noise, offset, out=scratch).sum(dim=1, keepdim=True)
    inside = noise if valid is None else torch.mul(noise, valid, out=scratch)
    square = length_of(inside).square()
    stays = torch.sub(square, dot, alpha=2) <= rival_distance
    along = dot * inverse_square  # in units of the sample's length, as rival_along
    limits = torch.finfo(square.dtype)
    across = torch.addcmul(square, dot, along, value=-1).clamp_min_(limits.tiny)
    # Of noise almost along its sample (few valid positions) no digit of the rest is left.
    across = torch.maximum(across, 4 * limits.eps * square)
    stretch = across.rsqrt_().mul_(rival_radius)
    shift = torch.addcmul(rival_along, stretch, along, value=-1).masked_fill_(stays, 0)
    stretch = stretch.masked_fill_(stays, 1)
    if valid is not None:
        stretch = torch.where(valid, stretch, 1)
    noise.mul_(stretch).addcmul_(offset, shift)
