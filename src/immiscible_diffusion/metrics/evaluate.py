"""How good a set of samples is, against a reference made once per data set."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.metrics.equal_counts import NEIGHBOURS, Neighbors, chosen
from immiscible_diffusion.metrics.features.base import FeatureExtractor, data_batches, extract
from immiscible_diffusion.metrics.fid import FeatureStatistics, frechet_distance
from immiscible_diffusion.metrics.kid import kernel_distance
from immiscible_diffusion.metrics.noise_floor import SPLITS, Floor, floor_of
from immiscible_diffusion.metrics.prdc import (
    coverage,
    density,
    memorisation,
    precision,
    recall,
    spacing,
)
from immiscible_diffusion.metrics.reference_cache import StoredStatistics
from immiscible_diffusion.utils.random import keyed_generator

METRICS = ("frechet", "kid", "precision", "recall", "density", "coverage", "memorisation")
_HELD = 2**30  # bytes of real features that are kept; larger sets are gone through again


@dataclass(frozen=True, eq=False)
class Reference:
    """The real side of every comparison. What takes time is computed once, when first asked for.

    Attributes:
        statistics: of the real features.
        features: name of the extractor.
        seed: of the random splits and subsets.
        extracted: gives the real features [N, F], float32 on the CPU.
        stored: where statistics and floor are kept on disk, if they are.
        known: the floor as read from there.
    """

    statistics: FeatureStatistics
    features: str
    seed: int
    extracted: Callable[[], Tensor]
    stored: StoredStatistics | None = None
    known: Floor | None = None
    neighbors: dict[int, "Neighbors"] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, real: Tensor, features: str, seed: int = 0) -> "Reference":
        """The reference of real features [N, F], named ``features``."""
        return cls(FeatureStatistics.of(real), features, seed, lambda: real)

    @cached_property
    def real(self) -> Tensor:
        """The real features [N, F]: only metrics other than the Frechet distance need them."""
        return self.extracted()

    @cached_property
    def floor(self) -> Floor | None:
        """Frechet distance between real halves; None if a half has fewer than F + 1 features."""
        size = self.statistics.count // 2
        if self.known is not None or size < self.statistics.dim + 1:
            return self.known
        floor = floor_of(self.real, size, self.seed)
        if self.stored is not None:
            self.stored.write(self.statistics, floor)
        return floor

    def equal(self, samples: Tensor) -> tuple[Tensor, "Neighbors"]:
        """As many of ``samples`` as of the real features, at most ``NEIGHBOURS`` of each.

        Precision, recall, density and coverage depend on the counts and compare at equal ones only
        (1904.06991 and 2002.09797 have them so); all pairs of more would take hours.
        """
        count = min(len(samples), self.statistics.count, NEIGHBOURS)
        if count not in self.neighbors:
            self.neighbors[count] = Neighbors(chosen(self.real, count, self.seed, "real"))
        return chosen(samples, count, self.seed, "samples"), self.neighbors[count]

    @cached_property
    def spacing(self) -> float:
        """Median distance of a real feature to its nearest other one."""
        return spacing(self.real)


def make_reference(
    dataset: DataSet,
    extractor: FeatureExtractor,
    *,
    limit: int | None = None,
    seed: int = 0,
    cache: Path | None = None,
) -> Reference:
    """The reference of a data set under an extractor.

    Args:
        dataset: the training set: ``memorisation`` looks for copies of it.
        extractor: makes the features.
        limit: use this many data, chosen at random by ``seed``; all by default. Copies of data
            left out are not seen as such.
        seed: of that choice, of the splits of the floor, and of KID's subsets.
        cache: folder where statistics are kept, and looked for; None for none. Needs a data set
            with a ``digest`` and an extractor with an ``identity``.

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
    stored = _place(dataset, extractor, count, seed, cache)
    extracted = partial(_extracted, dataset, extractor, indices)
    if found := stored and stored.read():
        return Reference(found[0], extractor.name, seed, extracted, stored, found[1])
    if 4 * count * extractor.dim <= _HELD:
        real = extracted()
        extracted = partial(_same, real)
        statistics = stream_statistics(extractor.dim, real.split(4096))
    else:
        batches = data_batches(dataset, indices)
        statistics = stream_statistics(extractor.dim, map(extractor, batches))
    if stored is not None:
        stored.write(statistics)
    return Reference(statistics, extractor.name, seed, extracted, stored)


