"""The records of an analysis, as analysis.json holds them. No torch.

A mean that is not finite, or that comes of an estimate that failed, is NaN here and null in JSON.
"""

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from immiscible_diffusion.reporting.html import number
from immiscible_diffusion.utils.atomic_files import read_record, write_record
from immiscible_diffusion.utils.serialization import from_dict, to_dict

SCHEMA = 2
BASELINE = "independent"
MAX_CONSISTENCY_ERROR = 0.5  # nats
MIN_INFORMATION = 0.05  # nats that it may be below 0
SURE = 3.0  # standard errors
LEAST_KL = 0.005  # nats


class Mean(NamedTuple):
    """A mean and its standard error (NaN of fewer than two values)."""

    value: float
    error: float

    @property
    def is_known(self) -> bool:
        """Whether there is a value."""
        return not math.isnan(self.value)

    @property
    def bar(self) -> float:
        """The standard error, 0 where there is none or it is rounding."""
        return 0.0 if not self.error > 1e-9 * abs(self.value) else self.error

    def __str__(self) -> str:
        """Value and standard error to two digits of the error: '736.0 ± 5.3'; '-' if unknown."""
        if not self.is_known or not self.bar:
            return number(self.value)
        places = max(0, 1 - math.floor(math.log10(self.bar)))
        if places > 6:
            return f"{self.value:.1e} ± {self.bar:.0e}"
        return f"{self.value:,.{places}f} ± {self.bar:,.{places}f}"


UNKNOWN = Mean(math.nan, math.nan)


@dataclass(frozen=True)
class Level:
    """One noise level: means over the noisy points with their standard errors."""

    t: float  # time on the path, 0 = data, 1 = noise
    effective: Mean  # number of samples: exp of the posterior's entropy
    entropy: Mean  # of the posterior over the samples, nats
    nll: Mean  # -log posterior of the true sample, nats; the entropy's mean if the density is exact
    true_probability: Mean  # posterior probability of the true sample
    irreducible: Mean  # variance of the target given x_t per dimension: no network loses less
    model_loss: Mean  # loss of the optimal denoiser on these very points
    weight: float  # of the path at t: a weighted loss compares with weight * irreducible

    @property
    def consistency_error(self) -> Mean:
        """Negative log-likelihood less entropy, as if independent: 0 for an exact density."""
        error = math.hypot(self.nll.error, self.entropy.error)
        return Mean(self.nll.value - self.entropy.value, error)

    def without_figures(self) -> "Level":
        """Only what shows how wrong the density is."""
        blank = replace(self, effective=UNKNOWN, true_probability=UNKNOWN)
        return replace(blank, irreducible=UNKNOWN, model_loss=UNKNOWN)


@dataclass(frozen=True)
class Miscibility:
    """How mixed data are under a coupling, by noise level."""

    estimate: str  # how the density was estimated, in words; empty for a closed form
    condition: str  # the condition that everything is given, in words; may be empty
    samples: int  # how many there are
    probes: int  # noisy points per level
    effective_count: Mean  # effective number of samples given the condition, before ``x_t`` is seen
    levels: tuple[Level, ...]  # in the order asked for

    @property
    def failed(self) -> bool:
        """Whether the density is an estimate with a consistency error above half a nat."""
        errors = (level.consistency_error.value for level in self.levels)
        return bool(self.estimate) and any(abs(e) > MAX_CONSISTENCY_ERROR for e in errors)

    def without_figures(self) -> "Miscibility":
        """As of an estimate that failed."""
        return replace(self, levels=tuple(level.without_figures() for level in self.levels))

    def at(self, t: float, name: str) -> Mean:
        """The value ``name`` of the level ``t``; unknown where there is no such level."""
        found: Mean = next((getattr(lv, name) for lv in self.levels if lv.t == t), UNKNOWN)
        return found


