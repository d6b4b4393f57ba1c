"""A whole analysis: every coupling on one data set, measured part by part."""

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from immiscible_diffusion.analysis.cache import Cache, content_of, content_of_coupling, slug
from immiscible_diffusion.analysis.conditions import Condition, conditions, is_label
from immiscible_diffusion.analysis.config import AnalysisConfig
from immiscible_diffusion.analysis.couplings import CouplingBuilder, candidates_of
from immiscible_diffusion.analysis.density_estimation import density_for
from immiscible_diffusion.analysis.miscibility import Progress, images_of, miscibility
from immiscible_diffusion.analysis.noise_density import PairDensity, take
from immiscible_diffusion.analysis.noise_statistics import LARGEST_FIT, gaussian_fit, measure_noise
from immiscible_diffusion.analysis.thumbnails import ThumbnailStyle, write_thumbnails
from immiscible_diffusion.couplings import Coupling
from immiscible_diffusion.data.in_memory import InMemoryData, join_notes
from immiscible_diffusion.reporting.analysis import records
from immiscible_diffusion.utils.batch import Batch, Cond
from immiscible_diffusion.utils.png import is_whole_png
from immiscible_diffusion.utils.serialization import to_dict

PACKAGE = "immiscible-diffusion"
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
        cls, source: InMemoryData, conditioned_on: Sequence[str] | None, config: AnalysisConfig, folder: Path | None
    ) -> "Setup":
        """Check that everything fits; ValueError says what does not, or is in the folder."""
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
            raise ValueError(f"the Gaussian fit takes up to {LARGEST_FIT:,} dimensions, got {dim:,}")
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

    def record(self) -> records.DataRecord:
        """What was analyzed."""
        mask, drawn = self.images.mask, self.config.thumbnails and self.cache.folder is not None
        count = self.data.numel() if mask is None else int(mask.expand_as(self.data).sum())
        return records.DataRecord(
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
    """Progress over parts of unequal length, which are ``total`` together."""

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
        return density_for(self.coupling, self.setup.images, **self.drawing)

    @property
    def length(self) -> int:
        """Of all parts, about, in noisy points."""
        config = self.setup.config
        mixed = config.probes * len(config.levels) * (1 + len(self.setup.conditions))
        return mixed + 2 * config.pairs + (FIT_LENGTH if config.gaussian_fit else 0)

    @property
    def drawing(self) -> dict[str, Any]:
        """How noise is drawn."""
        return {"batch_size": self.setup.config.batch_size, "seed": self.setup.config.seed}

    def measure(self, tally: Tally) -> records.CouplingRecord:
        """Every part, read or measured now."""
        setup, config, images = self.setup, self.setup.config, self.setup.images
        content = content_of_coupling(self.coupling, by_name=self.by_name)
        took = []

        def part(
            name: str, length: int, kind: Any, make: Callable[[], T], usable: Callable[[T], bool] = lambda value: True
        ) -> T:
            value, seconds = setup.cache.part(self.name, name, content, kind, make, usable)
            took.append(seconds)
            tally.finish(length)
            return value

        def options() -> dict[str, Any]:
            known = {"cond": images.cond, "mask": images.mask, "density": self.density}
            return known | self.drawing

        def mixed(name: str, condition: Condition) -> records.Miscibility:
            length = config.probes * len(config.levels)
            points: dict[str, Any] = {"path": config.path, "levels": config.levels, "probes": config.probes}
            given: dict[str, Any] = {"labels": condition.labels, "weights": condition.weights}

            def make() -> records.Miscibility:
                every = points | given | options() | {"progress": partial(tally.update, length)}
                record = miscibility(images.data, self.coupling, **every)
                return dataclasses.replace(record, condition=condition.text)

            return part(name, length, records.Miscibility, make)

        def noise() -> records.NoiseStatistics:
            by_label: dict[str, Any] = {"labels": setup.labels, "label_key": setup.label_key or "label"}
            every = options() | by_label | {"moments": setup.builder.leading_moments}
            return measure_noise(images.data, self.coupling, pairs=config.pairs, **every)

        def fit() -> records.GaussianFit:
            return gaussian_fit(images.data, self.coupling, cond=images.cond, **self.drawing)

        def thumbnails(folder: Path) -> tuple[records.Thumbnails, ...]:
            def make() -> tuple[records.Thumbnails, ...]:
                stem = folder / "thumbnails" / slug(self.name)
                drawn = (self.density, config, setup.style, stem)
                return write_thumbnails(images, self.coupling, *drawn)

            def usable(drawn: tuple[records.Thumbnails, ...]) -> bool:
                files = [folder / file for one in drawn for file in one.files]
                return all(file.is_file() and is_whole_png(file.read_bytes()) for file in files)

            return part("thumbnails", 0, tuple[records.Thumbnails, ...], make, usable)

        folder, fitted = setup.cache.folder, None
        if config.gaussian_fit:
            fitted = part("gaussian_fit", FIT_LENGTH, records.GaussianFit, fit)
        record = records.CouplingRecord(
            name=self.name,
            k=candidates_of(self.coupling),
            miscibility=mixed("miscibility", Condition("")),
            conditional=tuple(mixed(f"given-{i}", one) for i, one in enumerate(setup.conditions)),
            noise=part("noise", 2 * config.pairs, records.NoiseStatistics, noise),
            gaussian_fit=fitted,
            thumbnails=() if folder is None else thumbnails(folder),
            seconds=0.0,
        )
        record = dataclasses.replace(record, seconds=round(sum(took), 3))
        return record.without_figures() if record.failed else record


def analyze(
    data: Tensor | InMemoryData,
    couplings: Sequence[str | Coupling],
    *,
    cond: Cond | None = None,
    mask: Tensor | None = None,
    conditioned_on: Sequence[str] | None = None,
    config: AnalysisConfig | None = None,
    name: str = "data",
    folder: Path | str | None = None,
    progress: Progress | None = None,
) -> records.AnalysisRecord:
    """Measure how mixed ``data`` are under each of ``couplings``, and what these change.

    Args:
        data: ``[N, *shape]`` as the model sees them, with their mirror images if training mirrors;
            or a data set with its conditions, mask and name.
        couplings: names, as ``parse_coupling`` takes them, or couplings.
        cond: conditions ``[N, ...]`` for the couplings; whole numbers ``[N]`` are labels.
        mask: boolean, broadcasts to data, True where they are valid.
        conditioned_on: names of the conditions that the model is given; all of ``cond`` by default.
        config: what is measured, and how well.
        name: of the data.
        folder: finished parts, thumbnails and analysis.json are kept here; the same call resumes
            one that was interrupted, and may add couplings (those of the folder stay).
        progress: called with the work done and all of it, in noisy points.

    Returns:
        What analysis.json holds; ``reporting.analysis.write_analysis_page(folder)`` makes its page.

    Raises:
        ValueError: data, conditions, mask or couplings that cannot be analyzed, before anything
            long starts; or a folder that holds another analysis.
    """
    source = data
    if not isinstance(source, InMemoryData):
        source = InMemoryData(name, "", Batch(source, cond, mask))
    target = None if folder is None else Path(folder)
    setup = Setup.of(source, conditioned_on, config or AnalysisConfig(), target)
    subjects = build_couplings(setup, couplings)
    earlier = _earlier(setup, [one.name for one in subjects])
    setup.cache.write_plan([one.name for one in subjects if one.by_name])
    tally = Tally(sum(one.length for one in subjects), progress)
    record = records.AnalysisRecord(
        schema=records.SCHEMA,
        command="",
        date=date.today().isoformat(),
        hardware="",
        versions={package: version(package) for package in (PACKAGE, "torch")},
        data=setup.record(),
        settings=to_dict(setup.config),
        couplings=(*(one.measure(tally) for one in subjects), *earlier),
    )
    if target is not None:
        records.write_analysis(record, target)
    return record


def build_couplings(setup: Setup, couplings: Sequence[str | Coupling]) -> list[CouplingAnalysis]:
    """All couplings built and tried; those of the folder's plan before the new ones."""
    every: dict[str, str | Coupling] = {name: name for name in setup.cache.planned()}
    for coupling in couplings:
        name = coupling.strip() if isinstance(coupling, str) else repr(coupling)
        other = every.get(name, name)
        if not isinstance(other, str) and content_of(other) != content_of(coupling):
            raise ValueError(f"two different couplings print as {name}; give them a __repr__")
        every[name] = coupling
    if not every:
        raise ValueError("which couplings? got none; give names such as knn:k=4, or couplings")
    # Code is imported for names that were asked for; not for those of a plan in the folder alone.
    asked = {coupling.strip() for coupling in couplings if isinstance(coupling, str)}
    return [
        CouplingAnalysis(
            setup, name, setup.builder.build(coupling, allow_import=name in asked), isinstance(coupling, str)
        )
        for name, coupling in every.items()
    ]


def _earlier(setup: Setup, names: Sequence[str]) -> list[records.CouplingRecord]:
    """Couplings of the folder's analysis.json that were given as objects, and now are not."""
    path = setup.cache.folder and setup.cache.folder / "analysis.json"
    if not path or not path.exists():
        return []
    try:
        record = records.read_analysis(path)
    except ValueError as error:
        warnings.warn(f"left out: {error}", stacklevel=3)
        return []
    kept = [one for one in record.couplings if one.name not in names]
    if kept and record.versions.get(PACKAGE) != version(PACKAGE):
        left = ", ".join(one.name for one in kept)
        warnings.warn(f"left out, as measured by another version: {left}", stacklevel=3)
        return []
    return kept
