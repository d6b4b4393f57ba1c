"""Pair by a part of the data: their leading directions, or their averages over blocks of pixels."""

from dataclasses import dataclass

from torch import Tensor

from immiscible_diffusion.couplings._validation import check_fitted, product, working_dtype
from immiscible_diffusion.couplings.base import Cond, Mask, Noise, Rng, start_noise
from immiscible_diffusion.couplings.moments import Moments
from immiscible_diffusion.couplings.wrappers import Wrapper


@dataclass(frozen=True)
class Projected(Wrapper):
    """``coupling`` of data and noise under an orthonormal map A; what A leaves out of the noise stays as drawn.

    ``n' = n + A^T (m - A n)`` with m the noise that ``coupling`` makes of A n for A x. As A n is N(0, I) in its own
    dimensions, KNN noise selection by ``|A (n - x)|`` is exact, and an assignment stays N(0, I). In tens of thousands
    of dimensions all noises are about equally far from a sample, and its pull disappears in their length; few numbers
    that say what is in the sample give it back.

    Args:
        coupling: pairs ``[B, *small]``, and has been fitted to such data if to any.
        pool: A averages over blocks of ``pool`` positions of every dimension of a sample but the first (its
            channels), times the root of their number; sizes must be multiples of it.
        moments: A goes to the leading directions of the data, as rows ``[B, rank]``; with ``rank``.
        rank: how many of the directions.
    """

    pool: int | None = None
    moments: Moments | None = None
    rank: int | None = None

    name = "projected"
    takes_mask = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.pool is None) == (self.rank is None):
            raise ValueError(
                f"give pool (pixels a side) or rank (directions), got pool={self.pool} and rank={self.rank}"
            )
        if self.pool is not None and (type(self.pool) is not int or self.pool < 2):
            raise ValueError(f"pool must be a whole number >= 2, got {self.pool!r}")
        if self.rank is None:
            return
        if not isinstance(self.moments, Moments) or self.moments.directions is None:
            raise ValueError("rank needs moments=Moments.fit(data), with directions")
        if type(self.rank) is not int or not 1 <= self.rank <= len(self.moments.directions):
            known = len(self.moments.directions)
            raise ValueError(f"rank must be 1 to {known}, the known directions, got {self.rank!r}")

    def choose(self, data: Tensor, noise: Noise, cond: Cond, mask: Mask, generator: Rng) -> Tensor:
        """Noise ``[B, *shape]``; ValueError for a shape that the map does not take."""
        dtype = working_dtype(data.dtype)
        fresh = start_noise(data, noise, generator).to(dtype)
        if self.pool is not None:
            small, own = pooled(data.to(dtype), self.pool), pooled(fresh, self.pool)
            change = self.coupling.pair(small, own, cond=cond, generator=generator) - own
            return (fresh + spread(change, self.pool)).to(data.dtype)
        assert self.moments is not None
        assert self.moments.directions is not None
        check_fitted("moments were", self.moments.mean.shape, data.shape[1:], "fit them on data of this shape")
        axes = self.moments.directions[: self.rank].to(fresh)
        rows, own = data.to(dtype).flatten(1), product(fresh.flatten(1), axes.T)
        change = self.coupling.pair(product(rows, axes.T), own, cond=cond, generator=generator) - own
        return (fresh + product(change, axes).view(data.shape)).to(data.dtype)


def pooled(values: Tensor, size: int) -> Tensor:
    """Sums over blocks of ``size`` of every dimension from the third on, over the root of the block's number: A."""
    shape = values.shape
    if len(shape) < 3 or any(side % size for side in shape[2:]):
        raise ValueError(
            f"pool={size} needs data [B, channels, ...] whose other sizes are multiples of it, got {tuple(shape)}"
        )
    blocks = values.reshape(*shape[:2], *(part for side in shape[2:] for part in (side // size, size)))
    inner = tuple(range(3, blocks.ndim, 2))
    return blocks.sum(dim=inner) / size ** (len(inner) / 2)


def spread(values: Tensor, size: int) -> Tensor:
    """``A^T``: every value to the ``size`` positions of its block in each dimension."""
    for dim in range(2, values.ndim):
        values = values.repeat_interleave(size, dim=dim) / size**0.5
    return values
