"""What a comparison measured: the record that every table, figure and sentence is made from."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any

from immiscible_diffusion.metric.quality import METRICS, Floor
from immiscible_diffusion.report.decode import OPTIONAL, decode, plain

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Dataset:
    """The training data: a name and how many data."""

    name: str
    count: int


@dataclass(frozen=True)
class CouplingEntry:
    """One coupling of a comparison; ``control_of`` names the coupling whose noises it shuffles."""

    name: str
    label: str
    control_of: str | None = None
    baseline: bool = False


@dataclass(frozen=True)
class Quality:
    """Quality of the samples at one training step and one sampling budget; None = not measured."""

    step: int
    budget: int
    nfe: int | None = None
    frechet: float | None = None
    kid: float | None = None
    kid_error: float | None = None
    precision: float | None = None
    recall: float | None = None
    density: float | None = None
    coverage: float | None = None
    memorisation: float | None = None

    def __post_init__(self) -> None:
        if self.step < 1 or self.budget < 1:
            raise ValueError(
                f"quality at step {self.step}, budget {self.budget}: expected both >= 1 "
                "(an untrained network has no place on a logarithmic axis of steps)"
            )
        for name in (*METRICS, "kid_error"):
            value = getattr(self, name)
            low = 0 if name == "frechet" else -math.inf
            if value is not None and not (low <= value and math.isfinite(value)):
                raise ValueError(
                    f"{name} is {value} at step {self.step}, budget {self.budget}; expected a "
                    "finite number, a Frechet distance >= 0, or None where nothing was measured"
                )


@dataclass(frozen=True)
class LossPoint:
    """A mean loss at one training step; None where it was not finite."""

    step: int
    loss: float | None

    def __post_init__(self) -> None:
        if self.loss is not None and not math.isfinite(self.loss):
            raise ValueError(f"loss is {self.loss} at step {self.step}; expected finite or None")


@dataclass(frozen=True)
class ExcessPoint:
    """Loss of the averaged weights by noise level at one step, not weighted, on fresh paired noise.

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
class Irreducible:
    """The loss that no network can go below, by level; ``reached`` on the very noisy images.

    ``estimate`` says how the coupling's density was estimated, empty for a closed form; ``skipped``
    why there are no figures.
    """

    coupling: str
    value: tuple[float, ...] = ()
    error: tuple[float, ...] = ()
    reached: tuple[float, ...] = ()
    estimate: str = ""
    skipped: str = ""


@dataclass(frozen=True)
class Excess:
    """What excess losses are measured on: ``probes`` noisy images per level.

    The first ``averaged`` levels are the middles of equal bins of t. ``images`` may be the source
    of a noisy one, ``given`` the condition (empty: none).
    """

    levels: tuple[float, ...]
    averaged: int
    probes: int
    images: int
    given: str
    couplings: tuple[Irreducible, ...]


