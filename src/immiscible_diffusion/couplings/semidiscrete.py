"""Semidiscrete coupling: every sample of the data set has noise from its own share of N(0, I)."""

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from immiscible_diffusion.couplings._validation import (
    can_sync,
    check_fitted,
    check_rows_finite,
    kind_of,
    rows_of_labels,
    take_condition,
)
from immiscible_diffusion.couplings.base import Cond, Coupling, Mask, Noise, Rng, start_noise
from immiscible_diffusion.couplings.moments import along, with_parts
from immiscible_diffusion.couplings.semidiscrete_plan import SemidiscretePlan, check_plan
from immiscible_diffusion.utils.checks import NonNegativeFloat, NonNegativeInt, PositiveInt, check_fields


@dataclass(frozen=True)
class Semidiscrete(Coupling):
    """Noise from the sample's own share of N(0, I), for batches of any size (2509.25519, 2510.15038).

    Each sample has ``noises`` noises along the plan's directions in a table, one of which is taken at random; across
    the directions noise is fresh. Over the data set the noise is N(0, I) whatever the batch; with a plan by label
    given a label too. Every ``refresh`` training steps there is a new table, a function of ``seed`` and step alone.

    Args:
        plan: of the data set, ``SemidiscretePlan.fit``.
        noises: of each sample in a table; N times noises times rank float16 are held, of the last two tables.
        refresh: steps after which a new table is drawn.
        sweeps: of exact assignment over each table; 8 bring one of a plan that was fitted with ``max_steps=0`` (a
            bijection of the whole set with ``noises=1``) within 1 % of the best pull on CIFAR-10, within 3 % on data
            of six dimensions; a fitted one needs none.
        seed: of the tables.
        cond_key: "label" if the plan is to be one within each label, or None.
        index_key: the condition with the index ``[B]`` of each sample in the data that the plan was fitted to.
        tolerance: how far a sample may be from that of its index, in root mean square lengths of the data; farther (of
            another set, augmented otherwise) is an error, on the CPU. More for latents that are sampled each time.
        number: of the table; ``at_step`` sets it.
    """

    plan: SemidiscretePlan
    noises: PositiveInt = 16
    refresh: PositiveInt = 1000
    sweeps: NonNegativeInt = 0
    seed: int = 0
    cond_key: Literal["label"] | None = None
    index_key: str = "index"
    tolerance: NonNegativeFloat = 0.01
    number: int = field(default=0, repr=False)

    name = "semidiscrete"
    preserves_marginal = True
    takes_mask = False  # its directions are of complete samples

    def __post_init__(self) -> None:
        check_fields(self)
        check_plan(self.plan, self.cond_key)

    def preserves_conditional(self, key: str) -> bool:
        """Given the label, if the plan is one within each label."""
        return key == self.cond_key

    def at_step(self, step: int) -> Coupling:
        """This with the table of the step."""
        number = step // self.refresh
        return self if number == self.number else replace(self, number=number)

    def choose(self, data: Tensor, noise: Noise, cond: Cond, mask: Mask, generator: Rng) -> Tensor:
        """``n + sum_v (z_v - <n, v>) v`` for noise n ``[B, *shape]`` and z of the table.

        ValueError for an index that is not one of the plan; NaN where plan and data are both on an accelerator.
        """
        plan = self.plan
        check_fitted("the plan was", plan.mean.shape, data.shape[1:], "fit it on data of this shape")
        index = self._index(data, cond)
        fresh = start_noise(data, noise, generator)
        table = _table(plan, plan.samples.device, self.noises, self.seed, self.number, self.sweeps)
        turn = torch.randint(self.noises, index.shape, device=data.device, generator=generator)
        chosen = rows_of_labels(table.flatten(0, 1), index * self.noises + turn.to(index.device))
        return with_parts(fresh, chosen.to(data.device), plan.directions)

    def _index(self, data: Tensor, cond: Cond) -> Tensor:
        """The checked index ``[B]``, where the plan is."""
        plan = self.plan
        index = take_condition(cond, self.index_key, "semidiscrete pairing, which looks noise up by sample,")
        whole = isinstance(index, Tensor) and not index.is_floating_point() and index.dtype != torch.bool
        if not whole or index.shape != data.shape[:1]:
            raise ValueError(
                f'cond["{self.index_key}"] must be a tensor of whole numbers [{len(data)}], got {kind_of(index)}'
            )
        index, readable = index.to(plan.samples.device).long(), can_sync(data)
        if readable or can_sync(index):
            low, high = int(index.min()), int(index.max())
            if low < 0 or high >= len(plan.samples):
                raise ValueError(f"index runs from {low} to {high}; the plan has samples 0 to {len(plan.samples) - 1}")
        if not readable:
            return index
        labels = (cond or {}).get("label")
        if plan.labels is not None and isinstance(labels, Tensor) and labels.shape == index.shape:
            wrong = labels.to(index.device) != plan.labels[index]
            if bool(wrong.any()):
                row = int(wrong.nonzero()[0, 0])
                raise ValueError(
                    f"data row {row} has label {labels[row].item()}, and sample {int(index[row])} of the plan "
                    f"{int(plan.labels[index[row]])}; give the labels that it was fitted with"
                )
        rows = along(data, plan.mean, plan.directions)
        check_rows_finite(rows)
        away = torch.linalg.vector_norm(rows - plan.samples[index].to(data.device), dim=1)
        if not bool((away <= self.tolerance * plan.length).all()):
            row = int(away.argmax())
            raise ValueError(
                f"data row {row} is not sample {int(index[row])} of the plan: it is "
                f"{float(away[row]) / max(plan.length, 1e-30):.3g} away, in root mean square lengths of the data. The "
                f"plan is of other data (or of these in another order than that of the index), or the sample was "
                f"augmented in a way that it does not know: fit it on the augmented data, each with an index of its "
                f"own, or raise tolerance"
            )
        return index


@lru_cache(maxsize=2)
def _table(plan: SemidiscretePlan, device: torch.device, noises: int, seed: int, number: int, sweeps: int) -> Tensor:
    """That of the plan, kept; on another ``device`` an equal plan draws other noise."""
    with torch.inference_mode(False), torch.no_grad():
        return plan.table(noises, seed, number, sweeps)
