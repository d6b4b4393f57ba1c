"""Statistics of real features on disk, so that the real side is computed once per data set."""

import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from immiscible_diffusion.data.array_files import ArrayFile
from immiscible_diffusion.metrics.fid import FeatureStatistics, Floor
from immiscible_diffusion.utils.atomic_files import atomic_path
from immiscible_diffusion.utils.random import hash_seed
from immiscible_diffusion.utils.tensor_files import load_tensors, save_tensors

log = logging.getLogger(__name__)

VERSION = 1  # of the file and of what is in it


def cache_folder(cache: Path | None = None) -> Path:
    """``cache``, else $IMMISCIBLE_CACHE, else ~/.cache/immiscible-diffusion."""
    folder = cache or os.environ.get("IMMISCIBLE_CACHE")
    return Path(folder) if folder else Path.home() / ".cache" / "immiscible-diffusion"


def read_npz(path: Path, dim: int, count: int) -> FeatureStatistics:
    """Read the ``mu`` and ``sigma`` of clean-fid or pytorch-fid, of ``count`` data unless the file has a ``count``.

    ValueError unless they are of ``dim`` finite features.
    """
    with ArrayFile.open(path) as file:
        mean, covariance = (torch.as_tensor(file.read(name), dtype=torch.float64) for name in ("mu", "sigma"))
        count = int(file.read("count")) if "count" in file.names else count
    if mean.shape != (dim,) or covariance.shape != (dim, dim) or not covariance.isfinite().all():
        raise ValueError(
            f"{path} holds mu {list(mean.shape)} and sigma {list(covariance.shape)}; expected finite ones of the "
            f"{dim} features"
        )
    return FeatureStatistics(count, mean, covariance * (count - 1))


def write_npz(path: Path, statistics: FeatureStatistics) -> None:
    """Write statistics as clean-fid and pytorch-fid read them, and their ``count``."""
    mean, covariance = statistics.mean.numpy(), statistics.covariance.numpy()
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, mu=mean, sigma=covariance, count=np.int64(statistics.count))


@dataclass(frozen=True)
class StatisticsFile:
    """Where the statistics of one reference are cached, as safetensors."""

    path: Path
    about: dict[str, str]  # data set, extractor with preprocessing and weights, which data were used

    @classmethod
    def of(cls, about: dict[str, str], cache: Path | None = None) -> "StatisticsFile":
        """The file in the cache folder for statistics of ``about``, named by a hash of it."""
        about = {"version": str(VERSION), **about}
        key = hash_seed(*sorted(map(str, about.items())))
        return cls(cache_folder(cache) / f"reference-v{VERSION}-{key:016x}.safetensors", about)

    def write(self, statistics: FeatureStatistics, floor: Floor | None = None) -> None:
        """Store, complete or not at all; a failure costs only the next computation."""
        tensors = {"mean": statistics.mean, "scatter": statistics.scatter}
        more = {"count": str(statistics.count), "floor": json.dumps(floor and asdict(floor))}
        try:
            save_tensors(self.path, tensors, {**self.about, **more})
        except OSError as error:
            log.warning("could not cache statistics in %s (%s)", self.path.parent, error)

    def read(self) -> tuple[FeatureStatistics, Floor | None] | None:
        """Statistics and floor; None if there are none or, with a warning, damaged ones or those of other features."""
        if not self.path.exists():
            return None
        try:
            tensors, record = load_tensors(self.path)
            for key, value in self.about.items():
                if record.get(key) != value:
                    raise ValueError(f"they are of other features ({key}: {record.get(key)!r}, not {value!r})")
            mean, scatter = tensors["mean"], tensors["scatter"]
            if scatter.shape != (len(mean), len(mean)) or not scatter.isfinite().all():
                raise ValueError(f"expected a finite scatter [{len(mean)}, {len(mean)}]")
            floor = json.loads(record["floor"])
            statistics = FeatureStatistics(int(record["count"]), mean, scatter)
            return statistics, Floor(**floor) if floor else None
        except (ValueError, KeyError, TypeError) as error:
            log.warning("the statistics in %s (%s) are computed again", self.path, error)
            return None
