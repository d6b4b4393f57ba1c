"""The survival function of the non-central chi-square, in logarithms, at any dimension.

The density of KNN noise contains ``(k - 1) log(1 - F)`` of the squared distance from the sample to
Gaussian noise, so errors are multiplied by k.
"""

import math

import torch
from torch import Tensor

SERIES_BELOW = (16, 100)  # dimensions and non-centrality: both below, the saddlepoint is too rough
NEAR_MEAN = 0.03  # standard deviations within which the saddlepoint's correction loses its digits
DEEP = 300  # about -log survival, beyond which the terms of the series underflow
LARGEST = 1e100  # squares beyond are cut, as their powers would overflow
PIECE = 1 << 14  # elements worked at a time, which stay in a CPU cache
LOG_ROOT_2PI = 0.5 * math.log(2 * math.pi)


def log_survival(square: Tensor, dim: Tensor | float, noncentrality: Tensor | float) -> Tensor:
    """``log P(chi'^2 > square)`` of the non-central chi-square, float64.

    By the Lugannani-Rice saddlepoint with its second-order term (Daniels 1987); in fewer than 16 dimensions at a
    non-centrality below 100 by the Poisson mixture of central distributions. Times (k - 1) the error is below 1e-3,
    or 1e-3 of the value, for k up to 65,536 (``tests/analysis/test_noncentral_chi2.py``). Never NaN for numbers >= 0.

    Args:
        square: squared distances, >= 0; below 0, by rounding, counts as 0.
        dim: degrees of freedom, >= 1.
        noncentrality: squared length of the sample, >= 0. All three broadcast.
    """
    square = torch.as_tensor(square, dtype=torch.float64)
    dims, shift = (torch.as_tensor(x, dtype=torch.float64, device=square.device) for x in (dim, noncentrality))
    square, dims, shift = torch.broadcast_tensors(square, dims, shift)
    out = torch.empty_like(square, memory_format=torch.contiguous_format)
    pieces = zip(*(_pieces(x) for x in (out, square, dims, shift)), strict=True)
    for result, q, d, s in pieces:
        result.copy_(_survival(q.clamp(0, LARGEST), d, s.clamp(0, LARGEST)))
    return out


def _pieces(x: Tensor) -> list[Tensor]:
    """``x`` in views of some ``PIECE`` elements, each again broadcast where ``x`` is."""
    if x.ndim == 0 or x.numel() <= PIECE:
        return [x]
    row = x[0].numel()
    if row > PIECE:
        return [piece for one in x for piece in _pieces(one)]
    return list(x.split(max(1, PIECE // row)))


def _survival(square: Tensor, dim: Tensor, shift: Tensor) -> Tensor:
    few = (dim < SERIES_BELOW[0]) & (shift < SERIES_BELOW[1])
    few &= (square.sqrt() - shift.sqrt()).square() < 2 * DEEP
    if bool(few.all()):
        return _by_series(square, dim, shift) if few.numel() else square
    result = _by_saddlepoint(square, dim, shift)
    if bool(few.any()):
        result[few] = _by_series(square[few], dim[few], shift[few])
    return result


def _by_saddlepoint(square: Tensor, dim: Tensor, shift: Tensor) -> Tensor:
    u, less, w = _saddlepoint(square, dim, shift)
    correction = _correction(u, less, w, dim, shift)
    deviation = (2 * dim + 4 * shift).sqrt()
    score = (square - dim - shift) / deviation
    near = score.abs() < NEAR_MEAN
    if bool(near.any()):
        correction[near] = _correction_near(score[near], dim[near], shift[near])
    # In units of the normal density at w, in which the normal tail is Mills' ratio.
    density = -0.5 * w.square() - LOG_ROOT_2PI
    tail = torch.special.erfcx(w.abs() * math.sqrt(0.5)) * math.sqrt(math.pi / 2)
    # Far out rounding may take the sum below 0, where its logarithm is nothing beside the density.
    right = density + (tail + correction).clamp_min(torch.finfo(tail.dtype).tiny).log()
    left = torch.log1p(-density.exp() * (tail - correction))
    return torch.where(w > 0, right, left)


def _saddlepoint(square: Tensor, dim: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``u = 1 / (1 - 2 s)`` at the saddlepoint s, ``u - 1``, and the signed root ``w``.

    In forms that subtract no equal numbers, whatever the dimension.
    """
    root = (dim * dim + 4 * shift * square).sqrt()
    u = 2 * square / (dim + root)
    less = 2 * (square - dim - shift) / (dim + 2 * shift + root)
    log = torch.where(less.abs() < 0.5, less.log1p(), u.log())
    w = (dim * (less - log) + shift * less.square()).clamp_min(0).sqrt().copysign(less)
    return u, less, w


def _correction(u: Tensor, less: Tensor, w: Tensor, dim: Tensor, shift: Tensor) -> Tensor:
    """What the saddlepoint adds to the normal tail at ``w``, by its density there."""
    pull = shift * u
    spread = 2 * dim + 4 * pull
    v = 2 / (less * spread.sqrt())  # the inverse of s times the root of the second cumulant
    third = (8 * dim + 24 * pull) / spread**1.5
    fourth = (48 * dim + 192 * pull) / spread**2
    w = 1 / w
    return v * (1 + fourth / 8 - third**2 * (5 / 24) - v * third / 2 - v * v) - w + w * w * w


def _correction_near(score: Tensor, dim: Tensor, shift: Tensor) -> Tensor:
    """The same about the mean, where it is smooth but 0 / 0: between its values at both ends."""
    reach = NEAR_MEAN * (2 * dim + 4 * shift).sqrt()
    below, above = (
        _correction(*_saddlepoint((dim + shift + end).clamp_min(0), dim, shift), dim, shift) for end in (-reach, reach)
    )
    return torch.lerp(below, above, (score / NEAR_MEAN + 1) / 2)


def _by_series(square: Tensor, dim: Tensor, shift: Tensor) -> Tensor:
    """Poisson mixture of central distributions, whose tails follow from one another by positive terms."""
    half, mean, shape = square / 2, shift / 2, dim / 2
    tail = torch.special.gammaincc(shape, half)
    term = (torch.special.xlogy(shape, half) - half - torch.lgamma(shape + 1)).exp()
    weight = (-mean).exp()
    total = weight * tail
    most = float((half.max() * mean.max()).sqrt().clamp_min(mean.max()))
    for j in range(1, int(most + 12 * math.sqrt(most) + 40)):
        tail = tail + term
        term = term * half / (shape + j)
        weight = weight * mean / j
        total = total + weight * tail
    return total.clamp_max(1).log()
