"""The plan of semidiscrete optimal transport: which noise belongs to which sample of a data set.

With one number ``b_j`` for each of N samples, a noise n belongs to ``argmax_j <n, x_j> + b_j``. There is a ``b`` with
which every sample gets the N-th part of all noise, and this map is then the optimal transport from N(0, I) to the data
set (SD-FM, 2509.25519; AlignFlow, 2510.15038): a linear assignment with every noise there is. It is found once,
before the first step; a batch then looks its noise up, so that any batch size will do.
"""

import os
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from immiscible_diffusion.couplings._validation import check_fitted, check_labels, check_rows_finite
from immiscible_diffusion.couplings.assignment import LinearAssignment
from immiscible_diffusion.couplings.moments import AT_A_TIME, Data, Moments, TensorFields, along, groups, split_labels
from immiscible_diffusion.couplings.semidiscrete_fit import Progress, balanced, check_max_steps, fit_shares, owners
from immiscible_diffusion.utils.random import keyed_generator

UNFITTED: dict[str, Any] = {"max_steps": 0}  # to try a coupling before there is a plan
NEIGHBORS = 1024  # noises of a table that are assigned to their samples together


@dataclass(frozen=True, eq=False)
class SemidiscretePlan(TensorFields):
    """Which noise belongs to which sample of a data set.

    Only the component of a noise along ``directions`` matters, the leading ones of the data: what is across them is
    left to chance. With labels there is a plan for each label, so that the noise given a label is N(0, I) as well.

    Attributes:
        mean: ``[*shape]`` of the data.
        directions: ``[r, D]`` orthonormal.
        samples: ``[N, r]``: the data less ``mean`` along the directions.
        bias: ``[N]``: ``b``; equal samples have it in common.
        first: ``[N]`` int64: the first sample (of the same label) that is equal, which has their share.
        chi_square: ``N sum_j p_j^2 - 1`` for shares ``p_j`` of the noise, 0 if all are 1 / N; of several
            labels the largest; inf where nothing was counted (``max_steps=0``).
        labels: ``[N]`` int64 of a plan within each label, or None.
    """

    mean: Tensor
    directions: Tensor
    samples: Tensor
    bias: Tensor
    first: Tensor
    chi_square: float
    labels: Tensor | None = None

    description = "a semidiscrete plan"
    parsers: ClassVar = {"chi_square": float}

    @classmethod
    def fit(
        cls,
        data: Data,
        moments: Moments,
        *,
        rank: int | None = None,
        tolerance: float = 0.02,
        max_steps: int = 4000,
        seed: int = 0,
        progress: Progress | None = None,
        device: torch.device | str | None = None,
        state: str | os.PathLike[str] | None = None,
    ) -> "SemidiscretePlan":
        """Find ``b`` for ``data`` in the order of their index: a tensor ``[N, *shape]``, or batches.

        By averaged stochastic descent (``fit_shares``): some ``N / tolerance`` noises, each a product with ``[N, r]``.

        Args:
            data: with their mirror images, if training mirrors; a batch may come as ``(data, labels)``, for a plan
                within each label.
            moments: of the data, with directions.
            rank: how many of the directions; all by default.
            tolerance: of the chi-square of the shares, > 0; those of ``sample_of`` are so equal. Tables, which are
                balanced, gain little below the default.
            max_steps: where it stops otherwise, with a warning. With 0 the start is kept: enough for tables that
                ``sweeps`` refine, and for ``Quantile``.
            seed: of the noise.
            progress: called with the steps done and the chi-square.
            device: where to work; that of the data by default.
            state: a file that has the fit of these data at its last check (at most one in ``SECONDS``), from which
                one that was killed resumes; it is removed at the end.

        Raises:
            ValueError: fewer than 2 samples, values not finite, another shape than that of the moments, bad labels, a
                number out of its range.
        """
        if not isinstance(moments, Moments) or moments.directions is None:
            raise ValueError("a semidiscrete plan needs Moments.fit with directions")
        known = len(moments.directions)
        if rank is not None and not (isinstance(rank, int) and 1 <= rank <= known):
            raise ValueError(f"rank must be 1 to {known}, the known directions, got {rank!r}")
        check_max_steps(max_steps)
        if not tolerance > 0:
            raise ValueError(f"tolerance must be > 0, got {tolerance}")
        directions = moments.directions[:rank]
        samples, keys, labels = _read(data, moments.mean, directions, device)
        bias, first, worst = fit_shares(samples, keys, labels, tolerance, max_steps, seed, progress, state)
        if worst > tolerance and max_steps:
            warnings.warn(
                f"the shares of the samples differ by a chi-square of {worst:.2g} after {max_steps} steps, more than "
                f"{tolerance:g}; tables of noise are balanced all the same, at the cost of some of its pull",
                stacklevel=2,
            )
        return cls(moments.mean.to(samples), directions.to(samples), samples, bias, first, worst, labels)

    @cached_property
    def digest(self) -> str:
        """Short hash of the content: 16 hex digits."""
        return self.hash_content(repr(self.chi_square).encode(), self.tensors)

    @cached_property
    def length(self) -> float:
        """Root mean square length of the samples along the directions."""
        return float(self.samples.square().sum(dim=1).mean().sqrt())

    def sample_of(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Index ``[B]`` of the sample that each of ``noise`` ``[B, *shape]`` belongs to, among those of its label.

        Noise from N(0, I) gives every sample equally often (of equal samples always the first).
        """
        check_fitted("the plan was", self.mean.shape, noise.shape[1:], "give noise of the shape of the data")
        return self.owner_of(along(noise, torch.zeros_like(self.mean), self.directions), labels).to(noise.device)

    def owner_of(self, rows: Tensor, labels: Tensor | None = None) -> Tensor:
        """The same of noise that is known along the directions, ``[B, r]``; on the plan's device."""
        check_rows_finite(rows, "noise")
        device = self.samples.device
        rows = rows.to(device)
        if (labels is None) != (self.labels is None):
            raise ValueError(f"this plan was fitted {'with' if labels is None else 'without'} labels; give the same")
        if labels is not None:
            check_labels(labels, len(rows))
            labels = labels.to(device)
        index = torch.full((len(rows),), -1, device=device)
        for name, members in groups(self.labels, self.samples):
            mine = torch.arange(len(rows), device=device) if labels is None else (labels == name).nonzero()[:, 0]
            distinct = members[self.first[members] == members]
            index[mine] = distinct[owners(rows[mine], self.samples[distinct], self.bias[distinct])]
        if bool((unknown := index < 0).any()):
            raise ValueError(f"the plan has no samples of label {int(labels[unknown][0])}")  # type: ignore[index]
        return index

    def table(self, noises: int, seed: int, number: int, sweeps: int = 0) -> Tensor:
        """``[N, noises, r]`` float16: noise along the directions for every sample, table ``number`` of ``seed``.

        ``N noises`` are drawn from N(0, I) and each belongs to its sample; of those with more than ``noises`` some are
        handed on to samples with fewer, where they score best. So the table as a whole is N(0, I). Each of ``sweeps``
        then solves assignments of ``NEIGHBORS`` noises, to samples side by side in a random direction.
        """
        result = self.samples.new_empty(len(self.samples), noises, self.samples.shape[1], dtype=torch.float16)
        for name, members in groups(self.labels, self.samples):
            members = members[self.first[members].argsort(stable=True)]  # equal samples side by side
            distinct, count = self.first[members].unique_consecutive(return_counts=True)
            generator = keyed_generator(seed, number, "table", name, device=members.device)
            drawn = torch.randn(
                len(members) * noises, self.samples.shape[1], device=members.device, generator=generator
            )
            plan = self.samples[distinct], self.bias[distinct]
            owner = balanced(owners(drawn, *plan), count * noises, drawn, *plan)
            own, mine = drawn[owner.argsort(stable=True)], self.samples[members]
            for _ in range(sweeps):
                axis = torch.randn(own.shape[1], device=own.device, generator=generator)
                place = torch.mv(mine, axis, out=axis.new_empty(len(mine)))  # with out=: see ``product``
                order = place.argsort(stable=True).repeat_interleave(noises) * noises
                order += torch.arange(noises, device=own.device).repeat(len(members))
                for rows in order.tensor_split(-(-len(own) // NEIGHBORS)):
                    own[rows] = LinearAssignment().pair(mine[rows // noises], own[rows])
            result[members] = own.view(len(members), noises, -1).half()
        return result

    def __repr__(self) -> str:
        shape = f"shape={tuple(self.mean.shape)}, rank={len(self.directions)}"
        return f"SemidiscretePlan({shape}, count={len(self.samples)}, digest={self.digest})"


def plan_of(data: Tensor, labels: Tensor | None, moments: Moments, within: bool, **options: Any) -> SemidiscretePlan:
    """The plan of ``data``, or one within each of ``labels``; ``options`` are those of ``SemidiscretePlan.fit``."""
    if not within:
        return SemidiscretePlan.fit(data, moments, **options)
    if labels is None:
        raise ValueError("cond_key=label needs data with labels")
    return SemidiscretePlan.fit([(data, labels)], moments, **options)


def check_plan(plan: Any, cond_key: str | None) -> None:
    """Raise ValueError unless ``plan`` is one, within labels if there is a ``cond_key`` and without if not."""
    if not isinstance(plan, SemidiscretePlan):
        raise ValueError(f"plan must be SemidiscretePlan.fit(data, moments), got {type(plan).__name__}")
    if (cond_key is None) != (plan.labels is None):
        fitted = "without labels" if plan.labels is None else "within labels"
        raise ValueError(
            f"cond_key is {cond_key!r}, and the plan was fitted {fitted}; they must agree: within labels it is "
            f"SemidiscretePlan.fit([(data, labels)], moments)"
        )


def _read(
    data: Data, mean: Tensor, directions: Tensor, device: torch.device | str | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The samples along the directions ``[N, r]``, the keys of their content and their labels, on one device."""
    parts, keys, labels = [], [], []
    for batch, label in map(split_labels, [data] if isinstance(data, Tensor) else data):
        check_fitted("the moments were", mean.shape, batch.shape[1:], "fit them on these data")
        parts.append(along(batch, mean, directions))
        keys.append(content_keys(batch))
        labels.append(label)
    if (count := sum(map(len, parts))) < 2:
        raise ValueError(f"a semidiscrete plan needs at least 2 samples, got {count}")
    if len(with_labels := [label for label in labels if label is not None]) not in (0, len(labels)):
        raise ValueError("some batches came with labels, some without; give all labels or none")
    samples, key = torch.cat(parts).to(device), torch.cat(keys).to(device)
    check_rows_finite(samples.cpu())
    return samples, key, torch.cat(with_labels).long().to(samples.device) if with_labels else None


def content_keys(data: Tensor) -> Tensor:
    """``[B]`` int64, equal for equal rows of ``data``.

    For two others by a chance of some 2^-62; of values of few binary digits more, of 1 and -1 alone 2^-33.
    """
    generator = keyed_generator("content", device=data.device)
    factors = torch.randint(2**62, (data.shape[1:].numel(),), device=data.device, generator=generator)
    parts = (part.float() + 0.0 for part in data.detach().flatten(1).split(AT_A_TIME))  # -0 becomes 0
    return torch.cat([(part.contiguous().view(torch.int32).long() * factors).sum(dim=1) for part in parts])
