# SPDX-License-Identifier: Apache-2.0 (immiscible-diffusion)
# mypy: disallow-untyped-defs=False
"""KNN as one Triton kernel: the noise is written once and never read.

The first pass draws the noise and takes the products that decide, rivals are drawn as scalars, and the second pass
writes. Rows of up to 16,384 dimensions stay in registers between the two; longer ones are drawn again, from the same
counters.
"""

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._knn_kernels import FEW_DIMENSIONS, SHORTEST

IN_REGISTERS = 1 << 14  # dimensions


@triton.jit
def _uniform(bits):
    """In (0, 1], of 32 random bits; never 0, for logarithms."""
    return (bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10


@triton.jit
def _normals(bits, turn):
    """Two normals of two words (Box-Muller)."""
    radius = tl.sqrt(-2.0 * tl.log(_uniform(bits)))
    angle = 6.283185307179586 * _uniform(turn)
    return radius * tl.cos(angle), radius * tl.sin(angle)


@triton.jit
def _noise(seed, counter, row):
    """Four normals a counter."""
    a, b, c, d = tl.philox(seed, counter, row, 0, 0)
    n0, n1 = _normals(a, b)
    n2, n3 = _normals(c, d)
    return n0, n1, n2, n3


@triton.jit
def _add(dot, square, length, data, at, dim, noise):
    x = tl.load(data + at, mask=at < dim, other=0.0).to(tl.float32).to(dot.dtype)
    n = tl.where(at < dim, noise, 0.0).to(dot.dtype)
    return dot + n * x, square + n * n, length + x * x


@triton.jit
def _add_all(dot, square, length, data, at, step, dim, n0, n1, n2, n3):
    dot, square, length = _add(dot, square, length, data, at, dim, n0)
    dot, square, length = _add(dot, square, length, data, at + step, dim, n1)
    dot, square, length = _add(dot, square, length, data, at + 2 * step, dim, n2)
    return _add(dot, square, length, data, at + 3 * step, dim, n3)


@triton.jit
def _write(out, data, at, dim, noise, stretch, shift):
    x = tl.load(data + at, mask=at < dim, other=0.0).to(tl.float32).to(stretch.dtype)
    moved = (noise.to(stretch.dtype) * stretch + x * shift).to(tl.float32)  # to bfloat16 from float32 alone
    tl.store(out + at, moved.to(out.dtype.element_ty), mask=at < dim)


@triton.jit
def _write_all(out, data, at, step, dim, n0, n1, n2, n3, stretch, shift):
    _write(out, data, at, dim, n0, stretch, shift)
    _write(out, data, at + step, dim, n1, stretch, shift)
    _write(out, data, at + 2 * step, dim, n2, stretch, shift)
    _write(out, data, at + 3 * step, dim, n3, stretch, shift)


@triton.jit
def _rivals(seed, which, row, dim):
    """Normals along the sample and chi-square draws of ``dim - 1`` degrees (Marsaglia and Tsang)."""
    a, b, c, _ = tl.philox(seed, which, row, 1, 0)
    along, _ = _normals(a, b)
    shape = (dim - 1) * 0.5
    boosted = tl.where(shape < 1, shape + 1, shape).to(tl.float64)
    d = boosted - 0.3333333333333333
    scale = 1 / tl.sqrt(9 * d)
    gamma = tl.zeros(which.shape, tl.float64)
    pending = which >= 0
    attempt = 2
    while tl.max(pending.to(tl.int32), axis=0) > 0:
        a, b, e, _ = tl.philox(seed, which, row, attempt, 0)
        x, _ = _normals(a, b)
        x = x.to(tl.float64)
        v = 1 + scale * x
        v = v * v * v
        positive = tl.where(v > 0, v, 1.0)
        accepts = tl.log(_uniform(e).to(tl.float64)) < 0.5 * x * x + d * (1 - v + tl.log(positive))
        accepts = accepts & (v > 0)
        gamma = tl.where(pending & accepts, d * v, gamma)
        pending = pending & (accepts == 0)
        attempt += 1
    u = _uniform(c).to(tl.float64)
    gamma = tl.where(shape < 1, gamma * u * u, gamma)  # of 2 dimensions, where shape is 1/2
    return along, tl.where(dim == 1, 0.0, 2 * gamma)


@triton.jit
def _knn(
    out,
    data,
    seeds,
    dim,
    count,
    EPS,
    SHORTEST,
    WORK: tl.constexpr,
    BLOCK: tl.constexpr,
    RIVALS: tl.constexpr,
    WHOLE: tl.constexpr,
):
    row = tl.program_id(0)
    seed = tl.load(seeds)
    out += row.to(tl.int64) * dim
    data += row.to(tl.int64) * dim
    lanes = tl.arange(0, BLOCK)
    dots, squares, lengths = tl.zeros([BLOCK], WORK), tl.zeros([BLOCK], WORK), tl.zeros([BLOCK], WORK)
    n0, n1, n2, n3 = _noise(seed, lanes, row)
    dots, squares, lengths = _add_all(dots, squares, lengths, data, lanes, BLOCK, dim, n0, n1, n2, n3)
    if not WHOLE:
        for start in range(4 * BLOCK, dim, 4 * BLOCK):
            n0, n1, n2, n3 = _noise(seed, start // 4 + lanes, row)
            dots, squares, lengths = _add_all(dots, squares, lengths, data, start + lanes, BLOCK, dim, n0, n1, n2, n3)
    dot, square, length = tl.sum(dots, axis=0), tl.sum(squares, axis=0), tl.sqrt(tl.sum(lengths, axis=0))
    best, rival_along, rival_square = dot * 0 + float("inf"), dot * 0, dot * 0
    for first in range(0, count, RIVALS):
        places = tl.arange(0, RIVALS)
        a, q = _rivals(seed, first + places, row, dim)
        a, q = a.to(WORK), q.to(WORK)
        distances = tl.where(first + places < count, q + a * (a - 2 * length), float("inf"))
        nearest, here = tl.min(distances, axis=0), places == tl.argmin(distances, axis=0)
        nearer = nearest < best
        rival_along = tl.where(nearer, tl.sum(tl.where(here, a, 0.0), axis=0), rival_along)
        rival_square = tl.where(nearer, tl.sum(tl.where(here, q, 0.0), axis=0), rival_square)
        best = tl.where(nearer, nearest, best)
    directed = length > SHORTEST
    inverse = tl.where(directed, 1 / length, 0.0)
    rival_square = tl.where(directed, rival_square, best)
    along = dot * inverse
    across = tl.maximum(tl.maximum(square - along * along, EPS * square), 1e-37)
    stays = (square - 2 * dot <= best) & (length < float("inf"))
    stretch = tl.where(stays, 1.0, tl.sqrt(rival_square / across))
    shift = tl.where(stays, 0.0, (rival_along - stretch * along) * inverse)
    stretch = tl.where(length < float("inf"), stretch, float("nan"))
    if WHOLE:
        _write_all(out, data, lanes, BLOCK, dim, n0, n1, n2, n3, stretch, shift)
    else:
        for start in range(0, dim, 4 * BLOCK):
            n0, n1, n2, n3 = _noise(seed, start // 4 + lanes, row)
            _write_all(out, data, start + lanes, BLOCK, dim, n0, n1, n2, n3, stretch, shift)


def knn_in_one_kernel(data: Tensor, k: int, generator: torch.Generator | None) -> Tensor:
    """Noise for ``data`` ``[B, *shape]`` in single or half precision, k > 1, distributed as that of ``KNN(k)``.

    ``generator`` gives one seed, on the device; nothing is read back.
    """
    rows = data.flatten(1).contiguous()
    result = torch.empty(data.shape, dtype=data.dtype, device=data.device)
    seed = torch.empty(1, dtype=torch.int64, device=data.device).random_(generator=generator)
    dim = rows.shape[1]
    work = torch.float64 if dim < FEW_DIMENSIONS else torch.float32
    block, whole = triton.next_power_of_2(triton.cdiv(dim, 4)), dim <= IN_REGISTERS
    options = {
        "WORK": tl.float64 if work == torch.float64 else tl.float32,
        "BLOCK": block if whole else 512,
        "RIVALS": min(256, triton.next_power_of_2(k - 1)),
        "WHOLE": whole,
        "num_warps": min(16, max(4, block // 128)) if whole else 4,
    }
    with torch.cuda.device(rows.device) if rows.is_cuda else nullcontext():
        _knn[(len(rows),)](result, rows, seed, dim, k - 1, 4 * torch.finfo(work).eps, SHORTEST, **options)
    return result
