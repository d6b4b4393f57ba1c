"""KNN noise selection, exact, without drawing the candidates.

*Improved Immiscible Diffusion* (arXiv 2505.18521, Algorithm 1) draws k Gaussian noises per datum
and keeps the nearest: O(k D) time and memory per datum. Here the same law costs O(k + D).

This file depends on torch alone: a trainer may vendor it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

# Rows are worked in blocks that stay in a CPU cache: 2 MiB a buffer, 170 images of CIFAR-10.
BLOCK_ELEMENTS = 1 << 19
FEW_DIMENSIONS = 64
SHORTEST = 1e-15  # data shorter than this have no direction: their pull is below rounding


class HasMean(Protocol):
    """What ``KNN.center`` needs: the mean of the data (``immiscible_diffusion.Moments`` has it)."""

    @property
    def mean(self) -> Tensor:
        """``[*shape]``, floating point."""


def check_data(data: Tensor) -> None:
    """Raise ValueError unless ``data`` is a floating-point tensor ``[B, *shape]``, B and D >= 1."""
    if not isinstance(data, Tensor) or not data.is_floating_point():
        kind = data.dtype if isinstance(data, Tensor) else type(data).__name__
        raise ValueError(f"data must be a floating-point tensor [B, ...], got {kind}")
    if data.ndim < 2 or data.numel() == 0:
        raise ValueError(
            f"data must have shape [B, ...] with at least one datum of at least one dimension, "
            f"got {tuple(data.shape)}"
        )


def check_rows_finite(size: Tensor, first_row: int = 0) -> None:
    """Raise ValueError naming the first row whose ``size`` (``[n, ...]``) is not finite.

    Only on the CPU: elsewhere the look would stall the device, and a bad row gives NaN noise.
    """
    if size.device.type != "cpu" or bool(torch.isfinite(size).all()):
        return
    bad = int((~torch.isfinite(size.flatten(1)).all(dim=1)).nonzero()[0])
    raise ValueError(
        f"data row {first_row + bad} is not finite (or longer than its dtype can square); "
        f"mend the data before pairing it with noise"
    )


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype to select in: float64 for float64 data, float32 for everything shorter."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def row_blocks(data: Tensor) -> Iterator[slice]:
    """Slices over the rows of ``data``: cache-sized on a CPU, everything at once elsewhere."""
    rows = len(data)
    if data.device.type == "cpu":
        rows = max(1, BLOCK_ELEMENTS * len(data) // data.numel())
    for start in range(0, len(data), rows):
        yield slice(start, min(start + rows, len(data)))


@dataclass(frozen=True)
class KNN:
    """The nearest of k independent Gaussian noises for every datum, exact for any k.

    With ``u = data / |data|`` a Gaussian noise is ``a u + r w``: ``a ~ N(0, 1)``,
    ``r^2 ~ chi^2(D - 1)``, ``w`` uniform on the unit sphere across ``u``, all independent, and its
    squared distance to the datum is ``r^2 + a^2 - 2 a |data|`` plus a constant. So one noise is
    drawn whole, the k - 1 others as pairs ``(a, r)``, and if one of these is nearest the drawn
    noise gets its two lengths. Time and memory are those of one ``torch.randn``, plus O(k) scalars
    per datum worked in pieces.

    The result is *not* N(0, I): nearest noises are shorter, and drift toward the mean of the data
    (``center`` removes that drift). ``KL(noise | datum, N(0, I)) = log k - 1 + 1/k``.

    Args:
        k: candidates per datum, >= 1; ``k = 1`` is ``torch.randn`` bit for bit.
        center: fitted ``Moments``; distances are then taken from ``data - center.mean``.
    """

    k: int
    center: HasMean | None = None

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise ValueError(f"k must be a whole number >= 1, got {self.k!r}")
        if self.center is not None and not isinstance(getattr(self.center, "mean", None), Tensor):
            raise ValueError(
                f"center must be fitted Moments (or have a tensor .mean), got a "
                f"{type(self.center).__name__}; see Moments.fit"
            )

    @torch.no_grad()
    def __call__(
        self,
        data: Tensor,
        *,
        cond: dict[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw the noise of every datum.

        Args:
            data: ``[B, *shape]``, floating point, any device.
            cond: ignored; every datum has candidates of its own.
            generator: on the device of ``data``.

        Returns:
            Noise like ``data`` in shape, dtype and device; without gradient.

        Raises:
            ValueError: ``data`` is empty, not floating, of another shape than ``center``, or (CPU)
                has a row that is not finite; elsewhere such a row gets NaN noise.
        """
        check_data(data)
        if self.k == 1:
            return torch.randn(
                data.shape, dtype=data.dtype, device=data.device, generator=generator
            )
        blocks = list(row_blocks(data))
        length = torch.cat([_length(self._offset(data[rows])) for rows in blocks])
        check_rows_finite(length)
        dim = data[0].numel()
        rivals = _nearest_rivals(length, dim, self.k - 1, generator)
        noise = torch.empty(data.shape, dtype=data.dtype, device=data.device)
        scratch = length.new_empty(blocks[0].stop, dim)
        for rows in blocks:
            offset, out = self._offset(data[rows]), noise[rows]
            drawn = out.flatten(1).to(offset.dtype).normal_(generator=generator)
            _move_to_nearest(drawn, offset, rivals[rows], scratch[: len(drawn)])
            if drawn.dtype != out.dtype:
                out.copy_(drawn.view(out.shape))
        return noise

    def _offset(self, data: Tensor) -> Tensor:
        """``[n, D]``: the data, less the center, in the dtype to select in."""
        offset = data.to(_selection_dtype(data))
        if self.center is not None:
            mean = self.center.mean
            if mean.shape != data.shape[1:]:
                raise ValueError(
                    f"center was fitted on data of shape {tuple(mean.shape)}, "
                    f"got {tuple(data.shape[1:])}; fit Moments on data of this shape"
                )
            offset = offset - mean.to(offset)
        return offset.flatten(1)