@dataclass(frozen=True)
class NoiseStatistics:
    """The noise of a coupling over a data set, or over the samples of one label."""

    estimate: str  # how the density was estimated, in words; empty for a closed form
    samples: int  # that the mixture is over
    pairs: int  # pairs drawn
    square: Mean  # ``|n|^2 / D``; 1 for N(0, I)
    shift_square: Mean  # of the mean noise, without sampling bias (may be below 0); 0 for N(0, I)
    alignment: Mean  # with the sample less the mean of the data, in standard deviations
    kl: Mean  # of all noise from N(0, I), nats; exactly 0 where the coupling preserves the marginal
    information: Mean  # mutual, of noise and sample, nats: what the noise tells the network
    direction_mean: tuple[float, ...]  # [r], of the noise along the data's leading directions
    direction_variance: tuple[float, ...]  # [r], along them; 1 for N(0, I)
    direction_error: tuple[float, ...]  # [r], standard error of the variance
    per_label: dict[str, "NoiseStatistics"]  # the same for the samples of every label

    @property
    def variances(self) -> list[Mean]:
        """The variances along the directions."""
        return list(map(Mean, self.direction_variance, self.direction_error))

    @property
    def means(self) -> list[Mean]:
        """The means along the directions, with errors of means of ``pairs`` values."""
        errors = [math.sqrt(variance / self.pairs) for variance in self.direction_variance]
        return list(map(Mean, self.direction_mean, errors))

    @property
    def information_and_kl(self) -> Mean:
        """Their sum, as if they were independent."""
        one, other = self.information, self.kl
        return Mean(one.value + other.value, math.hypot(one.bar, other.bar))

    @property
    def impossible(self) -> bool:
        """Whether the KL is below 0 beyond its error."""
        return self.kl.is_known and self.kl.value < -max(SURE * self.kl.bar, LEAST_KL)

    @property
    def failed(self) -> bool:
        """Whether the density is an estimate by which the information is below 0."""
        value, error = self.information
        impossible = value < -max(SURE * error, MIN_INFORMATION)
        return bool(self.estimate) and (math.isnan(value) or impossible)

    def without_figures(self) -> "NoiseStatistics":
        """As of an estimate that failed; a KL that is exactly 0 does not come of the estimate."""
        kl = self.kl if self.kl == (0, 0) else UNKNOWN
        labels = {name: one.without_figures() for name, one in self.per_label.items()}
        return replace(self, kl=kl, information=UNKNOWN, per_label=labels)


@dataclass(frozen=True)
class GaussianFit:
    """KL from N(0, I) of the Gaussian fitted to noises, as the papers measured it."""

    raw: float  # as it comes out
    bias: float  # what ``count`` true N(0, I) noises would give on average
    corrected: float  # ``raw - bias``
    count: int  # noises


@dataclass(frozen=True)
class ThumbnailLevel:
    """PNG files of ``x_t`` and of the optimal denoiser's prediction from it."""

    t: float
    x_t: str
    denoised: str


@dataclass(frozen=True)
class Thumbnails:
    """PNG files, named from the folder, of sample ``row`` and of its noisy points by level."""

    row: int
    truth: str
    levels: tuple[ThumbnailLevel, ...]

    @property
    def files(self) -> list[str]:
        """All of them."""
        return [self.truth, *(file for lv in self.levels for file in (lv.x_t, lv.denoised))]


