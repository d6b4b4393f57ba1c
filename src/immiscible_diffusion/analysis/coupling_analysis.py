"""One coupling of an analysis: everything that is measured of it, part by part."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from immiscible_diffusion.analysis.cache import Parts, Progress, Tally, digest_of, slug
from immiscible_diffusion.analysis.conditions import Given, conditions, is_label
from immiscible_diffusion.analysis.config import Settings
from immiscible_diffusion.analysis.couplings import Lineup, code_of, strength
from immiscible_diffusion.analysis.miscibility import Miscibility, miscibility
from immiscible_diffusion.analysis.nce_density import density_for
from immiscible_diffusion.analysis.noise_density import PairDensity, take
from immiscible_diffusion.analysis.noise_statistics import LARGEST_FIT, gaussian_fit, measure_noise
from immiscible_diffusion.analysis.noisy_points import images_of
from immiscible_diffusion.analysis.posterior import mixing
from immiscible_diffusion.analysis.thumbnails import Look, write_pictures
from immiscible_diffusion.couplings import Coupling
from immiscible_diffusion.data.in_memory import InMemoryData
from immiscible_diffusion.utils.batch import Batch

MOST_LABELS = 64  # of which each has its own noise measured
FIT_COUNT = 50_000
FIT_LENGTH = 20_000  # about, in noisy points


@dataclass(frozen=True, eq=False)
class Work:
    """Data, and what is to be measured on them with every coupling.

    Attributes:
        images: all data, their conditions and mask.
        names: of the conditions that everything is given.
        given: those conditions.
        settings: what is measured, and how well.
        parts: where it is kept.
    """

    images: Batch
    names: tuple[str, ...]
    given: tuple[Given, ...]
    settings: Settings
    parts: Parts

    @classmethod
    def of(
        cls,
        whole: InMemoryData,
        names: Sequence[str] | None,
        settings: Settings,
        folder: Path | None,
    ) -> "Work":
        """Checked; ValueError says what does not fit, or that the folder is another analysis's."""
        images = images_of(whole.batch.data, whole.batch.cond, whole.batch.mask, None)
        if len(images) < 2:
            raise ValueError("an analysis needs at least 2 data, got 1")
        names = tuple((images.cond or {}) if names is None else names)
        given = tuple(conditions(images.cond, names, settings.bandwidth))
        if settings.bandwidth is not None and not any(one.weights for one in given):
            raise ValueError("a bandwidth is for continuous conditions, and none is given")
        _check_fits(images, settings)
        keys = {"name": whole.name, "digest": digest_of(images), "rows": len(images)}
        parts = Parts(folder, keys, settings.to_json() | {"given": list(names)})
        parts.planned()
        return cls(images, names, given, settings, parts)

    @cached_property
    def data(self) -> Tensor:
        """``[N, *shape]``, 0 outside the mask."""
        return take(self.images, slice(0, None)).data

    @cached_property
    def lineup(self) -> Lineup:
        """What couplings are made with."""
        settings = self.settings
        return Lineup(self.images, settings.batch_size, settings.seed, "label" in self.names)

    @cached_property
    def look(self) -> Look:
        """How data are drawn."""
        return Look.of(self.data)

    @cached_property
    def label_key(self) -> str | None:
        """The condition by which the noise is measured apart: the first label, if not of many."""
        found = {name: v for name, v in (self.images.cond or {}).items() if is_label(v)}
        first = next((name for name in (*self.names, *found) if name in found), None)
        return None if first is None or len(found[first].unique()) > MOST_LABELS else first

    @property
    def labels(self) -> Tensor | None:
        """``[N]``, that condition."""
        return None if self.label_key is None else (self.images.cond or {})[self.label_key]

    @property
    def rms(self) -> float:
        """Root mean square of (valid) data."""
        mask = self.images.mask
        count = self.data.numel() if mask is None else int(mask.expand_as(self.data).sum())
        return math.sqrt(float(self.data.double().square().sum()) / count)


def _check_fits(images: Batch, settings: Settings) -> None:
    dim = images.data[0].numel()
    if images.mask is not None and settings.gaussian_fit:
        raise ValueError("the Gaussian fit takes no mask")
    if settings.gaussian_fit and dim > LARGEST_FIT:
        raise ValueError(
            f"the Gaussian fit takes at most {LARGEST_FIT:,} dimensions, and data have {dim:,}"
        )


