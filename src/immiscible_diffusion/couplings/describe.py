"""What to expect of a coupling, by its name and the shape of the data alone.

KNN has closed forms (``theory``). Assignment and ``Aligned`` have none: they are simulated on isotropic Gaussian data.
An assignment depends on data and noise through their inner products and lengths only, so a batch of B in any dimension
is drawn as B + 1 numbers a row, with the same distribution.
"""

import math
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from immiscible_diffusion.couplings import theory
from immiscible_diffusion.couplings.aligned import Aligned
from immiscible_diffusion.couplings.assignment import LinearAssignment
from immiscible_diffusion.couplings.base import Coupling, Independent
from immiscible_diffusion.couplings.knn import KNN
from immiscible_diffusion.couplings.projected import Projected, pooled
from immiscible_diffusion.couplings.quantile import Quantile
from immiscible_diffusion.couplings.registry import parse_without_data
from immiscible_diffusion.couplings.semidiscrete import Semidiscrete
from immiscible_diffusion.couplings.wrappers import Calibrated, Shuffled, WarmUp

FEW_NUMBERS = 1 << 21  # of data and candidates, in a batch that is timed by default
MANY_NUMBERS = 1 << 28  # in a batch of the size asked for
USUAL_BATCH = 256
LARGEST_BATCH = 2048  # simulated
MOST_NUMBERS = 1 << 22  # simulated, in a batch that has to be drawn complete
MATCHED = "matched:"
UNPAIRED = theory.Expected(0.0, 1.0, 1.0, 0.0)


