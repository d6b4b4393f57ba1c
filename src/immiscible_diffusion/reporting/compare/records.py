"""What a comparison measured: the records of results.json that every table and plot is made from.

None stands for what was not measured.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from immiscible_diffusion.utils.serialization import from_dict, to_dict

SCHEMA_VERSION = 2
FRECHET = "Frechet distance"
METRICS = ("frechet", "kid", "precision", "recall", "density", "coverage", "memorization")
SAMPLERS = {"ddim": "DDIM", "ddpm": "DDPM", "dpm": "DPM-Solver++", "edm": "EDM"}


@dataclass(frozen=True)
class SampleMetrics:
    """Metrics of the samples at one training step, made with one number of sampling steps.

    Images have ``frechet`` and the rest of ``METRICS``; policies ``action_error``, the mean squared
    error of their actions, with ``score`` and ``success``, shares in [0, 1] of their episodes.
    """

    step: int
    sampling_steps: int
    nfe: int | None = None
    frechet: float | None = None
    pixels: float | None = None  # the Frechet distance of the pixels themselves, beside that of ``features``
    kid: float | None = None
    kid_error: float | None = None
    precision: float | None = None
    recall: float | None = None
    density: float | None = None
    coverage: float | None = None
    memorization: float | None = None
    action_error: float | None = None
    score: float | None = None
    success: float | None = None

    def __post_init__(self) -> None:
        where = f"at step {self.step}, sampling_steps {self.sampling_steps}"
        if self.step < 1 or self.sampling_steps < 1:  # they have a place on logarithmic axes
            raise ValueError(f"metrics {where}: expected both >= 1")
        for name in (*METRICS, "pixels", "kid_error", "action_error", "score", "success"):
            value = getattr(self, name)
            least = 0 if name in ("frechet", "pixels", "action_error") else -math.inf
            if value is not None and not (math.isfinite(value) and value >= least):
                raise ValueError(
                    f"{name} is {value} {where}; expected a finite number (a distance or error "
                    f">= 0), or None where not measured"
                )

    @property
    def value(self) -> float | None:
        """The metric that the comparison is about, lower is better."""
        return self.action_error if self.frechet is None else self.frechet


@dataclass(frozen=True)
class SamplerVariant:
    """The metric of a trial's last weights when one option of the sampler has another value: no training.

    ``option`` is a field of ``SamplerConfig``: ``init_scale``, ``shift`` or ``prune`` (controls: what a baseline gains
    so is not due to pairing), or ``guidance``.
    """

    coupling: str
    seed: int
    sampling_steps: int
    option: str
    setting: float
    frechet: float
    pixels: float | None = None


@dataclass(frozen=True)
class LossPoint:
    """A mean loss at one training step; None where it was not finite."""

    step: int
    loss: float | None


@dataclass(frozen=True)
class ExcessPoint:
    """Loss of the EMA weights by noise level at one step, not weighted, on fresh paired noise.

    ``excess`` is the loss less that of the optimal denoiser on the same noisy images, ``error`` its
    standard error, ``mean`` its mean over t.
    """

    step: int
    loss: tuple[float, ...]
    excess: tuple[float, ...]
    error: tuple[float, ...]
    mean: float
    mean_error: float


@dataclass(frozen=True)
class Trial:
    """One training: a coupling and a seed.

    Images are PNG paths relative to results.json, made from the same initial noise for every coupling.
    """

    coupling: str
    seed: int
    metrics: tuple[SampleMetrics, ...] = ()
    seconds_per_step: float | None = None
    pairing_share: float | None = None  # [0, 1], of the step that waits for pairing
    pairing_ms: float | None = None  # of pairing per step, in whatever thread
    validation: tuple[LossPoint, ...] = ()  # on fixed independent noise and times
    training: tuple[LossPoint, ...] = ()  # on the paired noise
    grids: Mapping[str, str] | None = None  # by training step, as text
    finished: bool = False
    excess: tuple[ExcessPoint, ...] = ()
    trajectory: str | None = None  # images on their way from noise to data

    def __post_init__(self) -> None:
        where, grids = f"trial {self.coupling!r}, seed {self.seed}", self.grids or {}
        _check_distinct(f"{where}: metrics", [(m.step, m.sampling_steps) for m in self.metrics])
        for step in grids:
            if not step.isdigit():
                raise ValueError(f"{where}: grid key is {step!r}; expected a training step")
        for path in map(PurePosixPath, (*grids.values(), self.trajectory or "")):
            if path.is_absolute() or ".." in path.parts:
                raise ValueError(f"{where}: image path is '{path}'; expected one inside the folder")


@dataclass(frozen=True)
class Dataset:
    """The training data: a name and the number of samples."""

    name: str
    count: int


@dataclass(frozen=True)
class Floor:
    """Frechet distance of real data from real data over random halves: mean, smallest, largest.

    ``note`` says how it was measured; differences smaller than the width are not resolved.
    """

    mean: float
    low: float
    high: float
    size: int
    counts: tuple[int, int] | None = None
    note: str = ""


@dataclass(frozen=True)
class PolicyEntry:
    """The policies of one coupling in the simulator after the last step, over all seeds.

    Triples are ``(value, low, high)``: a mean with its 95% interval.
    """

    coupling: str
    score: tuple[float, float, float]  # mean over episodes of the largest share of the goal covered
    success: tuple[float, float, float]  # share of episodes that reached the goal
    gain: tuple[float, float, float] | None  # score less the baseline's on the same episodes
    last: float  # mean of the last evaluated checkpoints
    best: float
    latency_ms: float  # median time of a plan for all episodes at once
    seeds: int
    episodes: int


@dataclass(frozen=True)
class CouplingEntry:
    """One coupling of a comparison; ``control_of`` names the coupling whose noise it shuffles.

    With ``preserves_marginal`` its noise is N(0, I), so that its shuffled control would be the baseline.
    """

    name: str
    label: str
    control_of: str | None = None
    baseline: bool = False
    preserves_marginal: bool = False


@dataclass(frozen=True)
class Irreducible:
    """The loss that no network can go below, by level."""

    coupling: str
    value: tuple[float, ...] = ()
    error: tuple[float, ...] = ()
    reached: tuple[float, ...] = ()  # by the optimal denoiser on the very noisy images
    estimate: str = ""  # how the coupling's density was estimated; empty for a closed form
    skipped: str = ""  # why there are no values


@dataclass(frozen=True)
class Excess:
    """How excess losses are measured."""

    levels: tuple[float, ...]
    averaged: int  # the first so many levels are the middles of equal bins of t
    probes: int  # noisy images per level
    images: int  # that may be the source of a noisy one
    condition: str  # what the network is conditioned on; empty: nothing
    couplings: tuple[Irreducible, ...]


@dataclass(frozen=True)
class Comparison:
    """Several couplings x seeds of one recipe, trained at equal steps; one is the baseline.

    Trials may be missing or stop early.
    """

    recipe: str
    command: str  # that made it
    note: str  # goes into every caption
    hardware: str
    date: str
    versions: Mapping[str, str]
    dataset: Dataset
    features: str
    accuracy: float | None  # held-out, of the classifier behind ``features``
    samples: int  # generated per evaluation
    real_samples: int  # that they are compared with
    floor: Floor | None
    sampling_steps: tuple[int, ...]
    headline_steps: int
    sampler: str
    eval_steps: tuple[int, ...]
    batch_size: int
    total_steps: int
    parameters: int
    couplings: tuple[CouplingEntry, ...]
    trials: tuple[Trial, ...]
    excess: Excess | None = None
    variants: tuple[SamplerVariant, ...] = ()  # of ``--controls`` and ``--guidances``
    metric: str = FRECHET  # the name of ``SampleMetrics.value``, lower is better
    sampling: str = ""  # how samples were made
    policies: tuple[PolicyEntry, ...] = ()
    video: str | None = None

    def __post_init__(self) -> None:
        names = [entry.name for entry in self.couplings]
        _check_distinct("couplings", names)
        _check_distinct("trials", [(trial.coupling, trial.seed) for trial in self.trials])
        _check_distinct("sampling_steps", self.sampling_steps)
        _check_among("headline_steps is", self.headline_steps, self.sampling_steps)
        baselines = [entry.name for entry in self.couplings if entry.baseline]
        if len(baselines) != 1:
            raise ValueError(f"baselines are {baselines}; expected exactly one among {names}")
        for entry in self.couplings:
            if entry.control_of is not None:
                _check_among(f"{entry.name!r} is a control of", entry.control_of, names)
        for trial in self.trials:
            _check_among("a trial has coupling", trial.coupling, names)
            for m in trial.metrics:
                where = f"trial {trial.coupling!r}, seed {trial.seed} has sampling_steps"
                _check_among(where, m.sampling_steps, self.sampling_steps)

    @property
    def sampler_name(self) -> str:
        """The sampler as it is written in text."""
        return SAMPLERS.get(self.sampler, self.sampler.capitalize())

    def steps_text(self, sampling_steps: int) -> str:
        """'20 Euler steps'."""
        return f"{sampling_steps} {self.sampler_name} step{'s' if sampling_steps > 1 else ''}"

    @property
    def seeds_text(self) -> str:
        """'3 seeds'."""
        return f"{len(self.seeds)} seed{'s' if len(self.seeds) != 1 else ''}"

    @property
    def baseline(self) -> CouplingEntry:
        """The coupling that the others are compared with."""
        return next(entry for entry in self.couplings if entry.baseline)

    @property
    def treated(self) -> tuple[CouplingEntry, ...]:
        """The couplings that are neither baseline nor control."""
        return tuple(e for e in self.couplings if not e.baseline and e.control_of is None)

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds of any trial, ascending."""
        return tuple(sorted({trial.seed for trial in self.trials}))

    def entry(self, name: str) -> CouplingEntry:
        """The coupling called ``name``; ValueError lists the options."""
        entries = {entry.name: entry for entry in self.couplings}
        _check_among("coupling is", name, list(entries))
        return entries[name]

    def control(self, name: str) -> CouplingEntry | None:
        """The shuffled control of the coupling ``name``, if there is one."""
        return next((entry for entry in self.couplings if entry.control_of == name), None)

    def trials_of(self, name: str) -> tuple[Trial, ...]:
        """The trials of a coupling by ascending seed."""
        trials = (trial for trial in self.trials if trial.coupling == name)
        return tuple(sorted(trials, key=lambda trial: trial.seed))

    def to_dict(self) -> dict[str, Any]:
        """JSON values with the version of the schema; ``from_dict`` reads them back."""
        return {"schema_version": SCHEMA_VERSION} | to_dict(self, kinds=False)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Comparison":
        """Read a record.

        Raises:
            ValueError: another schema, with what to do; or naming the first wrong field.
        """
        version = record.get("schema_version", record.get("version"))
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"results.json has schema {version!r} and this release reads {SCHEMA_VERSION}; "
                f"write it again: {record.get('command', 'immiscible compare RECIPE')} --gather"
            )
        fields = {name: value for name, value in record.items() if name != "schema_version"}
        result: Comparison = from_dict(cls, fields, "results")
        return result


def _check_distinct(what: str, keys: Sequence[Any]) -> None:
    if repeated := sorted({key for key in keys if keys.count(key) > 1}):
        raise ValueError(f"{what} has {repeated[0]!r} more than once; expected each once")


def _check_among(what: str, value: Any, options: Sequence[Any]) -> None:
    if value not in options:
        raise ValueError(f"{what} {value!r}; expected one of {list(options)}")