@dataclass(frozen=True, eq=False)
class Subject:
    """One coupling of an analysis."""

    work: Work
    name: str
    coupling: Coupling
    by_name: bool = True

    @cached_property
    def density(self) -> PairDensity:
        """Its closed form, or the estimate, made once."""
        settings = self.work.settings
        return density_for(
            self.coupling, self.work.images, batch_size=settings.batch_size, seed=settings.seed
        )

    @property
    def lengths(self) -> dict[str, int]:
        """The parts to measure, and about how long they are, in noisy points."""
        settings = self.work.settings
        points = settings.probes * len(settings.levels)
        found = {"miscibility": points}
        found |= {f"given-{number}": points for number in range(len(self.work.given))}
        found["noise"] = 2 * settings.pairs
        return found | ({"gaussian_fit": FIT_LENGTH} if settings.gaussian_fit else {})

    @property
    def length(self) -> int:
        """Of all parts."""
        return sum(self.lengths.values())

    def measured(self, tally: Tally) -> dict[str, Any]:
        """Its entry in analysis.json."""
        code = code_of(self.coupling, given=not self.by_name)
        found: dict[str, Any] = {}
        seconds = 0.0
        for part, length in self.lengths.items():
            make = self._maker(part, tally.inside(length))
            found[part], took = self.work.parts.part(self.name, part, code, make)
            seconds += took
            tally.finish(length)
        k = strength(self.coupling)
        mixed = found["miscibility"]
        return {
            "name": self.name,
            "seconds": round(seconds, 3),
            "k": k,
            "removable": None if k is None else math.log(k) - 1 + 1 / k,
            "miscibility": mixed["value"],
            "given": [value for part, value in found.items() if part.startswith("given-")],
            "noise": found["noise"],
            "gaussian_fit": found.get("gaussian_fit"),
            "pictures": mixed["pictures"],
        }

    def _maker(self, part: str, progress: Progress) -> Callable[[], Any]:
        if part.startswith("given-"):
            given = self.work.given[int(part.removeprefix("given-"))]
            return lambda: self._mixed(progress, given).to_json() | {"given": given.text}
        makers: dict[str, Callable[[], Any]] = {
            "miscibility": lambda: self._looked_at(progress),
            "noise": self._noise,
            "gaussian_fit": self._fit,
        }
        return makers[part]

    def _mixed(self, progress: Progress, given: Given | None, show: int = 0) -> Miscibility:
        settings, images = self.work.settings, self.work.images
        return miscibility(
            images.data,
            self.coupling,
            path=settings.path,
            levels=settings.levels,
            probes=settings.probes,
            cond=images.cond,
            mask=images.mask,
            labels=given.labels if given else None,
            weights=given.weights if given else None,
            density=self.density,
            batch_size=settings.batch_size,
            show=show,
            seed=settings.seed,
            progress=progress,
        )

    def _looked_at(self, progress: Progress) -> dict[str, Any]:
        settings, folder = self.work.settings, self.work.parts.folder
        drawn = folder is not None and self.work.look.kind != "none"
        found = self._mixed(progress, None, settings.show if drawn else 0)
        pictures: list[dict[str, Any]] = []
        if found.shown is not None and folder is not None:
            sizes = [(t, max(1.0, mixing(settings.path, t).sigma)) for t in settings.levels]
            stem = folder / "pictures" / slug(self.name)
            pictures = write_pictures(found.shown, sizes, self.work.data, self.work.look, stem)
        return {"value": found.to_json(), "pictures": pictures}

    def _noise(self) -> dict[str, Any]:
        work = self.work
        return measure_noise(
            work.images.data,
            self.coupling,
            moments=work.lineup.reported,
            cond=work.images.cond,
            labels=work.labels,
            label_key=work.label_key or "label",
            mask=work.images.mask,
            pairs=work.settings.pairs,
            density=self.density,
            batch_size=work.settings.batch_size,
            seed=work.settings.seed,
        ).to_json()

    def _fit(self) -> dict[str, Any]:
        images, settings = self.work.images, self.work.settings
        found = gaussian_fit(
            images.data,
            self.coupling,
            count=FIT_COUNT,
            cond=images.cond,
            batch_size=settings.batch_size,
            seed=settings.seed,
        )
        return dataclasses.asdict(found)
