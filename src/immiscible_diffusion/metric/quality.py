"""How good a set of samples is, against a reference made once per data set."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import torch
from torch import Tensor

from immiscible_diffusion.data.batch import DataSet
from immiscible_diffusion.metric.features import FeatureExtractor, data_batches, extract
from immiscible_diffusion.metric.frechet import FeatureStatistics, frechet_distance
from immiscible_diffusion.metric.kernel import kernel_distance
from immiscible_diffusion.metric.neighbours import (
    Manifold,
    coverage,
    density,
    memorisation,
    precision,
    recall,
    spacing,
)
from immiscible_diffusion.rng import keyed_generator

METRICS = ("frechet", "kid", "precision", "recall", "density", "coverage", "memorisation")
_SPLITS = 10


@dataclass(frozen=True)
class Floor:
    """Frechet distance between random disjoint halves of the real set: what cannot be resolved.

    It is made with ``size`` features a side. Fewer features mean a larger distance, so samples
    measured against the whole set can fall below it; differences smaller than it mean little.

    Attributes:
        mean: over the random splits.
        low: the smallest.
        high: the largest.
        size: features in each half.
    """

    mean: float
    low: float
    high: float
    size: int

    @property
    def note(self) -> str:
        """The floor in words, for reports."""
        return (
            f"two random halves of the real set ({self.size} each) are {self.mean:.3g} apart "
            f"({self.low:.3g} to {self.high:.3g} over {_SPLITS} splits)"
        )


@dataclass(frozen=True, eq=False)
class Reference:
    """The real side of every comparison. What takes time is computed once, when first asked for.

    Attributes:
        real: features [N, F], float32 on the CPU.
        statistics: of ``real``.
        features: name of the extractor.
        seed: of the random splits and subsets.
    """

    real: Tensor
    statistics: FeatureStatistics
    features: str
    seed: int = 0

    @cached_property
    def floor(self) -> Floor | None:
        """Frechet distance between real halves; None if a half has fewer than F + 1 features."""
        size = len(self.real) // 2
        if size < self.statistics.dim + 1:
            return None
        values = [self._distance_of_halves(split, size) for split in range(_SPLITS)]
        return Floor(sum(values) / len(values), min(values), max(values), size)

    def _distance_of_halves(self, split: int, size: int) -> float:
        generator = keyed_generator(self.seed, "floor", split)
        order = torch.randperm(len(self.real), generator=generator)
        halves = (self.real[order[:size]], self.real[order[size : 2 * size]])
        return frechet_distance(*map(FeatureStatistics.of, halves))

    @cached_property
    def manifold(self) -> Manifold:
        """Balls to the 3rd neighbour, for precision."""
        return Manifold.of(self.real, 3)

    @cached_property
    def wide_manifold(self) -> Manifold:
        """Balls to the 5th neighbour, for density and coverage."""
        return Manifold.of(self.real, 5)

    @cached_property
    def spacing(self) -> float:
        """Median distance of a real feature to its nearest other one."""
        return spacing(self.real)


def make_reference(
    dataset: DataSet, extractor: FeatureExtractor, *, limit: int | None = None, seed: int = 0
) -> Reference:
    """The reference of a data set under an extractor.

    Args:
        dataset: the training set: ``memorisation`` looks for copies of it.
        extractor: makes the features.
        limit: use this many data, chosen at random by ``seed``; all by default. Copies of data
            left out are not seen as such.
        seed: of that choice, of the splits of the floor, and of KID's subsets.

    Raises:
        ValueError: if ``limit`` or the data set is below 2.
    """
    count = len(dataset) if limit is None else min(limit, len(dataset))
    if count < 2:
        raise ValueError(f"a reference needs at least 2 data, got {len(dataset)} and {limit=}")
    indices = torch.arange(len(dataset))
    if count < len(dataset):
        order = torch.randperm(len(dataset), generator=keyed_generator(seed, "reference"))
        indices = order[:count].sort().values
    real = extract(extractor, data_batches(dataset, indices))
    return Reference(real, FeatureStatistics.of(real), extractor.name, seed)


@dataclass(frozen=True)
class Quality:
    """Metrics of one set of samples; None where not asked for.

    Attributes:
        samples: how many were measured.
        features: the extractor's name.
        frechet: Frechet distance, 0 or more; lower is better.
        kid: kernel distance, about 0 for equal laws; lower is better.
        kid_error: its standard error over subsets; None also where the sets were taken whole.
        precision: share of samples near real data, in [0, 1].
        recall: share of real data near samples, in [0, 1].
        density: fidelity, about 1 for equal laws.
        coverage: share of real data with a sample nearby, in [0, 1].
        memorisation: distance to the training data, 1 = as real data among themselves, 0 = copies.
    """

    samples: int
    features: str
    frechet: float | None = None
    kid: float | None = None
    kid_error: float | None = None
    precision: float | None = None
    recall: float | None = None
    density: float | None = None
    coverage: float | None = None
    memorisation: float | None = None

    def as_dict(self) -> dict[str, float | int | str | None]:
        """All fields, ready for JSON."""
        return asdict(self)


def measure(
    samples_features: Tensor,
    reference: Reference,
    *,
    metrics: Sequence[str] = METRICS,
    allow_few: bool = False,
) -> Quality:
    """Measure samples, given as features [M, F], against a reference.

    Args:
        samples_features: from the extractor that made the reference.
        reference: the real side.
        metrics: which to compute, of :data:`METRICS`.
        allow_few: accept a Frechet distance from fewer than F + 1 features.

    Raises:
        ValueError: on an unknown metric, features of another dimension, that are not finite, or
            too few for a metric that was asked for.
    """
    unknown = [name for name in metrics if name not in METRICS]
    if unknown:
        raise ValueError(f"unknown metrics {unknown}; options: {', '.join(METRICS)}")
    values: dict[str, float | None] = {}
    for name in metrics:
        if name == "frechet":
            statistics = FeatureStatistics.of(samples_features)
            values[name] = frechet_distance(statistics, reference.statistics, allow_few=allow_few)
        elif name == "kid":
            kid = kernel_distance(samples_features, reference.real, seed=reference.seed)
            values |= {"kid": kid.mean, "kid_error": kid.standard_error}
        else:
            values[name] = _NEIGHBOURS[name](samples_features, reference)
    return Quality(samples=len(samples_features), features=reference.features, **values)


_NEIGHBOURS: dict[str, Callable[[Tensor, Reference], float]] = {
    "precision": lambda samples, reference: precision(samples, reference.manifold),
    "recall": lambda samples, reference: recall(samples, reference.real),
    "density": lambda samples, reference: density(samples, reference.wide_manifold),
    "coverage": lambda samples, reference: coverage(samples, reference.wide_manifold),
    "memorisation": lambda samples, reference: memorisation(
        samples, reference.real, real_spacing=reference.spacing
    ),
}
