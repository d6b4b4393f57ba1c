# SPDX-License-Identifier: Apache-2.0 (immiscible-diffusion)
"""The arithmetic of KNN: candidates as scalars, and noise moved to the nearest.

Depends on torch alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ._validation import can_sync, widest_dtype, working_dtype

FEW_DIMENSIONS = 64
MANY = 1 << 12  # draws, from which on operations on all cost less than a draw of torch's each
SHORTEST = 1e-15  # data shorter than this have no direction: their pull is below rounding


def offset_of(data: Tensor, valid: Tensor | None, center: Tensor | None) -> Tensor:
    """``[n, D]``: the data, less the center, in the dtype to select in; 0 where not valid.

    float64 also in few dimensions, where a noise may lie almost along its sample.
    """
    few = data.shape[1:].numel() < FEW_DIMENSIONS
    offset = data.to(widest_dtype(data.device) if few else working_dtype(data.dtype))
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


def nearest_rivals(
    length: Tensor, freedom: int | Tensor, count: int, piece: int, generator: torch.Generator | None
) -> tuple[Tensor, ...]:
    """The nearest of ``count`` noises to each sample of ``length`` ``[B, 1]``, of which ``freedom`` is D - 1.

    Scalars are drawn ``piece`` at a time. Returns, each ``[B, 1]``, 1 / length (0 for a zero row), then of the rival
    its squared distance less length^2, its length along the sample, and its squared length across. A zero row has no
    direction: all its noise counts as across.

    The distance is r^2 + a^2 - 2 a |x|: (a - |x|)^2 + r^2 loses its digits for long data and then picks wrongly.
    """
    best: tuple[Tensor, ...] = ()
    for start in range(0, count, piece):
        shape = (length.shape[0], min(piece, count - start))
        along = length.new_empty(shape).normal_(generator=generator)
        half = (freedom / 2).expand(shape) if isinstance(freedom, Tensor) else length.new_full(shape, freedom / 2)
        square = _chi_square(half, generator)
        distance, index = square.addcmul(along, along.sub(length, alpha=2)).min(dim=1, keepdim=True)
        found: tuple[Tensor, ...] = (distance, along.gather(1, index), square.gather(1, index))
        if best:
            nearer = distance < best[0]
            found = tuple(torch.where(nearer, new, old) for new, old in zip(found, best, strict=True))
        best = found
    distance, along, square = best
    inverse = length.reciprocal()
    if not can_sync(length) or float(length.amin()) <= SHORTEST:
        short = length <= SHORTEST
        inverse, square = inverse.masked_fill_(short, 0), torch.where(short, distance, square)
    return inverse, distance, along, square


def _chi_square(half: Tensor, generator: torch.Generator | None) -> Tensor:
    """Chi-square draws of twice ``half`` degrees, on the CPU for devices that have no gamma sampler (MPS)."""
    if can_sync(half) and half.numel() >= MANY:
        draws = _many_gammas(half, generator)
    elif half.device.type in ("cpu", "cuda", "meta"):
        draws = torch._standard_gamma(half, generator=generator)
    else:
        seed = torch.randint(2**31, (1,), device=half.device, generator=generator)
        on_cpu = torch.Generator().manual_seed(int(seed))
        draws = torch._standard_gamma(half.cpu(), generator=on_cpu).to(half.device)
    return draws.add_(draws)


def _many_gammas(shape: Tensor, generator: torch.Generator | None) -> Tensor:
    """Gamma draws by Marsaglia and Tsang (2000), all at once: a third of the time that torch takes on a CPU.

    ``d (1 + y)^3`` with ``d = shape - 1/3`` and normal ``y`` of variance 1 / (9 d) is accepted with probability
    ``exp(d (3 log(1 + y) - 3 y + 1.5 y^2 - y^3))``; the few others, and shapes below 1, are drawn by torch.
    """
    d = shape - 1 / 3
    y = torch.empty_like(d).normal_(generator=generator).div_((9 * d).sqrt_())
    log_acceptance = y.log1p().sub_(y).mul_(3).addcmul_(y.square(), 1.5 - y).mul_(d)
    accepted = torch.empty_like(d).uniform_(generator=generator).log_() < log_acceptance  # NaN for y < -1: it is not
    refused = ~accepted.logical_and_(shape >= 1)
    draws = y.add_(1).pow_(3).mul_(d)
    draws[refused] = torch._standard_gamma(shape[refused], generator=generator)
    return draws


def move_to_nearest(
    noise: Tensor, offset: Tensor, rivals: Sequence[Tensor], valid: Tensor | None, *, isotropic: bool
) -> None:
    """Give ``noise`` ``[n, D]``, in place, the lengths of its rival where the rival is nearer.

    Few passes over the noise and few operations on scalars: both count (``benchmarks/``). ``isotropic``: the noise was
    drawn, and is not, say, data. A row of data that is not finite gets NaN.
    """
    inverse, rival_distance, rival_along, rival_square = rivals
    scratch = noise * offset
    dot = scratch.sum(dim=1, keepdim=True)
    square = length_of(noise if valid is None else torch.mul(noise, valid, out=scratch)).square_()
    stays = square.sub(dot, alpha=2) <= rival_distance
    along = dot * inverse
    across = square.addcmul(along, along, value=-1)
    if not isotropic or valid is not None or noise.shape[1] < FEW_DIMENSIONS:
        # The noise may lie almost along its sample, and then no digit of the rest is left.
        limits = torch.finfo(square.dtype)
        across = torch.maximum(across, square * (4 * limits.eps)).clamp_min_(limits.tiny)
    stretch = rival_square.div(across).sqrt_()
    shift = rival_along.addcmul(stretch, along, value=-1).mul_(inverse).masked_fill_(stays, 0)
    stretch.masked_fill_(stays, 1)
    if valid is not None:
        stretch = torch.where(valid, stretch, 1)
    noise.mul_(stretch).addcmul_(offset, shift)
