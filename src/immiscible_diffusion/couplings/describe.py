"""What to expect of a coupling, by its name and the shape of the data alone."""

import dataclasses
import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch

from immiscible_diffusion.couplings import (
    KNN,
    Calibrated,
    Coupling,
    Independent,
    LinearAssignment,
    Shuffled,
)
from immiscible_diffusion.couplings.benchmark import Expense, expense
from immiscible_diffusion.couplings.paired_loader import pool_size
from immiscible_diffusion.couplings.registry import spelled
from immiscible_diffusion.couplings.simulate import simulated, single
from immiscible_diffusion.couplings.theory import (
    LONGEST,
    Expected,
    assignment_budget,
    information_budget,
    knn_expectation,
)

FEW_NUMBERS = 1 << 21  # of data and candidates, in a batch that is timed unasked
MANY_NUMBERS = 1 << 28  # in one that is timed when asked for
USUAL_BATCH = 256
MATCHED = "matched:"
UNPAIRED = Expected(0.0, 1.0, 1.0, 0.0)


@dataclass(frozen=True)
class Circumstances:
    """What a coupling is to be explained for.

    Attributes:
        shape: of one sample.
        rms: root mean square of the data (less their center, for a coupling that has one).
        batch: data together; None: 256 for assignment, and what takes a moment to time.
        device: where to measure time and memory.
    """

    shape: tuple[int, ...]
    rms: float = 1.0
    batch: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"shape must be sizes >= 1 of one sample, got {self.shape}")
        if not 0 <= self.rms <= LONGEST:
            raise ValueError(f"rms must be from 0 to {LONGEST:g}, got {self.rms}")
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")

    @property
    def dim(self) -> int:
        """Numbers in a sample."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Explained:
    """What there is to say of one coupling; None where there is no figure.

    Attributes:
        name: as given.
        preserves_marginal: whether the noise over any data set is exactly N(0, I).
        expected: see ``Expected``; NaN where a figure depends on the data.
        budget: nats of information about its sample that a noise carries at most.
        bounded: whether ``budget`` is itself only an upper bound.
        expense: see ``Expense``.
        notes: sentences.
    """

    name: str
    preserves_marginal: bool | None = None
    expected: Expected | None = None
    budget: float | None = None
    bounded: bool = False
    expense: Expense | None = None
    notes: tuple[str, ...] = ()

    def but(self, *notes: str, **changes: Any) -> "Explained":
        """With changes, and more notes."""
        said = tuple(f"{self.name}: {note}" for note in notes)
        return dataclasses.replace(self, notes=(*self.notes, *said), **changes)


def explain(name: str, where: Circumstances) -> Explained:
    """All about the coupling called ``name``, as the command line spells couplings.

    Raises:
        ValueError: there is no such coupling, or no such device.
    """
    said = _described(name, spelled(name.removeprefix(MATCHED)), where)
    if not name.startswith(MATCHED):
        return said
    return said.but("trained as without matched:; sampling starts from the law of its noise")


def _on_data(said: Explained) -> Explained:
    return said.but("depends on the data, so nothing is known before; use immiscible compare")


def _described(name: str, coupling: Coupling, where: Circumstances) -> Explained:
    said = Explained(name, getattr(coupling, "preserves_marginal", None))
    if isinstance(coupling, Shuffled):
        return _shuffled(said, coupling, where)
    if isinstance(coupling, KNN):
        return _nearest(said, coupling, where)
    if isinstance(coupling, LinearAssignment):
        return _assigned(said, coupling, where)
    if isinstance(coupling, Calibrated):
        return _calibrated(said, coupling, where)
    if isinstance(coupling, Independent):
        return _timed(said.but(expected=UNPAIRED, budget=0.0), coupling, where)
    return _on_data(said)


def _nearest(said: Explained, coupling: KNN, where: Circumstances) -> Explained:
    """Closed forms."""
    said = said.but(
        expected=knn_expectation(coupling.k, where.dim, where.rms),
        budget=information_budget(coupling.k),
    )
    if coupling.center is not None:
        said = said.but("rms and pull are those of the data less their center")
    # Without its center, which costs next to nothing and does not fit the shape.
    return _timed(said, KNN(coupling.k), where, scalars=8 * coupling.k)


def _assigned(said: Explained, coupling: LinearAssignment, where: Circumstances) -> Explained:
    """What is exact, and a simulation."""
    rows = (where.batch or USUAL_BATCH) * pool_size(coupling)
    if getattr(coupling, "oversample", 1) == 1:
        said = said.but(
            f"the budget is log({rows}!) / {rows} or less",
            budget=assignment_budget(rows),
            bounded=True,
        )
    try:
        coupling = single(coupling)
        expected = simulated(coupling, where.dim, where.rms, rows)
    except ValueError as error:
        known = Expected(math.nan, 1.0 if said.preserves_marginal else math.nan, math.nan, math.nan)
        return said.but(f"not simulated: {error}; use immiscible compare", expected=known)
    said = said.but(
        f"pull (+- {expected.pull_error:.1g}) and distance are simulated on isotropic Gaussian "
        f"data, {rows} at a time, a stand-in for yours",
        expected=expected,
    )
    return _timed(said, coupling, where, rows=rows)


def _shuffled(said: Explained, coupling: Shuffled, where: Circumstances) -> Explained:
    """The law of the noise of the coupling inside, and nothing of its pairing."""
    inner = _described(said.name, coupling.coupling, where)
    if inner.expected is None and not said.preserves_marginal:
        return _on_data(said)
    moment = 1.0 if inner.expected is None else inner.expected.second_moment
    return said.but(
        f"no pairing is left, only the law of the noise, which is "
        f"{'' if said.preserves_marginal else 'not '}N(0, I)",
        expected=Expected(0.0, moment, moment, math.nan),
        budget=0.0,
        expense=inner.expense,
    )


def _calibrated(said: Explained, coupling: Calibrated, where: Circumstances) -> Explained:
    """What an affine map of the noise leaves: the information on the sample."""
    inner = _described(said.name, coupling.coupling, where)
    said = said.but(budget=inner.budget, bounded=inner.bounded)
    return said.but(
        "tells as much of its sample as the coupling inside, with mean 0 and covariance I over the "
        "data; the rest depends on the data: use immiscible compare"
    )


def _timed(
    said: Explained,
    coupling: Coupling,
    where: Circumstances,
    *,
    rows: int | None = None,
    scalars: int = 0,
) -> Explained:
    """With time and memory, unless that would take long. ``scalars``: a sample costs besides."""
    asked = where.batch is not None
    rows = rows or where.batch or max(1, min(USUAL_BATCH, FEW_NUMBERS // (where.dim + scalars)))
    if rows * where.dim > (MANY_NUMBERS if asked else 4 * FEW_NUMBERS):
        advice = "set a smaller --batch" if asked else "set --batch"
        return said.but(f"{rows} data of this shape take too long to time; {advice}")
    data = where.rms * torch.randn(rows, *where.shape, device=_device(where.device))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a batch of one sample
        return said.but(expense=expense(coupling, data))


def _device(name: str) -> torch.device:
    """``auto``: CUDA where there is one, else the CPU."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(name, True):
        raise ValueError(f"device {name} is not available here; use auto or cpu")
    if name == "auto":
        name = "cuda" if there["cuda"] else "cpu"
    return torch.device(name)
