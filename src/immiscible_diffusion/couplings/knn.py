# SPDX-License-Identifier: Apache-2.0 (immiscible-diffusion)
"""KNN noise selection, exact, without drawing the candidates.

*Improved Immiscible Diffusion* (arXiv 2505.18521, Algorithm 1) draws k Gaussian noises per sample
and keeps the nearest: O(k D) time and memory per sample. The same distribution costs O(k + D) here.

This file, ``base.py``, ``_knn_kernels.py`` and ``_validation.py`` depend on torch alone: a trainer may copy the four
into a folder of its own, as they are; with ``_knn_triton.py`` noise on CUDA is drawn by one kernel.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ._knn_kernels import distances_to, length_of, move_to_nearest, nearest_rivals, offset_of
from ._validation import (
    BLOCK_ELEMENTS,
    can_sync,
    check_data,
    check_fitted,
    check_labels,
    check_rows_finite,
    is_compiling,
    row_blocks,
    rows_of_labels,
    take_condition,
    valid_positions,
)
from .base import Cond, Coupling, Independent, Mask, Noise, Rng, check_noise

CENTERS = {"mean": "mean", "label": "label_mean", "channel": "channel_mean"}


@dataclass(frozen=True)
class KNN(Coupling):
    """The nearest of k independent Gaussian noises for every sample, exact for any k.

    With ``u = data / |data|`` a Gaussian noise is ``a u + r w``: ``a ~ N(0, 1)``, ``r^2 ~ chi^2(D - 1)``, ``w``
    uniform on the unit sphere across ``u``, all independent, and its squared distance to the sample is
    ``r^2 + a^2 - 2 a |data|`` plus a constant. So one noise is drawn whole, the k - 1 others as pairs ``(a, r)``, and
    if one of these is nearest the drawn noise gets its two lengths. Time and memory are those of one ``torch.randn``,
    plus O(k) scalars per sample worked in pieces. On CUDA, where Triton is installed, one kernel does it all; with a
    mask, a center or noise of the caller's, in float64 and under ``torch.compile`` there it takes some 25 operations.
    Both have the same distribution, from other random numbers; so has ``torch.compile`` on a CPU.

    The result is *not* N(0, I): nearest noises are shorter, and drift toward the mean of the data (``center`` removes
    that drift). ``KL(noise | sample, N(0, I)) = log k - 1 + 1/k``.

    Args:
        k: candidates per sample, >= 1; ``k = 1`` is ``torch.randn`` bit for bit.
        center: what distances are taken from: fitted ``Moments`` (their mean), or with ``moments`` given ``"mean"``,
            ``"label"`` (the mean of the sample's label, in ``cond[label_key]``), or ``"channel"`` (one mean a channel,
            so data of any size).
        moments: for a ``center`` that is a word: ``Moments``, or your own object with ``mean`` ``[*shape]``,
            ``label_mean`` ``[L, *shape]`` or ``channel_mean`` ``[C]``.
        label_key: the condition that holds the labels ``[B]``, for ``center="label"``.
    """

    k: int
    center: object | Literal["mean", "label", "channel"] | None = None
    moments: object | None = None
    label_key: str = "label"

    name = "knn"

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise ValueError(f"k must be a whole number >= 1, got {self.k!r}")
        if isinstance(self.center, str) and self.center not in CENTERS:
            raise ValueError(f"center must be {', '.join(CENTERS)} or Moments, got {self.center!r}")
        if isinstance(self.center, str) == (self.moments is None):
            got = f"{self.center!r} and {self.moments!r}"
            raise ValueError(f"center: a word needs moments=Moments.fit(...), any other takes none, got {got}")
        if self.center is not None and not isinstance(self._means(), Tensor):
            got = type(self.moments or self.center).__name__
            advice = "; fit them on batches (data, labels)" if self._attribute == "label_mean" else ""
            raise ValueError(f"center must be fitted Moments with a tensor .{self._attribute}, got a {got}{advice}")

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
        """With ``k``, and ``center`` as a word."""
        center = self.center if isinstance(self.center, str) else "mean"
        return {"k": self.k} | ({} if self.center is None else {"center": center}) | super().options()

    def choose(self, data: Tensor, noise: Noise, cond: Cond, mask: Mask, generator: Rng) -> Tensor:
        """The nearest noise to every sample; ``noise`` of the caller's is the first candidate.

        It gets other lengths, along the sample and across it, where one of the k - 1 others is nearer. For noise that
        is not N(0, I) see ``select``. A sample is its valid positions (data elsewhere are not read); the others get
        independent N(0, I) noise. On a CPU a row that is not finite is a ValueError; elsewhere it gets NaN.
        """
        if noise is not None:
            check_noise(data, noise)
            check_rows_finite(length_of(noise.flatten(1)), what="noise")
        if self.k == 1:
            return Independent().choose(data, noise, cond, mask, generator)
        if noise is None and mask is None and self.center is None and (one_kernel := _kernel_for(data)):
            return one_kernel(data, self.k, generator)
        result = torch.empty(data.shape, dtype=data.dtype, device=data.device)
        if noise is not None:
            result.copy_(noise)
        center = self.center_of(data, cond)
        blocks = [(rows, None if mask is None else mask[rows]) for rows in row_blocks(data)]

        def offset(rows: slice, valid: Mask) -> Tensor:
            return offset_of(data[rows], valid, center(rows))

        only = offset(*blocks[0]) if len(blocks) == 1 else None
        length = torch.cat([length_of(offset(*block)) for block in blocks]) if only is None else length_of(only)
        check_rows_finite(length)
        dim = data.shape[1:].numel()
        freedom: int | Tensor = dim - 1
        if mask is not None:
            freedom = torch.cat([mask[rows].flatten(1).sum(dim=1, keepdim=True) for rows, _ in blocks]).to(length) - 1
        # Scalars in pieces that are no larger than the noise; compiled all at once, in one graph for all sizes.
        piece = self.k - 1 if is_compiling() else max(64, dim // 4)
        rivals = nearest_rivals(length, freedom, self.k - 1, piece, generator)
        for rows, valid in blocks:
            x, out = offset(rows, valid) if only is None else only, result[rows]
            own = out.flatten(1).to(x.dtype)
            own = own.normal_(generator=generator) if noise is None else own
            mine = rivals if only is not None else [column[rows] for column in rivals]
            flat = None if valid is None else valid.flatten(1)
            move_to_nearest(own, x, mine, flat, isotropic=noise is None)
            if own.dtype != out.dtype:
                out.copy_(own.view(out.shape))
        return result

    @torch.no_grad()
    def select(self, data: Tensor, candidates: Tensor, *, cond: Cond = None, mask: Mask = None) -> Tensor:
        """The nearest of ``candidates`` ``[B, k, *shape]`` to every sample, over valid positions.

        For noise that is not isotropic (offset noise, colored noise). Candidates are worked in pieces; no tensor of
        their size is made.
        """
        check_data(data)
        expected, got = (len(data), self.k, *data.shape[1:]), tuple(candidates.shape)
        if got != expected:
            raise ValueError(f"candidates must be {expected}, k = {self.k} a sample, got {got}")
        valid = valid_positions(mask, data)
        offset = offset_of(data, valid, self.center_of(data, cond)(slice(None)))
        check_rows_finite(length_of(offset))
        pieces = candidates.split(max(1, BLOCK_ELEMENTS // data.numel()), dim=1)
        distance = torch.cat([distances_to(piece, offset, valid) for piece in pieces], dim=1)
        if can_sync(distance) and not bool(distance.isfinite().all()):
            raise ValueError("candidates are not finite (or longer than their dtype can square)")
        return candidates[torch.arange(len(data), device=data.device), distance.argmin(dim=1)]

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
        shape, fitted = data.shape[1:], means.shape
        if self.center == "channel":
            check_fitted("center was", fitted, shape[:1], "fit Moments on data of these channels")
            means = means.view(-1, *(1 for _ in shape[1:]))
            return lambda rows: means
        fitted = fitted[1:] if self.center == "label" else fitted
        advice = 'fit Moments on data of this shape, or use center="channel" for data of many sizes'
        check_fitted("center was", fitted, shape, advice)
        if self.center != "label":
            return lambda rows: means
        labels = take_condition(cond, self.label_key, 'center="label"')
        check_labels(labels, data.shape[0], len(means))
        labels = labels.long().to(data.device)
        return lambda rows: rows_of_labels(means, labels[rows])


_kernels: dict[torch.device, Callable[[Tensor, int, Rng], Tensor] | None] = {}


def _kernel_for(data: Tensor) -> Callable[[Tensor, int, Rng], Tensor] | None:
    """The one kernel, where it can run: it counts in 32 bits, and needs memory, which what wraps a tensor has not."""
    if not data.is_cuda or data.dtype == torch.float64 or is_compiling() or data.shape[1:].numel() >= 1 << 30:
        return None
    if type(data) not in (Tensor, torch.nn.Parameter) or torch._C._functorch.is_functorch_wrapped_tensor(data):
        return None
    if data.device not in _kernels and not torch.cuda.is_current_stream_capturing():
        _kernels[data.device] = _one_kernel(data.device)
    return _kernels.get(data.device)


def _one_kernel(device: torch.device) -> Callable[[Tensor, int, Rng], Tensor] | None:
    """The kernel if Triton is installed, as it is not on Windows and macOS, and runs on ``device``."""
    try:
        from ._knn_triton import knn_in_one_kernel

        knn_in_one_kernel(torch.zeros(1, 1, device=device), 2, torch.Generator(device))
    except ImportError:
        return None
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever Triton lacks: a C compiler, a card that it knows
        warnings.warn(f"Triton cannot run on {device}, so KNN takes several operations: {error}", stacklevel=2)
        return None
    return knn_in_one_kernel