@dataclass(frozen=True)
class DataSpec:
    """The data that a coupling is described for."""

    shape: tuple[int, ...]  # of one sample
    rms: float = 1.0  # root mean square of the data, less their center for a coupling that has one
    batch: int | None = None  # data in a batch; None: 256 for assignment, and what takes a moment to time
    device: str = "cpu"  # where to measure time and memory: auto, cpu, cuda or mps

    def __post_init__(self) -> None:
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"shape must be sizes >= 1 of one sample, got {self.shape}")
        if not 0 <= self.rms <= theory.LONGEST:
            raise ValueError(f"rms must be from 0 to {theory.LONGEST:g}, got {self.rms}")
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")

    @property
    def dim(self) -> int:
        """Numbers in a sample."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class CallCost:
    """Time and memory of one call, the least of some repeats."""

    rows: int  # data in the batch
    milliseconds: float
    randn_milliseconds: float  # of ``torch.randn`` of the same shape
    memory: float  # most that torch held at a time, the noise included, in units of the data

    @property
    def times_randn(self) -> float:
        """The call in units of ``torch.randn``."""
        return self.milliseconds / self.randn_milliseconds


@dataclass(frozen=True)
class CouplingSummary:
    """Figures of one coupling; None where there is none.

    Attributes:
        name: the coupling's.
        preserves_marginal: whether the noise over any data set is exactly N(0, I).
        expected: see ``Expected``; NaN where a figure depends on the data.
        information_budget: nats of information about its sample that a noise carries at most.
        bounded: whether ``information_budget`` is itself only an upper bound.
        cost: time and memory of a call.
        notes: sentences.
    """

    name: str
    preserves_marginal: bool
    expected: theory.Expected | None = None
    information_budget: float | None = None
    bounded: bool = False
    cost: CallCost | None = None
    notes: tuple[str, ...] = ()

    def updated(self, *notes: str, **changes: Any) -> "CouplingSummary":
        """With changes, and more notes."""
        named = tuple(f"{self.name}: {note}" for note in notes)
        return replace(self, notes=(*self.notes, *named), **changes)


def describe_coupling(name: str, spec: DataSpec, *, allow_import: bool = False) -> CouplingSummary:
    """Figures of the coupling called ``name``, as ``parse_coupling`` takes it; ValueError if there is none."""
    coupling = parse_without_data(name.removeprefix(MATCHED), allow_import=allow_import)
    summary = _describe(name, coupling, spec)
    if not name.startswith(MATCHED):
        return summary
    note = "trained as without matched:; sampling starts from the distribution of its noise"
    return summary.updated(note)


def _describe(name: str, coupling: Coupling, spec: DataSpec) -> CouplingSummary:
    summary = CouplingSummary(name, coupling.preserves_marginal)
    if isinstance(coupling, Independent):
        return _with_cost(summary.updated(expected=UNPAIRED, information_budget=0.0), coupling, spec)
    if isinstance(coupling, KNN):
        expected = theory.knn_expectation(coupling.k, spec.dim, spec.rms)
        notes = () if coupling.center is None else ("rms and pull are those of the data less their center",)
        summary = summary.updated(*notes, expected=expected, information_budget=theory.information_budget(coupling.k))
        # Timed without its center, which costs next to nothing and does not fit the shape.
        return _with_cost(summary, KNN(coupling.k), spec, scalars=8 * coupling.k)
    if isinstance(coupling, (LinearAssignment, Aligned)) and _is_simulated(_innermost(coupling)):
        return _describe_simulated(summary, coupling, spec)
    if isinstance(coupling, WarmUp):
        note = f"before training step {coupling.start_step} noise is independent of the data"
        return _describe(name, coupling.coupling, spec).updated(note)
    if isinstance(coupling, Calibrated):
        inner = _describe(name, coupling.coupling, spec)
        note = (
            "carries as much information as the coupling inside; the rest depends on the data: use immiscible compare"
        )
        return summary.updated(note, information_budget=inner.information_budget, bounded=inner.bounded)
    if isinstance(coupling, Shuffled):
        inner = _describe(name, coupling.coupling, spec)
        if inner.expected is not None or summary.preserves_marginal:
            moment = 1.0 if inner.expected is None else inner.expected.second_moment
            word = "" if summary.preserves_marginal else "not "
            note = f"no pairing is left, only the noise distribution, which is {word}N(0, I)"
            expected = theory.Expected(0.0, moment, moment, math.nan)
            return summary.updated(note, expected=expected, information_budget=0.0, cost=inner.cost)
    if isinstance(coupling, Projected):
        by_pool = pooled(torch.zeros(1, *spec.shape), coupling.pool) if coupling.pool else None
        shape = (coupling.rank or 0,) if by_pool is None else tuple(by_pool.shape[1:])
        inner = _describe(name, coupling.coupling, replace(spec, shape=shape))
        rest = "the rest of the noise stays as drawn, and no time was taken"
        note = f"figures are of the {math.prod(shape):,} numbers it pairs by, of rms {spec.rms:g}; {rest}"
        return inner.updated(note, cost=None)
    if isinstance(coupling, Semidiscrete):
        note = "each sample has an equal share of N(0, I), which takes log N nats; for the pull use immiscible analyze"
        return summary.updated(note, expected=theory.Expected(math.nan, 1.0, math.nan, math.nan))
    if isinstance(coupling, Quantile):
        paired, times = "which takes log N nats", ""
        if coupling.share < 1:
            paired, times = (
                f"at a chance of {coupling.share:g}, and else independent noise",
                f"{coupling.share:g} times ",
            )
        note = (
            f"each sample has the N-th part of N(0, 1) along each direction, {paired}; its pull is about {times}the "
            f"sum over them of sqrt(p), of the share p of the variance each; for yours use immiscible analyze"
        )
        return summary.updated(note, expected=theory.Expected(math.nan, 1.0, math.nan, math.nan))
    return summary.updated(
        "depends on the data or is not simulated, so nothing is known before; use immiscible compare"
    )


def _innermost(coupling: Coupling) -> Coupling:
    """The coupling inside wrappers that take data of any kind."""
    while isinstance(coupling, (Aligned, Shuffled, WarmUp)):
        coupling = coupling.coupling
    return coupling


def _is_simulated(coupling: Coupling) -> bool:
    """Whether it can be called on Gaussian data as it is, with nothing fitted to yours."""
    return isinstance(coupling, (Independent, KNN, LinearAssignment)) and getattr(coupling, "center", None) is None


def _describe_simulated(summary: CouplingSummary, coupling: Coupling, spec: DataSpec) -> CouplingSummary:
    rows = (spec.batch or USUAL_BATCH) * coupling.pool_size
    if isinstance(coupling, LinearAssignment) and coupling.oversample == 1:
        note = f"the budget is log({rows}!) / {rows} or less"
        summary = summary.updated(note, information_budget=theory.assignment_budget(rows), bounded=True)
    try:
        if key := getattr(_innermost(coupling), "cond_key", None):
            raise ValueError(f"cond_key={key!r} pairs by conditions of the data")
        coupling = coupling.within_process()
        expected = simulate(coupling, spec.dim, spec.rms, rows)
    except ValueError as error:
        moment = 1.0 if summary.preserves_marginal else math.nan
        unknown = theory.Expected(math.nan, moment, math.nan, math.nan)
        return summary.updated(f"not simulated: {error}; use immiscible compare", expected=unknown)
    pull = f"pull (+- {expected.pull_error:.1g})"
    note = f"{pull} and distance are simulated on Gaussian data, {rows} at a time, a stand-in for yours"
    return _with_cost(summary.updated(note, expected=expected), coupling, spec, rows=rows)


def _with_cost(
    summary: CouplingSummary, coupling: Coupling, spec: DataSpec, rows: int = 0, scalars: int = 0
) -> CouplingSummary:
    """With time and memory, unless that would take long; ``scalars`` are drawn for each sample."""
    rows = rows or spec.batch or max(1, min(USUAL_BATCH, FEW_NUMBERS // (spec.dim + scalars)))
    if rows * spec.dim > (4 * FEW_NUMBERS if spec.batch is None else MANY_NUMBERS):
        advice = "set --batch" if spec.batch is None else "set a smaller --batch"
        return summary.updated(f"{rows} data of this shape take too long to time; {advice}")
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(spec.device, True):
        raise ValueError(f"device {spec.device} is not available here; use auto or cpu")
    best = "cuda" if available["cuda"] else "cpu"
    device = best if spec.device == "auto" else spec.device
    data = spec.rms * torch.randn(rows, *spec.shape, device=device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a batch of one sample
        return summary.updated(cost=measure_cost(coupling, data))


# -- simulated -------------------------------------------------------------------------------------


def simulate(coupling: Coupling, dim: int, rms: float, rows: int, *, seed: int = 0) -> theory.Expected:
    """Expectations of ``coupling`` on N(0, rms^2 I) data ``[rows, dim]``, with standard errors.

    ``coupling`` works within one process, without conditions. ValueError if it would take long.
    """
    if rows > LARGEST_BATCH:
        raise ValueError(f"{rows} data paired together take too long; at most {LARGEST_BATCH}")
    generator = torch.Generator().manual_seed(seed)
    effort = LARGEST_BATCH // 2 if isinstance(coupling, Aligned) else 2 * LARGEST_BATCH  # its steps take long
    repeats = max(2, min(512, effort // rows))
    batches = [_simulate_batch(coupling, dim, rms, rows, generator) for _ in range(repeats)]
    pull, moment, reduction = torch.stack(batches).mean(dim=0).tolist()
    errors = (torch.stack(batches).std(dim=0) / math.sqrt(repeats)).tolist()
    moment = 1.0 if coupling.preserves_marginal else moment
    return theory.Expected(pull, moment, moment - pull**2 / dim, reduction, errors[0], errors[2])


def _simulate_batch(coupling: Coupling, dim: int, rms: float, rows: int, generator: torch.Generator) -> Tensor:
    """``[3]``: pull, second moment a dimension, distance reduction of one batch."""
    square = isinstance(coupling, LinearAssignment) and coupling.oversample == 1
    reducible = square and getattr(coupling, "cost", None) in ("inner", "norm")
    draw = _draw_reduced if reducible and dim > rows + 1 else _draw_complete
    data, noise = draw(dim, rows, generator)
    data = rms * data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of batches of one sample
        paired = coupling.pair(data, noise, generator=generator) if square else coupling(data, generator=generator)
    along = (paired * data).sum(dim=1) / data.norm(dim=1).clamp_min(1e-30)
    near, any_one = ((n - data).norm(dim=1).mean() for n in (paired, noise))
    return torch.stack([along.mean(), paired.square().sum() / (rows * dim), 1 - near / any_one])


def _draw_reduced(dim: int, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Gaussian data and noise turned so that the data span the first ``rows`` axes.

    Data: the triangular factor of a Wishart matrix (Bartlett). Noise: its part within their span, and the length of
    the rest. Both ``[rows, rows + 1]``.
    """
    data = torch.randn(rows, rows + 1, dtype=torch.float64, generator=generator).tril(-1)
    noise = torch.randn(rows, rows + 1, dtype=torch.float64, generator=generator)
    freedoms = dim - torch.arange(rows), torch.full((rows,), dim - rows)
    own, rest = (torch._standard_gamma(n.double() / 2, generator=generator) for n in freedoms)
    data[:, :rows] += (2 * own).sqrt().diag()
    noise[:, rows] = (2 * rest).sqrt()
    return data, noise


