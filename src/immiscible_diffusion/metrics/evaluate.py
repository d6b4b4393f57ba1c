"""Score samples against a reference that is computed once per data set."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.metrics import prdc
from immiscible_diffusion.metrics.features.base import FeatureExtractor, data_batches, extract
from immiscible_diffusion.metrics.fid import (
    SPLITS,
    FeatureStatistics,
    Floor,
    floor_of,
    frechet_distance,
    statistics_and_floor,
)
from immiscible_diffusion.metrics.kid import kernel_distance
from immiscible_diffusion.metrics.reference_cache import StatisticsFile, read_npz
from immiscible_diffusion.utils.progress import watched
from immiscible_diffusion.utils.random import keyed_generator

METRICS = ("frechet", "kid", "precision", "recall", "density", "coverage", "memorization")
MAX_NEIGHBORS = 10_000  # features a side in metrics of nearest neighbors, which compare all pairs
_MAX_HELD = 2**30  # bytes of real features that are kept; larger sets are extracted again


@dataclass(frozen=True, eq=False)
class Reference:
    """The real side of every comparison. What takes time is computed once, when first needed."""

    statistics: FeatureStatistics  # of the real features
    features: str  # name of the extractor
    seed: int  # of the random splits and subsets
    # returns the real features [N, F], float32 on the CPU; None where statistics were given alone
    extract_real: Callable[[], Tensor] | None
    file: StatisticsFile | None = None  # where statistics and floor are cached, or None
    cached_floor: Floor | None = None  # the floor that was read from there
    source: Path | None = None  # the file of statistics, where they are all there is
    _manifolds: dict[tuple[int, int], prdc.Manifold] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, real: Tensor, features: str, seed: int = 0) -> "Reference":
        """The reference of real features [N, F], named ``features``."""
        return cls(FeatureStatistics.of(real), features, seed, lambda: real)

    @classmethod
    def from_npz(cls, path: Path, extractor: FeatureExtractor, count: int) -> "Reference":
        """The reference of statistics in a file, of the same features, and of ``count`` data if it says none."""
        return cls(read_npz(path, extractor.dim, count), extractor.name, 0, None, source=path)

    @cached_property
    def real(self) -> Tensor:
        """The real features [N, F]: only metrics other than the Frechet distance need them."""
        if self.extract_real is None:
            raise ValueError(
                f"{self.source} holds statistics alone, which give the Frechet distance only: ask for the metrics "
                f"frechet, without calibration, or leave the reference"
            )
        return self.extract_real()

    @cached_property
    def floor(self) -> Floor | None:
        """Frechet distance between real halves; None if a half has fewer than F + 1 features."""
        size = self.statistics.count // 2
        if self.cached_floor is not None or self.extract_real is None or size < self.statistics.dim + 1:
            return self.cached_floor
        floor = floor_of(self.real, size, self.seed)
        if self.file is not None:
            self.file.write(self.statistics, floor)
        return floor

    @cached_property
    def spacing(self) -> float:
        """Median distance of a real feature to its nearest other one."""
        return prdc.spacing(self.real)

    def subset(self, count: int) -> Tensor:
        """``count`` of the real features, chosen by the seed."""
        return _subsample(self.real, count, self.seed, "real")

    def manifold(self, count: int, k: int) -> prdc.Manifold:
        """The manifold of ``subset(count)``, with balls to the k-th neighbor."""
        if (count, k) not in self._manifolds:
            self._manifolds[count, k] = prdc.Manifold.of(self.subset(count), k)
        return self._manifolds[count, k]


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
        dataset: the training set: ``memorization`` looks for copies of it.
        extractor: makes the features.
        limit: use this many samples, at least 2, chosen at random by ``seed``; all by default.
        seed: of that choice, of the splits of the floor, and of KID's subsets.
        cache: folder of cached statistics, for a data set with a ``digest`` and an extractor with an ``identity``.
    """
    count = len(dataset) if limit is None else min(limit, len(dataset))
    if count < 2:
        raise ValueError(f"a reference needs at least 2 data, got {len(dataset)} and {limit=}")
    indices = torch.arange(len(dataset))
    if count < len(dataset):
        indices = torch.randperm(len(dataset), generator=keyed_generator(seed, "reference"))[:count].sort().values

    def extract_real() -> Tensor:
        batches = watched(data_batches(dataset, indices), count, f"features of {dataset.name}")
        return extract(extractor, batches)

    file = None
    if cache is not None and dataset.digest is not None and extractor.identity is not None:
        about = {
            "data": dataset.digest,
            "extractor": extractor.identity,
            "chosen": "all" if count == len(dataset) else f"{count} of {len(dataset)}, seed {seed}",
            "splits": f"{SPLITS}, seed {seed}",
        }
        file = StatisticsFile.of(about, cache)
    if file is not None and (cached := file.read()) is not None:
        return Reference(cached[0], extractor.name, seed, extract_real, file, cached[1])
    floor, read = None, extract_real
    if 4 * count * extractor.dim <= max(_MAX_HELD, 16 * SPLITS * extractor.dim**2):  # what the halves' scatters take
        real = extract_real()
        read = lambda: real  # noqa: E731
        statistics = stream_statistics(extractor.dim, real.split(4096))
    else:
        batches = watched(data_batches(dataset, indices), count, f"features of {dataset.name}")
        statistics, floor = statistics_and_floor(extractor.dim, map(extractor, batches), count, seed)
    if file is not None:
        file.write(statistics, floor)
    return Reference(statistics, extractor.name, seed, read, file, floor)


