"""What a probe judges by, for data of any kind and without a classifier."""

from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.couplings.incremental_pca import IncrementalPCA
from immiscible_diffusion.couplings.moments import Moments
from immiscible_diffusion.experiments.pilot.prepared import Prepared, is_label
from immiscible_diffusion.metrics import FeatureStatistics, Floor, frechet_distance
from immiscible_diffusion.utils.random import keyed_generator

DIRECTIONS = 32
LIFTED = 64  # random features
FROM_CONDITIONS = 8
SPLITS = 10
SAMPLED, SAMPLED_WIDE, WIDE = 5_000, 2_000, 2_000  # data that conditions are reduced by; numbers


@dataclass(frozen=True, eq=False)
class Features:
    """Numbers that say where a sample lies, fitted once to all data.

    The leading principal directions of the data, the length of what lies outside of them, random
    rectified features of these (so that a Frechet distance sees more than mean and covariance),
    and the conditions that the network is told: with them the distance is that of the joint law.

    Attributes:
        moments: of the data, with directions.
        weight: ``[F, L]`` of the random features.
        offset: ``[L]``.
        conditions: ``[N, c]``, by row of the data.
    """

    moments: Moments
    weight: Tensor
    offset: Tensor
    conditions: Tensor

    @classmethod
    def of(cls, prepared: Prepared) -> "Features":
        """Fitted to all data; there are at most a quarter as many as data to judge by."""
        room = max(2, prepared.held // 4)
        directions = max(1, min(DIRECTIONS, room // 3))
        moments = Moments.fit(prepared.batch.data, directions=directions)
        inside = _inside(moments, prepared.batch.data)
        conditions = _conditions(prepared, min(FROM_CONDITIONS, room // 4))
        lifted = max(0, min(LIFTED, room - inside.shape[1] - conditions.shape[1]))
        generator = keyed_generator(0, "probe features")
        weight = torch.randn(inside.shape[1], lifted, generator=generator)
        weight = weight / torch.linalg.vector_norm(inside.std(dim=0)[:, None] * weight, dim=0)
        deviation = inside.var(dim=0).sum().sqrt()
        offset = torch.randn(lifted, generator=generator) - inside.mean(dim=0) @ weight
        return cls(moments, weight * deviation, offset * deviation, conditions * deviation)

    def __call__(self, data: Tensor, rows: Tensor) -> Tensor:
        """Features ``[n, F]`` of ``data`` ``[n, *shape]``, told the conditions of ``rows``."""
        inside = _inside(self.moments, data)
        lifted = torch.relu(inside @ self.weight + self.offset) / max(1, len(self.offset)) ** 0.5
        return torch.cat([inside, lifted, self.conditions[rows]], dim=1)

    @property
    def note(self) -> str:
        """In words, for the page."""
        assert self.moments.directions is not None
        parts = [f"{len(self.moments.directions)} principal directions of the data"]
        if self.moments.mean.numel() > len(self.moments.directions):
            parts.append("the length of the rest")
        if len(self.offset):
            parts.append(f"{len(self.offset)} random rectified features of these")
        if self.conditions.shape[1]:
            parts.append(f"{self.conditions.shape[1]} of the conditions")
        return ", ".join(parts)


def _inside(moments: Moments, data: Tensor) -> Tensor:
    """Coordinates along the directions, and the length of what lies outside."""
    assert moments.directions is not None
    centerd = (data - moments.mean).flatten(1)
    inside = centerd @ moments.directions.T
    if centerd.shape[1] <= len(moments.directions):
        return inside
    rest = centerd.square().sum(dim=1) - inside.square().sum(dim=1)
    return torch.cat([inside, rest.clamp_min(0).sqrt()[:, None]], dim=1)


def _conditions(prepared: Prepared, most: int) -> Tensor:
    """The conditions told, as up to ``most`` numbers, each of variance 1 at most.

    Their leading principal directions, exact over some thousand data, drawn by a key.
    """
    cond, parts = prepared.batch.cond or {}, []
    for name in prepared.seen:
        values = cond[name]
        if is_label(values):
            parts.append(torch.nn.functional.one_hot(values).float())
        else:
            flat = values.reshape(len(values), -1).float()
            parts.append((flat - flat.mean(dim=0)) / flat.std(dim=0).clamp_min(1e-6))
    if not parts:
        return torch.zeros(len(prepared.batch), 0)
    every = torch.cat(parts, dim=1)
    some = SAMPLED if every.shape[1] <= WIDE else SAMPLED_WIDE
    rows = torch.randperm(len(every), generator=keyed_generator("probe conditions"))[:some]
    principal = IncrementalPCA(most)
    principal.update(every[rows].double())
    basis, _ = principal.leading(most)
    return (every @ basis.float().T) / every.var(dim=0).sum().sqrt().clamp_min(1e-6)


def floor_of(prepared: Prepared, features: Features) -> Floor:
    """Distances between disjoint sets of real data, of the size that samples are judged by."""
    size, values = prepared.held, []
    for split in range(SPLITS):
        order = torch.randperm(len(prepared), generator=keyed_generator(split, "probe floor"))
        sets = (order[:size], order[size : 2 * size])
        found = [FeatureStatistics.of(features(prepared.take(rows).data, rows)) for rows in sets]
        values.append(frechet_distance(*found, allow_few=True))
    return Floor(sum(values) / len(values), min(values), max(values), size)