def _selection_dtype(data: Tensor) -> torch.dtype:
    """float64 also in few dimensions, where a noise may lie almost along its datum."""
    few = data[0].numel() < FEW_DIMENSIONS and data.device.type != "mps"
    return torch.float64 if few else working_dtype(data.dtype)


def _length(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1, keepdim=True)


def _nearest_rivals(
    length: Tensor, dim: int, count: int, generator: torch.Generator | None
) -> Tensor:
    """The nearest of ``count`` noises to each datum of ``length`` ``[B, 1]``, as scalars.

    Returns ``[B, 4]``: 1 / length^2 (0 for a zero row), then of the rival its squared distance less
    length^2, its length along the datum in units of ``length``, and its length across. A zero row
    has no direction: all its noise counts as across.

    The distance is r^2 + a^2 - 2 a |x|: (a - |x|)^2 + r^2 loses its digits for long data and then
    picks wrongly.
    """
    directed = length > SHORTEST
    inverse = torch.where(directed, 1 / length, 0 * length)
    degrees = dim - directed.to(length.dtype)
    best = torch.cat([torch.full_like(length, torch.inf), length, length], dim=1)
    piece = max(64, dim // 4)  # scalars in pieces that are no larger than the noise
    for start in range(0, count, piece):
        shape = (len(length), min(piece, count - start))
        along = directed * torch.randn(
            shape, dtype=length.dtype, device=length.device, generator=generator
        )
        square = _chi_square(degrees.expand(shape), generator)
        distance, index = (square + along * (along - 2 * length)).min(dim=1, keepdim=True)
        found = torch.cat([distance, along.gather(1, index), square.gather(1, index).sqrt()], dim=1)
        best = torch.where(distance < best[:, :1], found, best)
    distance, along, radius = best.split(1, dim=1)
    return torch.cat([inverse.square(), distance, along * inverse, radius], dim=1)


def _chi_square(degrees: Tensor, generator: torch.Generator | None) -> Tensor:
    """Chi-square draws, on the CPU for devices that have no gamma sampler (MPS)."""
    device = degrees.device
    if device.type in ("cpu", "cuda"):
        return torch._standard_gamma(degrees / 2, generator=generator).mul_(2)
    seed = torch.randint(2**31, (1,), device=device, generator=generator)
    on_cpu = torch.Generator().manual_seed(int(seed))
    return torch._standard_gamma(degrees.cpu() / 2, generator=on_cpu).mul_(2).to(device)


def _move_to_nearest(noise: Tensor, offset: Tensor, rivals: Tensor, scratch: Tensor) -> None:
    """Give ``noise`` ``[n, D]``, in place, the lengths of its rival where the rival is nearer.

    Few passes over the noise and few operations on scalars: both count (``benchmarks/``). A row of
    data that is not finite stays at nothing and gets NaN.
    """
    inverse_square, rival_distance, rival_along, rival_radius = rivals.split(1, dim=1)
    dot = torch.mul(noise, offset, out=scratch).sum(dim=1, keepdim=True)
    square = _length(noise).square()
    stays = torch.sub(square, dot, alpha=2) <= rival_distance
    along = dot * inverse_square  # in units of the datum's length, as rival_along
    across = torch.addcmul(square, dot, along, value=-1).clamp_min_(torch.finfo(square.dtype).tiny)
    stretch = across.rsqrt_().mul_(rival_radius)
    shift = torch.addcmul(rival_along, stretch, along, value=-1)
    noise.mul_(stretch.masked_fill_(stays, 1)).addcmul_(offset, shift.masked_fill_(stays, 0))
