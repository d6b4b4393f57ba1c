"""Samples chosen for the noise: batches of indices for a ``torch.utils.data.DataLoader``."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.couplings.semidiscrete_plan import SemidiscretePlan, check_plan
from immiscible_diffusion.utils.checks import NonNegativeInt, PositiveInt, check_fields
from immiscible_diffusion.utils.random import keyed_generator


@dataclass(frozen=True)
class NoiseFirst:
    """Samples for the noise, the other way round: a ``batch_sampler`` for ``torch.utils.data.DataLoader``.

    Batch number ``step`` has the noise ``noise(step)``, which is N(0, I) in all dimensions, given a label of the plan
    too, and the indices of the samples that it belongs to. There is no table, and a step costs a product with
    ``[N, r]``. Samples come equally often in the long run, not once an epoch (of equal ones the first). There is no
    end, and a step depends on ``seed`` and ``rank`` alone, so that training resumes from ``start``.

    Args:
        plan: of the data set, ``SemidiscretePlan.fit``; on whose device the noise is.
        batch_size: of this rank.
        seed: of noise and labels.
        rank: each has its own.
        start: the first step.
    """

    plan: SemidiscretePlan
    batch_size: PositiveInt
    seed: int = 0
    rank: NonNegativeInt = 0
    start: NonNegativeInt = 0

    def __post_init__(self) -> None:
        check_fields(self)
        check_plan(self.plan, None if getattr(self.plan, "labels", None) is None else "label")

    def noise(self, step: int) -> Tensor:
        """``[batch_size, *shape]``: that of batch ``step``."""
        shape, device = (self.batch_size, *self.plan.mean.shape), self.plan.mean.device
        return torch.randn(shape, device=device, generator=self._generator("noise", step))

    def indices(self, step: int) -> Tensor:
        """``[batch_size]`` int64: the samples of batch ``step``."""
        labels = self.plan.labels
        if labels is not None:
            generator = self._generator("label", step)
            labels = labels[torch.randint(len(labels), (self.batch_size,), device=labels.device, generator=generator)]
        return self.plan.sample_of(self.noise(step), labels)

    def __iter__(self) -> Iterator[list[int]]:
        for step in itertools.count(self.start):
            yield self.indices(step).tolist()

    def _generator(self, name: str, step: int) -> torch.Generator:
        return keyed_generator(self.seed, step, self.rank, f"{name} first", device=self.plan.mean.device)
