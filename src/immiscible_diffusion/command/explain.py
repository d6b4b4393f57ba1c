"""``immiscible explain COUPLING ...``: what to expect of couplings, without data."""

import dataclasses
import json
import math
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import tyro

from immiscible_diffusion.command.options import Device, parse
from immiscible_diffusion.coupling import (
    KNN,
    Coupling,
    Independent,
    LinearAssignment,
    NoiseLaw,
    Shuffled,
    coupling_from_name,
)
from immiscible_diffusion.coupling.budget import (
    Expected,
    assignment_budget,
    information_budget,
    knn_expectation,
)
from immiscible_diffusion.coupling.expense import Expense, expense
from immiscible_diffusion.coupling.standin import simulated
from immiscible_diffusion.moments import Moments

FEW_NUMBERS = 1 << 21  # of data and candidates, in a batch that is timed unasked
MANY_NUMBERS = 1 << 28  # in one that is timed when asked for
UNPAIRED = Expected(0.0, 1.0, 1.0, 0.0)


@dataclass(frozen=True)
class Options:
    """What to expect of couplings on data of a given shape, before there are data.

    Pull of the noise along its datum, noise variance, distance reduction, information budget, and
    time and memory on this machine. Examples:

    immiscible explain knn:k=64 --shape 16,128,128

    immiscible explain knn:k=2 knn:k=254 --shape 4,64,64 --rms 0.9 --data-count 20000

    immiscible explain assignment shuffled:knn:k=4 --shape 3,32,32 --rms 0.5 --batch 512 --json

    Args:
        couplings: one or several, side by side: independent, knn:k=16, knn:k=16,center=mean,
            assignment, shuffled:ANY. What others do depends on the data: immiscible compare.
        shape: of one datum as the model sees it, without the batch, such as 3,32,32.
        rms: root mean square of the data, less their centre for center=...: about 0.5 for images
            in [-1, 1], 1 for latents scaled to it.
        data_count: data in the set, to set the information budget beside what tells them apart.
        batch: data that assignment sees together (256 by default) and the batch that is timed (by
            default as many as take a moment).
        device: where to measure time and memory.
        json: print JSON.
    """

    couplings: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    shape: str = ""
    rms: float = 1.0
    data_count: int | None = None
    batch: int | None = None
    device: Device = "auto"
    json: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False


@dataclass(frozen=True)
class Explained:
    """What there is to say of one coupling; None where there is no figure.

    Attributes:
        name: as given.
        keeps_law: whether the noise over any data set is exactly N(0, I).
        expected: see ``Expected``.
        budget: nats of information about its datum that a noise carries at most.
        expense: see ``Expense``.
        notes: sentences.
    """

    name: str
    keeps_law: bool | None = None
    expected: Expected | None = None
    budget: float | None = None
    expense: Expense | None = None
    notes: tuple[str, ...] = ()

    def with_note(self, note: str, **changes: Any) -> "Explained":
        """With changes, and a sentence about them."""
        return dataclasses.replace(self, notes=(*self.notes, note), **changes)


def main(arguments: list[str]) -> int:
    """Print the table, or JSON."""
    options = parse(Options, arguments, "explain")
    shape = checked(options)
    explained = [explain(name, shape, options) for name in options.couplings]
    text = as_json(explained, shape, options) if options.json else as_table(
        explained, shape, options
    )
    sys.stdout.write(text + "\n")
    return 0


