"""Features of data of any shape, with or without conditions, that need no trained network."""

from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.utils.random import keyed_generator

DIRECTIONS = 32
RANDOM_FEATURES = 64
CONDITION_DIRECTIONS = 8
WIDE, ROWS, ROWS_OF_WIDE = 2_000, 10_000, 2_000  # dimensions; samples that directions are fitted to


@dataclass(frozen=True, eq=False)
class GenericFeatures:
    """``[z, |x - mean - z V|, relu(z W + b) / sqrt(L), c]`` of a sample x, ``z = (x - mean) V^T``.

    The leading principal directions of the data, the length of what lies outside of them, random rectified features
    of these (so that a Frechet distance sees more than mean and covariance), and the leading principal directions of
    the conditions: the distance is then that of the joint distribution of data and conditions.
    """

    mean: Tensor  # [D]
    directions: Tensor  # [r, D], V
    weight: Tensor  # [F, L], W
    offset: Tensor  # [L], b
    condition_directions: Tensor  # [c, C]

    @classmethod
    def fit(cls, data: Tensor, conditions: Tensor | None = None, *, max_features: int = 128) -> "GenericFeatures":
        """Fit up to ``max_features`` to ``data`` ``[N, *shape]`` and ``conditions`` ``[N, C]``."""
        room = max(2, max_features)
        mean = data.flatten(1).mean(dim=0)
        directions = principal_directions(data.flatten(1), max(1, min(DIRECTIONS, room // 3)))
        inside = _inside(data, mean, directions)
        deviation = inside.var(dim=0).sum().sqrt()
        if conditions is None or not conditions.shape[1]:
            basis = torch.zeros(0, 0)
        else:
            basis = principal_directions(conditions, min(CONDITION_DIRECTIONS, room // 4))
            scale = conditions.var(dim=0).sum().sqrt().clamp_min(1e-6)
            basis = basis * (deviation / scale)
        count = max(0, min(RANDOM_FEATURES, room - inside.shape[1] - len(basis)))
        generator = keyed_generator(0, "probe features")
        weight = torch.randn(inside.shape[1], count, generator=generator)
        norm = torch.linalg.vector_norm(inside.std(dim=0)[:, None] * weight, dim=0)
        weight = weight / norm.clamp_min(1e-12)
        offset = torch.randn(count, generator=generator) - inside.mean(dim=0) @ weight
        return cls(mean, directions, weight * deviation, offset * deviation, basis)

    def __call__(self, data: Tensor, conditions: Tensor | None = None) -> Tensor:
        """Features ``[n, F]`` of ``data`` ``[n, *shape]`` with their ``conditions`` ``[n, C]``."""
        inside = _inside(data, self.mean, self.directions)
        parts = [inside]
        if len(self.offset):
            parts.append(torch.relu(inside @ self.weight + self.offset) / len(self.offset) ** 0.5)
        if conditions is not None and len(self.condition_directions):
            parts.append(conditions @ self.condition_directions.T)
        return torch.cat(parts, dim=1)

    def __str__(self) -> str:
        parts = [f"{len(self.directions)} principal directions of the data"]
        if len(self.mean) > len(self.directions):
            parts.append("the length of the rest")
        if len(self.offset):
            parts.append(f"{len(self.offset)} random rectified features of these")
        if len(self.condition_directions):
            parts.append(f"{len(self.condition_directions)} principal directions of the conditions")
        return ", ".join(parts)


def _inside(data: Tensor, mean: Tensor, directions: Tensor) -> Tensor:
    """Coordinates along the directions, and the length of what lies outside."""
    centered = data.flatten(1) - mean
    inside = centered @ directions.T
    if centered.shape[1] <= len(directions):
        return inside
    rest = centered.square().sum(dim=1) - inside.square().sum(dim=1)
    return torch.cat([inside, rest.clamp_min(0).sqrt()[:, None]], dim=1)


def principal_directions(values: Tensor, count: int) -> Tensor:
    """Leading principal directions ``[count, D]``, orthonormal, of ``values`` ``[N, D]``.

    Exact on some thousand rows drawn by a key: on the smaller of covariance and Gram matrix.
    """
    rows = ROWS if values.shape[1] <= WIDE else ROWS_OF_WIDE
    chosen = torch.randperm(len(values), generator=keyed_generator("probe conditions"))[:rows]
    centered = values[chosen].double()
    centered -= centered.mean(dim=0)
    count = min(count, *centered.shape)
    if centered.shape[1] <= len(centered):
        vectors = torch.linalg.eigh(centered.T @ centered).eigenvectors
    else:
        vectors = centered.T @ torch.linalg.eigh(centered @ centered.T).eigenvectors
        vectors /= torch.linalg.vector_norm(vectors, dim=0).clamp_min(1e-12)
    return vectors[:, -count:].flip(1).T.float().contiguous()