@dataclass(frozen=True)
class CouplingRecord:
    """What was measured of one coupling."""

    name: str  # as it was asked for, or as it prints
    seconds: float  # that it took
    k: int | None  # candidates of KNN noise selection, or None
    miscibility: Miscibility  # without a condition
    conditional: tuple[Miscibility, ...]  # given the condition: once, or at three bandwidths
    noise: NoiseStatistics  # the noise over the data set
    gaussian_fit: GaussianFit | None  # where asked for
    thumbnails: tuple[Thumbnails, ...]  # noisy points to look at

    @property
    def spent(self) -> float | None:
        """``log k - 1 + 1/k`` nats: information plus KL of KNN noise; None of other couplings."""
        return None if self.k is None else math.log(self.k) - 1 + 1 / self.k

    @property
    def failed(self) -> bool:
        """Whether its density was estimated and is plainly wrong, so that no figure is known."""
        mixed = (self.miscibility, *self.conditional)
        return self.noise.failed or any(one.failed for one in mixed)

    def without_figures(self) -> "CouplingRecord":
        """As of an estimate that failed."""
        mixed, noise = self.miscibility.without_figures(), self.noise.without_figures()
        conditional = tuple(one.without_figures() for one in self.conditional)
        blank = replace(self, miscibility=mixed, conditional=conditional, noise=noise)
        return replace(blank, thumbnails=())

    @property
    def label(self) -> str:
        """Its name, marked where its density is estimated or nothing is paired."""
        if self.failed:
            return f"{self.name} (estimate failed)"
        marks = ["distribution only"] * self.name.startswith("shuffled:")
        marks += ["estimated"] * bool(self.miscibility.estimate)
        return self.name + (f" ({', '.join(marks)})" if marks else "")

    def under(self, condition: str) -> Miscibility | None:
        """Given ``condition``; without one for an empty text."""
        every = (self.miscibility, *self.conditional)
        return next((one for one in every if one.condition == condition), None)

    def at(self, condition: str, t: float, name: str) -> Mean:
        """The value ``name`` at the level ``t`` given ``condition``."""
        mixed = self.under(condition)
        return UNKNOWN if mixed is None else mixed.at(t, name)


@dataclass(frozen=True)
class DataRecord:
    """What was analyzed."""

    name: str  # of the data
    note: str  # what every figure made on them must say
    digest: str  # hash of the data, conditions and mask
    samples: int  # how many, mirror images among them
    shape: tuple[int, ...]  # of a sample
    rms: float  # root mean square of (valid) data
    mirrored: bool  # whether mirror images are among them
    classes: tuple[str, ...] | None  # names of the labels, or None
    masked: bool  # whether there is a mask
    conditioned_on: tuple[str, ...]  # names of the conditions that the model is given

    @property
    def noun(self) -> str:
        """What a sample is called, in plural."""
        return "images" if len(self.shape) == 3 else "samples"


@dataclass(frozen=True)
class AnalysisRecord:
    """analysis.json."""

    schema: int  # of these records
    command: str  # that made it, or empty
    date: str  # ISO
    hardware: str  # in words, or empty
    versions: dict[str, str]  # of packages
    data: DataRecord  # what was analyzed
    settings: dict[str, Any]  # how: the path, levels, points, pairs, seed and so on
    couplings: tuple[CouplingRecord, ...]  # one record each

    @property
    def baseline(self) -> CouplingRecord | None:
        """Without pairing."""
        return next((one for one in self.couplings if one.name == BASELINE), None)

    @property
    def conditions(self) -> list[str]:
        """Conditions that everything is given, in words, in order of their first appearance."""
        found = [m.condition for one in self.couplings for m in one.conditional]
        return list(dict.fromkeys(found))

    @property
    def times(self) -> list[float]:
        """Levels, lowest first."""
        return sorted({level.t for one in self.couplings for level in one.miscibility.levels})

    @property
    def main_time(self) -> float:
        """The level that sentences speak of: the last before pure noise."""
        return max([t for t in self.times if t < 1] or self.times)


def read_analysis(path: str | os.PathLike[str]) -> AnalysisRecord:
    """Read analysis.json.

    Raises:
        ValueError: no JSON, another schema, or a field that is missing or of another type.
    """
    values = read_record(Path(path))
    schema = values.get("schema")
    if schema != SCHEMA:
        raise ValueError(
            f"{path} has schema {schema}, of another release, not {SCHEMA}; run immiscible analyze "
            f"again, in a new folder"
        )
    record: AnalysisRecord = from_dict(AnalysisRecord, values, str(path))
    return record


def write_analysis(record: AnalysisRecord, folder: Path) -> None:
    """Write ``folder/analysis.json``."""
    write_record(folder / "analysis.json", to_dict(record, kinds=False))