def checked(options: Options) -> tuple[int, ...]:
    """The shape; ValueError for options without sense."""
    if not options.couplings:
        raise ValueError("which coupling? for example: immiscible explain knn:k=8 --shape 3,32,32")
    if not math.isfinite(options.rms) or options.rms < 0:
        raise ValueError(f"rms must be a number >= 0, got {options.rms}")
    for name, value, least in (("data-count", options.data_count, 2), ("batch", options.batch, 1)):
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    try:
        shape = tuple(int(size) for size in options.shape.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise ValueError(
            f"shape must be the sizes of one datum, such as --shape 3,32,32 (without the batch), "
            f"got '{options.shape}'"
        )
    return shape


def explain(name: str, shape: tuple[int, ...], options: Options) -> Explained:
    """All about the coupling called ``name``."""
    coupling = spelled(name.removeprefix("matched:"))
    if name.startswith("matched:"):
        return depends(Explained(name))
    return described(Explained(name), coupling, shape, options)


def spelled(name: str) -> Coupling:
    """The coupling, with moments and laws of no data in particular."""
    data = torch.tensor([[0.0], [1.0]])
    moments = Moments.fit([(data, torch.tensor([0, 1]))])
    return coupling_from_name(name, moments, lambda _: NoiseLaw.standard(moments))


def depends(said: Explained) -> Explained:
    """For couplings of which nothing can be said without data."""
    return said.with_note(f"{said.name} depends on the data: immiscible compare measures it")


def described(
    said: Explained, coupling: Coupling, shape: tuple[int, ...], options: Options
) -> Explained:
    """``said`` with what is known of ``coupling``."""
    law = getattr(coupling, "keeps_law", None)
    if isinstance(coupling, Shuffled):
        return shuffled(said, coupling, shape, options)
    if isinstance(coupling, KNN):
        said = dataclasses.replace(
            said,
            keeps_law=law,
            expected=knn_expectation(coupling.k, math.prod(shape), options.rms),
            budget=information_budget(coupling.k),
        )
        if coupling.center is not None:
            said = said.with_note(f"{said.name}: rms and pull are of the data less their centre")
            coupling = KNN(coupling.k)  # the centre costs next to nothing
        return timed(said, coupling, shape, options, weight=8 * coupling.k)
    if isinstance(coupling, Independent):
        said = dataclasses.replace(said, keeps_law=law, expected=UNPAIRED, budget=0.0)
        return timed(said, coupling, shape, options)
    if isinstance(coupling, LinearAssignment):
        return assigned(dataclasses.replace(said, keeps_law=law), coupling, shape, options)
    return depends(dataclasses.replace(said, keeps_law=law))


def shuffled(
    said: Explained, coupling: Shuffled, shape: tuple[int, ...], options: Options
) -> Explained:
    """The law of the noise of the coupling inside, and nothing of its pairing."""
    inner = described(Explained(said.name), coupling.coupling, shape, options)
    moment = 1.0 if inner.keeps_law else getattr(inner.expected, "second_moment", math.nan)
    law = "which is N(0, I)" if inner.keeps_law else "which is not N(0, I)"
    expected = Expected(0.0, moment, moment, math.nan)
    notes = tuple(note for note in inner.notes if "stand-in" not in note)
    return Explained(said.name, inner.keeps_law, expected, 0.0, inner.expense, notes).with_note(
        f"{said.name}: no pairing is left, only the law of the noise, {law}"
    )


def assigned(
    said: Explained, coupling: LinearAssignment, shape: tuple[int, ...], options: Options
) -> Explained:
    """What is exact of assignment, and a simulation."""
    batch = 256 if options.batch is None else options.batch
    rows = batch * getattr(coupling, "pool", 1)
    if getattr(coupling, "surplus", 1) == 1:
        said = dataclasses.replace(said, budget=assignment_budget(rows))
    try:
        said = said.with_note(
            f"{said.name}: simulated on isotropic Gaussian data of rms {options.rms:g}, {rows} at "
            f"a time, a stand-in for yours; the budget is the most it can be, log({rows}!)/{rows}",
            expected=simulated(coupling, math.prod(shape), options.rms, batch),
        )
    except ValueError as error:
        said = said.with_note(f"{said.name}: not simulated: {error}")
        if getattr(coupling, "cond_key", None) is not None:
            return said
    alone = LinearAssignment(cost=coupling.cost)
    return timed(said, alone, shape, dataclasses.replace(options, batch=rows))


def timed(
    said: Explained,
    coupling: Coupling,
    shape: tuple[int, ...],
    options: Options,
    weight: int = 0,
) -> Explained:
    """With time and memory, unless that would take long. ``weight``: scalars a datum costs."""
    dim = math.prod(shape)
    rows = options.batch or max(1, min(256, FEW_NUMBERS // (dim + weight)))
    if rows * dim > MANY_NUMBERS:
        return said.with_note(f"{said.name}: {rows} data of this shape are too many to time here")
    data = options.rms * torch.randn(rows, *shape, device=chosen(options.device))
    return dataclasses.replace(said, expense=expense(coupling, data))


def chosen(device: str) -> torch.device:
    """``auto``: CUDA where there is one, else the CPU."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device, True):
        raise ValueError(f"device {device} is not available here; use auto or cpu")
    if device == "auto":
        return torch.device("cuda" if there["cuda"] else "cpu")
    return torch.device(device)
