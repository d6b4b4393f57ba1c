"""The one loss that means the same at every step and for every coupling."""

import dataclasses
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from immiscible_diffusion.applications.pusht.config import DemonstrationConfig, load_windows
from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.training.codec import Codec
from immiscible_diffusion.training.load import alike, load_data
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.random import RandomStreams

VALIDATED = 512
TESTED = ("cifar10", "fashion_mnist")  # sets with a test split


class Part(NamedTuple):
    """As many as go through the network at a time."""

    data: Tensor
    noise: Tensor
    t: Tensor
    cond: dict[str, Tensor] | None
    mask: Tensor | None


@dataclass(frozen=True)
class Validation:
    """Fixed data, independent noise and times.

    On the set's test split where it has one, else on training data (``split`` says which).
    """

    data: Tensor
    noise: Tensor
    t: Tensor
    cond: dict[str, Tensor] | None
    split: str
    mask: Tensor | None = None
    at_once: int = VALIDATED

    @classmethod
    def of(
        cls, recipe: Recipe, dataset: DataSet, device: torch.device, codec: Codec
    ) -> "Validation":
        """Up to 512 data, as in training; the same for every coupling and seed."""
        held_out, split = _validation_set(recipe, dataset, codec)
        streams = RandomStreams(0, rank=0)
        same = alike(held_out)
        rows = same[torch.randperm(len(same), generator=streams.order)[:VALIDATED]]
        encode = RandomStreams(0, rank=0, device=device).encode
        batch = _joined(
            codec.encode(held_out.batch(part).to(device), encode)
            for part in rows.split(codec.at_once)
        )
        noise = torch.randn(batch.data.shape, generator=streams.noise)
        t = recipe.path.sample_time(len(rows), generator=streams.time)
        batch = recipe.as_seen(batch)
        cond = batch.cond if recipe.conditional else None
        rest = (noise.to(device), t.to(device), cond, split, batch.mask, codec.at_once)
        return cls(batch.data, *rest)

    def parts(self) -> Iterator[Part]:
        """All of them, a part at a time."""
        for start in range(0, len(self.data), self.at_once):
            rows = slice(start, start + self.at_once)
            cond = self.cond and {name: value[rows] for name, value in self.cond.items()}
            mask = None if self.mask is None else self.mask[rows]
            yield Part(self.data[rows], self.noise[rows], self.t[rows], cond, mask)


def _joined(batches: Iterator[Batch]) -> Batch:
    every = list(batches)
    if len(every) == 1:
        return every[0]
    cond = {name: torch.cat([(b.cond or {})[name] for b in every]) for name in every[0].cond or {}}
    mask = (
        torch.cat([b.mask for b in every if b.mask is not None])
        if every[0].mask is not None
        else None
    )
    return Batch(torch.cat([batch.data for batch in every]), cond or None, mask)


def _validation_set(recipe: Recipe, dataset: DataSet, codec: Codec) -> tuple[DataSet, str]:
    if isinstance(recipe.data, DemonstrationConfig):
        return load_windows(recipe.data)[1], "held-out episodes"
    known = recipe.data.name in TESTED and recipe.data.split == "train"
    if known and not getattr(dataset, "encoded", False):
        config = dataclasses.replace(recipe.data, split="test", limit=VALIDATED, stream=False)
        try:
            return load_data(recipe, codec, config), "test"
        except ValueError as error:  # a local folder without a test split, say
            warnings.warn(f"validation uses training data: {error}", stacklevel=2)
    return dataset, recipe.data.split