def stream_statistics(dim: int, features: Iterable[Tensor]) -> FeatureStatistics:
    """Statistics of batches of features [B, dim], none of which is kept."""
    statistics = FeatureStatistics.empty(dim)
    for part in features:
        statistics = statistics.update(part)
    return statistics


@dataclass(frozen=True)
class SampleMetrics:
    """Metrics of one set of samples; None where not asked for."""

    samples: int  # their number
    features: str  # the extractor's name
    frechet: float | None = None  # Frechet distance, 0 or more; lower is better
    pixels: float | None = None  # the Frechet distance of the pixels themselves
    kid: float | None = None  # kernel distance, about 0 for equal distributions; lower is better
    kid_error: float | None = None  # its standard error over subsets; None also where the sets were used complete
    precision: float | None = None  # fraction of samples near real data, in [0, 1]
    recall: float | None = None  # fraction of real data near samples, in [0, 1]
    density: float | None = None  # fidelity, about 1 for equal distributions
    coverage: float | None = None  # fraction of real data with a sample nearby, in [0, 1]
    memorization: float | None = None  # distance to the training data, 1 = as real data among themselves, 0 = copies

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
    """Score samples, given as features [M, F], against a reference.

    Precision, recall, density and coverage depend on the counts, so they take as many samples as
    real features (as 1904.06991 and 2002.09797 do), at most ``MAX_NEIGHBORS`` of each.

    The features are of the extractor that made the reference; statistics are enough for the Frechet
    distance alone, which with ``allow_few`` may be of fewer than F + 1 features.

    Raises:
        ValueError: on an unknown metric, features of another dimension, that are not finite, or
            too few for a metric that was asked for, or statistics where features are needed.
    """
    check_metrics(metrics)
    if isinstance(samples_features, FeatureStatistics):
        if needed := [name for name in metrics if name != "frechet"]:
            raise ValueError(f"{', '.join(needed)} need features, got their statistics alone")
        frechet = frechet_distance(samples_features, reference.statistics, allow_few=allow_few)
        count = samples_features.count
        return SampleMetrics(count, reference.features, frechet if metrics else None)
    features = samples_features
    values: dict[str, float | None] = {}
    if "frechet" in metrics:
        statistics = stream_statistics(features.shape[-1], features.split(4096))
        values["frechet"] = frechet_distance(statistics, reference.statistics, allow_few=allow_few)
    if "kid" in metrics:
        kid = kernel_distance(features, reference.real, seed=reference.seed)
        values |= {"kid": kid.mean, "kid_error": kid.standard_error}
    count = min(len(features), reference.statistics.count, MAX_NEIGHBORS)
    subset = _subsample(features, count, reference.seed, "samples")
    neighbors: dict[str, Callable[[], float]] = {
        "precision": lambda: prdc.precision(subset, reference.manifold(count, 3)),
        "recall": lambda: prdc.recall(subset, reference.subset(count)),
        "density": lambda: prdc.density(subset, reference.manifold(count, 5)),
        "coverage": lambda: prdc.coverage(subset, reference.manifold(count, 5)),
        "memorization": lambda: prdc.memorization(features, reference.real, real_spacing=reference.spacing),
    }
    values |= {name: compute() for name, compute in neighbors.items() if name in metrics}
    return SampleMetrics(len(features), reference.features, **values)


def _subsample(features: Tensor, count: int, seed: int, name: str) -> Tensor:
    """``count`` of the features, chosen by the seed; all of them in their order."""
    if count == len(features):
        return features
    order = torch.randperm(len(features), generator=keyed_generator(seed, "neighbours", name))
    return features[order[:count]]


def check_metrics(metrics: Sequence[str]) -> None:
    """Raise ValueError if one of ``metrics`` is unknown."""
    if unknown := [name for name in metrics if name not in METRICS]:
        hint = "; FID is frechet with the features inception" if "fid" in unknown else ""
        raise ValueError(f"unknown metrics {unknown}; options: {', '.join(METRICS)}{hint}")