@dataclass(frozen=True)
class Cell:
    """One training run: a coupling and a seed.

    ``validation`` is the loss on fixed independent noise and times, ``training`` the loss on the
    paired noise; ``grids`` maps a step, as text, to a PNG path relative to results.json, made from
    the same start noise for every coupling, ``strip`` a PNG of images on their way from noise to
    data. ``pairing_ms`` is what pairing takes per step, in
    whatever thread; ``pairing_share`` [0, 1] the share of the step that waits for it.
    """

    coupling: str
    seed: int
    quality: tuple[Quality, ...] = ()
    seconds_per_step: float | None = None
    pairing_share: float | None = None
    pairing_ms: float | None = None
    validation: tuple[LossPoint, ...] = ()
    training: tuple[LossPoint, ...] = ()
    grids: Mapping[str, str] | None = None
    finished: bool = False
    excess: tuple[ExcessPoint, ...] = field(default=(), metadata=OPTIONAL)
    strip: str | None = field(default=None, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        where = f"cell {self.coupling!r}, seed {self.seed}"
        _refuse_repeats(f"{where}: quality", [(q.step, q.budget) for q in self.quality])
        if self.seconds_per_step is not None and self.seconds_per_step <= 0:
            raise ValueError(f"{where}: seconds_per_step is {self.seconds_per_step}; expected > 0")
        if self.pairing_share is not None and not 0 <= self.pairing_share <= 1:
            raise ValueError(f"{where}: pairing_share is {self.pairing_share}; expected 0 to 1")
        for step, path in (self.grids or {}).items():
            if not step.isdigit():
                raise ValueError(f"{where}: grid key is {step!r}; expected a training step")
            _refuse_outside(f"{where}: grid", path)
        if self.strip is not None:
            _refuse_outside(f"{where}: strip", self.strip)


@dataclass(frozen=True)
class Comparison:
    """Several couplings x seeds of one recipe, trained at equal steps.

    ``command`` made it, ``note`` goes into every caption, ``accuracy`` is the held-out accuracy of
    the classifier behind ``features``. ``samples`` are generated per figure and compared with
    ``real_samples``; ``floor`` is the Frechet distance between two halves of those. Cells may be
    missing or stop early; one coupling is the baseline.
    """

    recipe: str
    command: str
    note: str
    hardware: str
    date: str
    versions: Mapping[str, str]
    dataset: Dataset
    features: str
    accuracy: float | None
    samples: int
    real_samples: int
    floor: Floor | None
    budgets: tuple[int, ...]
    headline_budget: int
    sampler: str
    eval_steps: tuple[int, ...]
    batch_size: int
    total_steps: int
    parameters: int
    couplings: tuple[CouplingEntry, ...]
    cells: tuple[Cell, ...]
    version: int = SCHEMA_VERSION
    excess: Excess | None = field(default=None, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        if self.version != SCHEMA_VERSION:
            raise ValueError(f"results are of version {self.version}; expected {SCHEMA_VERSION}")
        if self.headline_budget not in self.budgets:
            raise ValueError(
                f"headline_budget is {self.headline_budget}; expected one of {list(self.budgets)}"
            )
        _refuse_repeats("couplings", [entry.name for entry in self.couplings])
        _refuse_repeats("cells", [(cell.coupling, cell.seed) for cell in self.cells])
        _refuse_repeats("budgets", list(self.budgets))
        self._check_names()

    @property
    def sampler_name(self) -> str:
        """The sampler as people write it."""
        known = {"ddim": "DDIM", "ddpm": "DDPM", "dpm": "DPM-Solver++", "edm": "EDM"}
        return known.get(self.sampler, self.sampler.capitalize())

    def _check_names(self) -> None:
        names = [entry.name for entry in self.couplings]
        baselines = [entry.name for entry in self.couplings if entry.baseline]
        if len(baselines) != 1:
            raise ValueError(f"baselines are {baselines}; expected exactly one among {names}")
        for entry in self.couplings:
            if entry.control_of is not None and entry.control_of not in names:
                raise ValueError(
                    f"{entry.name!r} is a control of {entry.control_of!r}; expected one of {names}"
                )
        for cell in self.cells:
            if cell.coupling not in names:
                raise ValueError(f"a cell has coupling {cell.coupling!r}; expected one of {names}")
            unknown = sorted({q.budget for q in cell.quality} - set(self.budgets))
            if unknown:
                raise ValueError(
                    f"cell {cell.coupling!r}, seed {cell.seed} has budgets {unknown}; "
                    f"expected some of {list(self.budgets)}"
                )

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
        """All seeds of any cell, ascending."""
        return tuple(sorted({cell.seed for cell in self.cells}))

    def entry(self, name: str) -> CouplingEntry:
        """Return the coupling called ``name``; ValueError lists the options."""
        for entry in self.couplings:
            if entry.name == name:
                return entry
        raise ValueError(
            f"coupling is {name!r}; expected one of {[entry.name for entry in self.couplings]}"
        )

    def control(self, name: str) -> CouplingEntry | None:
        """Return the shuffled control of the coupling ``name``, if there is one."""
        return next((entry for entry in self.couplings if entry.control_of == name), None)

    def cells_of(self, name: str) -> tuple[Cell, ...]:
        """Return the cells of a coupling by ascending seed."""
        return tuple(sorted((c for c in self.cells if c.coupling == name), key=lambda c: c.seed))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; ``from_dict`` reads them back."""
        return plain(asdict(self))

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Comparison":
        """Read a record; ValueError names the first field that is wrong, missing or unknown."""
        if isinstance(record, Mapping) and record.get("version") != SCHEMA_VERSION:
            raise ValueError(
                f"results are of version {record.get('version')!r}; expected {SCHEMA_VERSION}"
            )
        return decode(cls, record, "results")


def _refuse_repeats(what: str, keys: list[Any]) -> None:
    repeated = sorted({key for key in keys if keys.count(key) > 1})
    if repeated:
        raise ValueError(f"{what} has {repeated[0]!r} more than once; expected each once")


def _refuse_outside(what: str, path: str) -> None:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError(
            f"{what} path is {path!r}; expected a path inside the folder of results.json, "
            "relative to it"
        )
