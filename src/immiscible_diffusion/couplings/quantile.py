"""Quantile coupling (QC-FM, 2608.00978): noise has the rank of its sample along the leading directions of the data."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from immiscible_diffusion.couplings._validation import (
    check_fitted,
    check_labels,
    check_rows_finite,
    take_condition,
    to_float64,
    widest_dtype,
)
from immiscible_diffusion.couplings.base import Cond, Coupling, Mask, Noise, Rng, start_noise
from immiscible_diffusion.couplings.moments import along, groups, with_parts
from immiscible_diffusion.couplings.semidiscrete_plan import SemidiscretePlan, check_plan
from immiscible_diffusion.utils.checks import Fraction, PositiveInt, check_fields

EQUAL = 1e-5  # values closer than this, in root mean squares along their direction, share their ranks


@dataclass(frozen=True)
class Quantile(Coupling):
    """Optimal transport along each of a few directions by itself, with no cost matrix, for batches of any size.

    Along direction v a sample of rank i among the N of the data set has the noise ``Phi^-1((i + u) / N)``, u uniform
    in (0, 1): N(0, 1) exactly. Across the directions noise is fresh. With one direction all of the noise is N(0, I);
    with more it is uncorrelated, but depends as the data do along them, more so with each.

    Args:
        plan: has the samples along its directions; ``SemidiscretePlan.fit(data, moments, max_steps=0)`` is enough.
        rank: how many of the directions, the leading ones.
        share: of the samples that are paired; the others have independent noise.
        cond_key: "label" if the plan is to be one within each label, or None.
    """

    plan: SemidiscretePlan
    rank: PositiveInt = 1
    share: Fraction = 1.0
    cond_key: Literal["label"] | None = None

    name = "quantile"
    takes_mask = False  # its directions are of complete samples

    def __post_init__(self) -> None:
        check_fields(self)
        check_plan(self.plan, self.cond_key)
        if self.rank > (known := len(self.plan.directions)):
            raise ValueError(f"rank must be 1 to {known}, the directions of the plan, got {self.rank}")

    @property
    def preserves_marginal(self) -> bool:
        """With one direction."""
        return self.rank == 1

    def preserves_conditional(self, key: str) -> bool:
        """Given the label, with one direction and ranks within each label."""
        return self.preserves_marginal and key == self.cond_key

    def choose(self, data: Tensor, noise: Noise, cond: Cond, mask: Mask, generator: Rng) -> Tensor:
        """Noise for ``data`` ``[B, *shape]``; ValueError for another shape or a label that the plan does not know."""
        plan = self.plan
        check_fitted("the plan was", plan.mean.shape, data.shape[1:], "fit it on data of this shape")
        fresh = start_noise(data, noise, generator)
        labels = None if self.cond_key is None else take_condition(cond, self.cond_key, "ranks within a label")
        if labels is not None:
            check_labels(labels, len(data))
            labels = labels.to(data.device)
        directions = plan.directions[: self.rank]
        values = along(data, plan.mean, directions)
        check_rows_finite(values)
        level = torch.full(values.shape, torch.nan, dtype=widest_dtype(data.device), device=data.device)
        place = torch.rand(level.shape, dtype=level.dtype, device=data.device, generator=generator)
        tie, in_order = _sorted(plan, data.device)
        for label, known in in_order:
            rows = slice(None) if labels is None else labels == label
            own, known, count = values[rows], known[: self.rank], known.shape[1]
            low = torch.searchsorted(known, (own - tie[: self.rank]).T.contiguous()).clamp_max(count - 1)
            high = torch.searchsorted(known, (own + tie[: self.rank]).T.contiguous(), right=True)
            level[rows] = (low + place[rows].T * (high - low).clamp_min(1)).T / count
        if labels is not None and bool((unknown := level.isnan().any(dim=1)).any()):
            raise ValueError(f"the plan has no samples of label {int(labels[unknown][0])}")
        tiny = torch.finfo(level.dtype).eps
        parts = torch.special.ndtri(to_float64(level.clamp(tiny, 1 - tiny)))  # MPS has no ndtri either
        paired = with_parts(fresh, parts, directions)
        if self.share == 1:
            return paired
        chosen = torch.rand(len(data), device=data.device, generator=generator) < self.share
        return torch.where(chosen.view(-1, *(1 for _ in data.shape[1:])), paired, fresh)


@lru_cache(maxsize=2)
def _sorted(plan: SemidiscretePlan, device: torch.device) -> tuple[Tensor, list[tuple[int, Tensor]]]:
    """``[r]``: how close values are equal; and every label with its samples ``[r, n]``, in order."""
    tie = EQUAL * plan.samples.square().mean(dim=0).sqrt()
    return tie.to(device), [
        (label, plan.samples[rows].sort(dim=0).values.T.contiguous().to(device))
        for label, rows in groups(plan.labels, plan.samples)
    ]
