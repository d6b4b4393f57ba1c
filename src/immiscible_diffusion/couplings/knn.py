"""KNN noise selection, exact, without drawing the candidates.

*Improved Immiscible Diffusion* (arXiv 2505.18521, Algorithm 1) draws k Gaussian noises per sample
and keeps the nearest: O(k D) time and memory per sample. The same distribution costs O(k + D) here.

This file, ``base.py``, ``_knn_kernels.py`` and ``_validation.py`` depend on torch alone: a trainer
may vendor them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from immiscible_diffusion.couplings._knn_kernels import (
    distances_to,
    length_of,
    move_to_nearest,
    nearest_rivals,
    offset_of,
)
from immiscible_diffusion.couplings._validation import (
    BLOCK_ELEMENTS,
    can_sync,
    check_data,
    check_rows_finite,
    row_blocks,
    valid_positions,
)
from immiscible_diffusion.couplings.base import (
    Cond,
    Coupling,
    Mask,
    Noise,
    Rng,
    check_noise,
    start_noise,
)

CENTERS = {"mean": "mean", "label": "label_mean", "channel": "channel_mean"}


class HasMean(Protocol):
    """What a center is taken from; ``immiscible_diffusion.Moments`` has it all.

    ``center="label"`` also needs ``label_mean`` ``[L, *shape]``, ``center="channel"`` needs
    ``channel_mean`` ``[C]``.
    """

    @property
    def mean(self) -> Tensor:
        """``[*shape]``, floating point."""


@dataclass(frozen=True)
class KNN(Coupling):
    """The nearest of k independent Gaussian noises for every sample, exact for any k.

    With ``u = data / |data|`` a Gaussian noise is ``a u + r w``: ``a ~ N(0, 1)``,
    ``r^2 ~ chi^2(D - 1)``, ``w`` uniform on the unit sphere across ``u``, all independent, and its
    squared distance to the sample is ``r^2 + a^2 - 2 a |data|`` plus a constant. So one noise is
    drawn whole, the k - 1 others as pairs ``(a, r)``, and if one of these is nearest the drawn
    noise gets its two lengths. Time and memory are those of one ``torch.randn``, plus O(k) scalars
    per sample worked in pieces.

    The result is *not* N(0, I): nearest noises are shorter, and drift toward the mean of the data
    (``center`` removes that drift). ``KL(noise | sample, N(0, I)) = log k - 1 + 1/k``.

    Args:
        k: candidates per sample, >= 1; ``k = 1`` is ``torch.randn`` bit for bit.
        center: what distances are taken from: fitted ``Moments`` (their mean), or with ``moments``
            given ``"mean"``, ``"label"`` (the mean of the sample's label, in ``cond[label_key]``),
            or ``"channel"`` (one mean a channel, so data of any size).
        moments: for a ``center`` that is a word.
        label_key: the condition that holds the labels ``[B]``, for ``center="label"``.
    """

    k: int
    center: HasMean | Literal["mean", "label", "channel"] | None = None
    moments: HasMean | None = None
    label_key: str = "label"

    name = "knn"

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise ValueError(f"k must be a whole number >= 1, got {self.k!r}")
        if isinstance(self.center, str) and self.center not in CENTERS:
            raise ValueError(f"center must be {', '.join(CENTERS)} or Moments, got {self.center!r}")
        if isinstance(self.center, str) == (self.moments is None):
            raise ValueError(
                f"center={self.center!r} and moments={self.moments!r} do not go together: a center "
                f"that is a word needs moments=Moments.fit(...), any other takes none"
            )
        if self.center is not None and not isinstance(self._means(), Tensor):
            raise ValueError(
                f"center must be fitted Moments with a tensor .{self._attribute}, got a "
                f"{type(self.moments or self.center).__name__}; see Moments.fit (label: on pairs)"
            )

    def __repr__(self) -> str:
        fields = {"center": self.center, "moments": self.moments}
        more = "".join(f", {name}={x!r}" for name, x in fields.items() if x is not None)
        return f"KNN(k={self.k}{more})"

    @property
    def preserves_marginal(self) -> bool:
        """Whether k is 1."""
        return self.k == 1

    def preserves_conditional(self, key: str) -> bool:
        """Whether k is 1."""
        return self.k == 1

    def options(self) -> dict[str, object]:
        """``k``, and ``center`` as a word."""
        if self.center is None:
            return {"k": self.k}
        return {"k": self.k, "center": self.center if isinstance(self.center, str) else "mean"}

    def choose(self, data: Tensor, noise: Noise, cond: Cond, mask: Mask, generator: Rng) -> Tensor:
        """The nearest noise to every sample; ``noise`` of the caller's is the first candidate.

        It gets other lengths, along the sample and across it, where one of the k - 1 others is
        nearer. For noise that is not N(0, I) see ``select``. A sample is its valid positions (data
        elsewhere are not read); the others get independent N(0, I) noise. On a CPU a row that is
        not finite is a ValueError; elsewhere it gets NaN.
        """
        if noise is not None:
            check_noise(data, noise)
            check_rows_finite(length_of(noise.flatten(1)), what="noise")
            noise = noise.to(data, copy=True, memory_format=torch.contiguous_format)
        if self.k == 1:
            return start_noise(data, None, generator) if noise is None else noise
        if noise is not None:
            return self._move(noise, data, cond, mask, generator)
        empty = torch.empty(data.shape, dtype=data.dtype, device=data.device)
        return self._move(empty, data, cond, mask, generator, draw=True)

    @torch.no_grad()
    def select(
        self,
        data: Tensor,
        candidates: Tensor,
        *,
        cond: Cond = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The nearest of ``candidates`` ``[B, k, *shape]`` to every sample, over valid positions.

        For noise that is not isotropic (offset noise, colored noise). Candidates are worked in
        pieces; no tensor of their size is made.
        """
        check_data(data)
        if candidates.shape != (len(data), self.k, *data.shape[1:]):
            raise ValueError(
                f"candidates must be {(len(data), self.k, *data.shape[1:])}, k = {self.k} for each "
                f"sample, got {tuple(candidates.shape)}"
            )
        valid = valid_positions(mask, data)
        offset = offset_of(data, valid, self.center_of(data, cond)(slice(None)))
        check_rows_finite(length_of(offset))
        pieces = candidates.split(max(1, BLOCK_ELEMENTS // data.numel()), dim=1)
        distance = torch.cat([distances_to(piece, offset, valid) for piece in pieces], dim=1)
        if can_sync(distance) and not bool(distance.isfinite().all()):
            raise ValueError("candidates are not finite (or longer than their dtype can square)")
        return candidates[torch.arange(len(data), device=data.device), distance.argmin(dim=1)]

    def _move(
        self,
        noise: Tensor,
        data: Tensor,
        cond: Cond,
        valid: Tensor | None,
        generator: torch.Generator | None,
        draw: bool = False,
    ) -> Tensor:
        """``noise``, drawn first where asked, moved in place to the nearest candidates."""
        center = self.center_of(data, cond)
        blocks = list(row_blocks(data))
        valids = [None if valid is None else valid[rows] for rows in blocks]
        pairs = list(zip(blocks, valids, strict=True))
        length = torch.cat([length_of(offset_of(data[r], v, center(r))) for r, v in pairs])
        check_rows_finite(length)
        dim = data[0].numel()
        dims = torch.full_like(length, dim)
        if valid is not None:
            dims = torch.cat([valid[rows].flatten(1).sum(dim=1, keepdim=True) for rows in blocks])
        # Scalars in pieces that are no larger than the noise.
        rivals = nearest_rivals(length, dims, self.k - 1, max(64, dim // 4), generator)
        scratch = length.new_empty(blocks[0].stop, dim)
        for rows, v in pairs:
            offset, out = offset_of(data[rows], v, center(rows)), noise[rows]
            own = out.flatten(1).to(offset.dtype)
            own = own.normal_(generator=generator) if draw else own
            flat = None if v is None else v.flatten(1)
            move_to_nearest(own, offset, rivals[rows], scratch[: len(own)], flat)
            if own.dtype != out.dtype:
                out.copy_(own.view(out.shape))
        return noise

    def _means(self) -> Tensor | None:
        source = self.moments if isinstance(self.center, str) else self.center
        return getattr(source, self._attribute, None)

    @property
    def _attribute(self) -> str:
        return CENTERS[self.center] if isinstance(self.center, str) else "mean"

    def center_of(self, data: Tensor, cond: Cond) -> Callable[[slice], Tensor | None]:
        """A function from rows of ``data`` to the points that their distances are taken from."""
        means = self._means() if self.center is not None else None
        if means is None:
            return lambda rows: None
        means = means.to(data.device)  # a copy at every call, unless they are there already
        shape, fitted = tuple(data.shape[1:]), tuple(means.shape)
        if self.center == "channel":
            _check_fitted(fitted, shape[:1], "fit Moments on data of as many channels")
            spread = means.view(-1, *(1 for _ in shape[1:]))
            return lambda rows: spread
        advice = 'fit Moments on data of this shape, or use center="channel" for data of many sizes'
        if self.center != "label":
            _check_fitted(fitted, shape, advice)
            return lambda rows: means
        _check_fitted(fitted[1:], shape, advice)
        labels = _labels(cond, self.label_key, len(data), len(means), data.device)
        if can_sync(labels):
            return lambda rows: means[labels[rows]]
        known = (labels >= 0) & (labels < len(means))  # others get NaN: to look would stall

        def centers(rows: slice) -> Tensor:
            found = means[labels[rows].clamp(0, len(means) - 1)]
            wrong = ~known[rows].view(-1, *(1 for _ in shape))
            return found.masked_fill(wrong, torch.nan)

        return centers


def _check_fitted(fitted: tuple[int, ...], shape: tuple[int, ...], advice: str) -> None:
    if fitted != shape:
        raise ValueError(f"center was fitted on data of shape {fitted}, got {shape}; {advice}")


def _labels(cond: Cond, key: str, count: int, classes: int, device: torch.device) -> Tensor:
    """``cond[key]``: whole numbers ``[count]`` below ``classes``."""
    if cond is None or key not in cond:
        known = ", ".join(cond or {}) or "none"
        raise ValueError(f'center="label" needs cond["{key}"]; conditions given: {known}')
    labels = cond[key]
    if labels.shape != (count,) or labels.is_floating_point():
        raise ValueError(
            f'cond["{key}"] must be whole numbers [{count}], got {labels.dtype} '
            f"{tuple(labels.shape)}"
        )
    if can_sync(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(
            f'cond["{key}"] runs from {int(labels.min())} to {int(labels.max())}; the moments know '
            f"labels 0 to {classes - 1} (give the true label, also where the model's is dropped)"
        )
    return labels.long().to(device)
