"""What a comparison measured: the record that every table, figure and sentence is made from."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from immiscible_diffusion.metrics.evaluate import Floor
from immiscible_diffusion.reporting.compare.records import (
    ExcessPoint,
    LossPoint,
    SampleMetrics,
    Trial,
    refuse_repeats,
)
from immiscible_diffusion.reporting.decode import OPTIONAL, decode, plain

__all__ = [
    "FRECHET",
    "Trial",
    "Comparison",
    "CouplingEntry",
    "Dataset",
    "Excess",
    "ExcessPoint",
    "Irreducible",
    "LossPoint",
    "PolicyEntry",
    "SampleMetrics",
]

SCHEMA_VERSION = 1
FRECHET = "Frechet distance"


@dataclass(frozen=True)
class Dataset:
    """The training data: a name and how many data."""

    name: str
    count: int


@dataclass(frozen=True)
class PolicyEntry:
    """What policies of one coupling did in the simulator after the last step, over all seeds.

    Each figure is ``(value, low, high)``: a mean with its 95% interval. ``score`` is the mean over
    episodes of the largest share of the goal covered, ``success`` the share of episodes that
    reached it, ``gain`` the score less the baseline's on the same seeds and episodes (None for the
    baseline), ``latency_ms`` the median time of a plan for all episodes at once.
    """

    coupling: str
    score: tuple[float, float, float]
    success: tuple[float, float, float]
    gain: tuple[float, float, float] | None
    last: float
    best: float
    latency_ms: float
    seeds: int
    episodes: int


@dataclass(frozen=True)
class CouplingEntry:
    """One coupling of a comparison; ``control_of`` names the coupling whose noises it shuffles."""

    name: str
    label: str
    control_of: str | None = None
    baseline: bool = False


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
class Comparison:
    """Several couplings x seeds of one recipe, trained at equal steps.

    ``command`` made it, ``note`` goes into every caption, ``accuracy`` is the held-out accuracy of
    the classifier behind ``features``. ``samples`` are generated per figure and compared with
    ``real_samples``; ``floor`` is the Frechet distance between two halves of those. ``measure`` is
    what ``Quality.value`` is, lower is better; ``sampling`` says how samples were made: selection
    of steps, bounds, averaged weights. Cells may be missing or stop early; one coupling is
    the baseline.
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
    sampling_steps: tuple[int, ...]
    headline_steps: int
    sampler: str
    eval_steps: tuple[int, ...]
    batch_size: int
    total_steps: int
    parameters: int
    couplings: tuple[CouplingEntry, ...]
    cells: tuple[Trial, ...]
    version: int = SCHEMA_VERSION
    excess: Excess | None = field(default=None, metadata=OPTIONAL)
    measure: str = field(default=FRECHET, metadata=OPTIONAL)
    sampling: str = field(default="", metadata=OPTIONAL)
    policies: tuple[PolicyEntry, ...] = field(default=(), metadata=OPTIONAL)
    film: str | None = field(default=None, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        if self.version != SCHEMA_VERSION:
            raise ValueError(f"results are of version {self.version}; expected {SCHEMA_VERSION}")
        if self.headline_steps not in self.sampling_steps:
            raise ValueError(
                f"headline_steps is {self.headline_steps}; expected one of {list(self.sampling_steps)}"
            )
        refuse_repeats("couplings", [entry.name for entry in self.couplings])
        refuse_repeats("cells", [(cell.coupling, cell.seed) for cell in self.cells])
        refuse_repeats("sampling_steps", list(self.sampling_steps))
        self._check_names()

    @property
    def sampler_name(self) -> str:
        """The sampler as people write it."""
        known = {"ddim": "DDIM", "ddpm": "DDPM", "dpm": "DPM-Solver++", "edm": "EDM"}
        return known.get(self.sampler, self.sampler.capitalize())

    @property
    def measure_name(self) -> str:
        """The measure as short as a column's title."""
        return self.measure.removesuffix(" distance")

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
            unknown = sorted({q.budget for q in cell.quality} - set(self.sampling_steps))
            if unknown:
                raise ValueError(
                    f"cell {cell.coupling!r}, seed {cell.seed} has sampling_steps {unknown}; "
                    f"expected some of {list(self.sampling_steps)}"
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

    def cells_of(self, name: str) -> tuple[Trial, ...]:
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