def _extracted(dataset: DataSet, extractor: FeatureExtractor, indices: Tensor) -> Tensor:
    return extract(extractor, data_batches(dataset, indices))


def _same(real: Tensor) -> Tensor:
    return real


def _place(
    dataset: DataSet, extractor: FeatureExtractor, count: int, seed: int, cache: Path | None
) -> StoredStatistics | None:
    """Where the statistics belong; None if data or features cannot be told from others."""
    digest = getattr(dataset, "digest", None)
    identity = getattr(extractor, "identity", None)
    if cache is None or digest is None or identity is None:
        return None
    chosen = "all" if count == len(dataset) else f"{count} of {len(dataset)}, seed {seed}"
    about = {
        "data": str(digest),
        "extractor": identity,
        "chosen": chosen,
        "splits": f"{SPLITS}, seed {seed}",
    }
    return StoredStatistics.of(about, cache)


def stream_statistics(dim: int, features: Iterable[Tensor]) -> FeatureStatistics:
    """Statistics of batches of features [B, dim], none of which is kept."""
    statistics = FeatureStatistics.empty(dim)
    for part in features:
        statistics = statistics.update(part)
    return statistics


@dataclass(frozen=True)
class SampleMetrics:
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
    samples_features: Tensor | FeatureStatistics,
    reference: Reference,
    *,
    metrics: Sequence[str] = METRICS,
    allow_few: bool = False,
) -> SampleMetrics:
    """Measure samples, given as features [M, F], against a reference.

    Args:
        samples_features: from the extractor that made the reference; statistics are enough for the
            Frechet distance alone.
        reference: the real side.
        metrics: which to compute, of :data:`METRICS`.
        allow_few: accept a Frechet distance from fewer than F + 1 features.

    Raises:
        ValueError: on an unknown metric, features of another dimension, that are not finite, or
            too few for a metric that was asked for, or statistics where features are needed.
    """
    check_metrics(metrics)
    if isinstance(samples_features, FeatureStatistics):
        if needed := [name for name in metrics if name != "frechet"]:
            raise ValueError(f"{', '.join(needed)} need features, got their statistics alone")
        frechet = frechet_distance(samples_features, reference.statistics, allow_few=allow_few)
        return SampleMetrics(
            samples_features.count, reference.features, frechet if metrics else None
        )
    values: dict[str, float | None] = {}
    if "frechet" in metrics:
        statistics = stream_statistics(samples_features.shape[-1], samples_features.split(4096))
        values["frechet"] = frechet_distance(statistics, reference.statistics, allow_few=allow_few)
    if "kid" in metrics:
        kid = kernel_distance(samples_features, reference.real, seed=reference.seed)
        values |= {"kid": kid.mean, "kid_error": kid.standard_error}
    if wanted := [name for name in _NEIGHBOURS if name in metrics]:
        some, near = reference.equal(samples_features)
        values |= {name: _NEIGHBOURS[name](some, near) for name in wanted}
    if "memorisation" in metrics:
        values["memorisation"] = memorisation(
            samples_features, reference.real, real_spacing=reference.spacing
        )
    return SampleMetrics(samples=len(samples_features), features=reference.features, **values)


def check_metrics(metrics: Sequence[str]) -> None:
    """ValueError if one of ``metrics`` is unknown."""
    unknown = [name for name in metrics if name not in METRICS]
    if unknown:
        raise ValueError(f"unknown metrics {unknown}; options: {', '.join(METRICS)}")


_NEIGHBOURS: dict[str, Callable[[Tensor, Neighbors], float]] = {
    "precision": lambda samples, near: precision(samples, near.manifold),
    "recall": lambda samples, near: recall(samples, near.real),
    "density": lambda samples, near: density(samples, near.wide_manifold),
    "coverage": lambda samples, near: coverage(samples, near.wide_manifold),
}
