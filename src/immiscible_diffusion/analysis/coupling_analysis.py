"""One coupling of an analysis: everything that is measured of it, part by part."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from immiscible_diffusion.analysis.cache import Cache, content_of, content_of_coupling, slug
from immiscible_diffusion.analysis.conditions import Condition, conditions, is_label
from immiscible_diffusion.analysis.config import AnalysisConfig
from immiscible_diffusion.analysis.couplings import CouplingBuilder, candidates_of
from immiscible_diffusion.analysis.density_estimation import density_for
from immiscible_diffusion.analysis.miscibility import Progress, miscibility
from immiscible_diffusion.analysis.noise_density import PairDensity, take
from immiscible_diffusion.analysis.noise_statistics import LARGEST_FIT, gaussian_fit, measure_noise
from immiscible_diffusion.analysis.noisy_points import images_of
from immiscible_diffusion.analysis.thumbnails import ThumbnailStyle, write_thumbnails
from immiscible_diffusion.couplings import Coupling
from immiscible_diffusion.data.in_memory import InMemoryData, join_notes
from immiscible_diffusion.reporting.analysis.records import (
    CouplingRecord,
    DataRecord,
    GaussianFit,
    Miscibility,
    NoiseStatistics,
    Thumbnails,
)
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.serialization import to_dict

LARGEST_LABEL_COUNT = 64  # of which each has its own noise measured
FIT_LENGTH = 20_000  # about, in noisy points
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Setup:
    """Data, and what is to be measured on them with every coupling."""

    source: InMemoryData  # where the data come from: name, note, classes
    images: Batch  # all data, their conditions and mask
    conditioned_on: tuple[str, ...]  # names of the conditions that the model is given
    conditions: tuple[Condition, ...]  # these, as the analysis uses them
    config: AnalysisConfig  # what is measured, and how well
    cache: Cache  # where it is kept

    @classmethod
    def of(
        cls,
        source: InMemoryData,
        conditioned_on: Sequence[str] | None,
        config: AnalysisConfig,
        folder: Path | None,
    ) -> "Setup":
        """Check that everything fits.

        Raises:
            ValueError: what does not fit, or that the folder holds another analysis.
        """
        images = images_of(source.batch.data, source.batch.cond, source.batch.mask, None)
        if len(images) < 2:
            raise ValueError("an analysis needs at least 2 samples, got 1")
        names = tuple((images.cond or {}) if conditioned_on is None else conditioned_on)
        given = tuple(conditions(images.cond, names, config.bandwidth))
        if config.bandwidth is not None and not any(one.weights for one in given):
            raise ValueError("a bandwidth is for continuous conditions, and there is none")
        dim = images.data[0].numel()
        if config.gaussian_fit and images.mask is not None:
            raise ValueError("the Gaussian fit takes no mask")
        if config.gaussian_fit and dim > LARGEST_FIT:
            raise ValueError(
                f"the Gaussian fit takes at most {LARGEST_FIT:,} dimensions, and data have {dim:,}"
            )
        settings = to_dict(config) | {"conditioned_on": list(names)}
        del settings["gaussian_fit"]  # may be added later
        cache = Cache(folder, {"name": source.name, "digest": content_of(images)}, settings)
        cache.planned()
        return cls(source, images, names, given, config, cache)

    @cached_property
    def data(self) -> Tensor:
        """``[N, *shape]``, 0 outside the mask."""
        return take(self.images, slice(0, None)).data

    @cached_property
    def builder(self) -> CouplingBuilder:
        """What couplings are built with."""
        by_label = "label" in self.conditioned_on
        return CouplingBuilder(self.images, self.config.batch_size, self.config.seed, by_label)

    @cached_property
    def style(self) -> ThumbnailStyle:
        """How samples are drawn."""
        return ThumbnailStyle.of(self.data)

    @cached_property
    def label_key(self) -> str | None:
        """The condition by which the noise is measured apart: the first label, if not of many."""
        labels = {name: v for name, v in (self.images.cond or {}).items() if is_label(v)}
        first = next((name for name in (*self.conditioned_on, *labels) if name in labels), None)
        few = first is not None and len(labels[first].unique()) <= LARGEST_LABEL_COUNT
        return first if few else None

    @property
    def labels(self) -> Tensor | None:
        """``[N]``, that condition."""
        return None if self.label_key is None else (self.images.cond or {})[self.label_key]

    def record(self) -> DataRecord:
        """What was analyzed."""
        mask, drawn = self.images.mask, self.config.thumbnails and self.cache.folder is not None
        count = self.data.numel() if mask is None else int(mask.expand_as(self.data).sum())
        return DataRecord(
            name=self.source.name,
            note=join_notes(self.source.note, self.style.note if drawn else ""),
            digest=self.cache.data["digest"],
            samples=len(self.images),
            shape=tuple(self.data.shape[1:]),
            rms=math.sqrt(float(self.data.double().square().sum()) / count),
            mirrored=self.source.mirrored,
            classes=self.source.class_names,
            masked=mask is not None,
            conditioned_on=self.conditioned_on,
        )


class Tally:
    """Progress over parts of unequal length.

    Args:
        total: lengths of all parts together.
        report: called with the work done and the total.
    """

    def __init__(self, total: int, report: Progress | None) -> None:
        self.total, self.done, self.report = total, 0, report

    def update(self, part: int, done: int = 0, total: int = 1) -> None:
        """``done`` of ``total`` of a part of length ``part`` that is not finished."""
        if self.report is not None:
            self.report(self.done + part * done // max(1, total), self.total)

    def finish(self, part: int) -> None:
        """A part of this length is finished."""
        self.done += part
        self.update(0)


@dataclass(frozen=True, eq=False)
class CouplingAnalysis:
    """One coupling of an analysis; ``by_name`` if a name was given and no object."""

    setup: Setup
    name: str
    coupling: Coupling
    by_name: bool = True

    @cached_property
    def density(self) -> PairDensity:
        """Its closed form, or the estimate, made once."""
        config = self.setup.config
        return density_for(
            self.coupling, self.setup.images, batch_size=config.batch_size, seed=config.seed
        )

    @property
    def length(self) -> int:
        """Of all parts, about, in noisy points."""
        config = self.setup.config
        mixed = config.probes * len(config.levels) * (1 + len(self.setup.conditions))
        return mixed + 2 * config.pairs + (FIT_LENGTH if config.gaussian_fit else 0)

    @property
    def options(self) -> dict[str, Any]:
        """What ``miscibility`` and ``measure_noise`` are both called with."""
        images, config = self.setup.images, self.setup.config
        options = {"cond": images.cond, "mask": images.mask, "density": self.density}
        return options | {"batch_size": config.batch_size, "seed": config.seed}

    def measure(self, tally: Tally) -> CouplingRecord:
        """Every part, kept or measured now."""
        setup, config, data = self.setup, self.setup.config, self.setup.images.data
        content = content_of_coupling(self.coupling, by_name=self.by_name)
        took = []

        def part(
            name: str,
            length: int,
            kind: Any,
            make: Callable[[], T],
            usable: Callable[[T], bool] = lambda value: True,
        ) -> T:
            value, seconds = setup.cache.part(self.name, name, content, kind, make, usable)
            took.append(seconds)
            tally.finish(length)
            return value

        def mixed(name: str, condition: Condition) -> Miscibility:
            length = config.probes * len(config.levels)

            def make() -> Miscibility:
                record = miscibility(
                    data,
                    self.coupling,
                    path=config.path,
                    levels=config.levels,
                    probes=config.probes,
                    labels=condition.labels,
                    weights=condition.weights,
                    progress=lambda done, total: tally.update(length, done, total),
                    **self.options,
                )
                return dataclasses.replace(record, condition=condition.text)

            return part(name, length, Miscibility, make)

        def noise() -> NoiseStatistics:
            options = self.options | {"moments": setup.builder.leading_moments}
            options |= {"labels": setup.labels, "label_key": setup.label_key or "label"}
            return measure_noise(data, self.coupling, pairs=config.pairs, **options)

        def fit() -> GaussianFit:
            options = {"batch_size": config.batch_size, "seed": config.seed}
            return gaussian_fit(data, self.coupling, cond=setup.images.cond, **options)

        def thumbnails(folder: Path) -> tuple[Thumbnails, ...]:
            stem = folder / "pictures" / slug(self.name)

            def make() -> tuple[Thumbnails, ...]:
                options = (self.density, config, setup.style, stem)
                return write_thumbnails(setup.images, self.coupling, *options)

            def usable(kept: tuple[Thumbnails, ...]) -> bool:
                return all((folder / file).is_file() for file in _files(kept))

            return part("thumbnails", 0, tuple[Thumbnails, ...], make, usable)

        folder, fitted = setup.cache.folder, None
        if config.gaussian_fit:
            fitted = part("gaussian_fit", FIT_LENGTH, GaussianFit, fit)
        record = CouplingRecord(
            name=self.name,
            k=candidates_of(self.coupling),
            miscibility=mixed("miscibility", Condition("")),
            conditional=tuple(mixed(f"given-{i}", one) for i, one in enumerate(setup.conditions)),
            noise=part("noise", 2 * config.pairs, NoiseStatistics, noise),
            gaussian_fit=fitted,
            thumbnails=() if folder is None else thumbnails(folder),
            seconds=0.0,
        )
        record = dataclasses.replace(record, seconds=round(sum(took), 3))
        return record.without_figures() if record.failed else record


def _files(thumbnails: tuple[Thumbnails, ...]) -> list[str]:
    levels = [level for one in thumbnails for level in one.levels]
    return [one.truth for one in thumbnails] + [f for lv in levels for f in (lv.x_t, lv.denoised)]