def _draw_complete(dim: int, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    if rows * dim > MOST_NUMBERS:
        raise ValueError(f"{rows} data of {dim} numbers have to be drawn complete; at most {MOST_NUMBERS} numbers")
    data = torch.randn(rows, dim, dtype=torch.float64, generator=generator)
    return data, torch.randn(rows, dim, dtype=torch.float64, generator=generator)


# -- time and memory, measured ---------------------------------------------------------------------


def measure_cost(coupling: Coupling, data: Tensor) -> CallCost:
    """Time and memory of ``coupling(data)``, in some 0.2 s where a call is shorter than that.

    On a CPU by one thread: the time of several that wait for one another on a busy machine means nothing.
    """
    from torch.utils.benchmark import Timer

    memory = peak_bytes(lambda: coupling(data), data) / data.nbytes  # warms up, too
    times = [
        Timer("f(data)", globals={"f": f, "data": data}).blocked_autorange(min_run_time=0.1).times
        for f in (coupling, torch.randn_like)
    ]
    return CallCost(len(data), 1e3 * min(times[0]), 1e3 * min(times[1]), memory)


def peak_bytes(call: Callable[[], Any], *inputs: Tensor) -> int:
    """Most bytes that tensors made in ``call`` held at a time, its result included, views of ``inputs`` not."""
    with _HeldBytes(inputs) as held:
        result = call()
    del result
    return held.peak


class _HeldBytes(TorchDispatchMode):
    """Counts the storages that operations return, until they are freed."""

    def __init__(self, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in inputs}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # skipping it would import all of torch's compiler: seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func`` and count the storages it returns."""
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self._known:
                    self._known.add(key)
                    self.now += size
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._forget, key, size).atexit = False
        return out

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
