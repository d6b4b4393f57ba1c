"""What a coupling does in the plane, computed: pairs, destinations, paths and figures."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.analysis.couplings import Lineup, strength
from immiscible_diffusion.analysis.estimates import Mean
from immiscible_diffusion.analysis.miscibility import Miscibility, miscibility
from immiscible_diffusion.analysis.nce_density import density_for
from immiscible_diffusion.analysis.noise_density import PairDensity, log_density
from immiscible_diffusion.analysis.posterior import OptimalDenoiser
from immiscible_diffusion.analysis.sample_pairs import choose_rows, draw_noise
from immiscible_diffusion.couplings import KNN, Coupling, Independent, LinearAssignment
from immiscible_diffusion.data.toy import ToyPoints
from immiscible_diffusion.diffusion.paths import FlowMatchingPath
from immiscible_diffusion.toy.assigned import Assigned
from immiscible_diffusion.toy.paths import euler_ends, exact_paths, straightness
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.random import key, keyed_generator

LEVELS = tuple(round(0.05 * step, 2) for step in range(1, 21))
BUDGETS = (1, 2, 4, 8)
REACH = 3.0  # of the map of destinations; 99 % of all noise is nearer to the middle
PIXELS = 121
PARTS = 4


@dataclass(frozen=True)
class Amounts:
    """How much of everything is computed.

    Attributes:
        probes: noisy points per level.
        paths: sampling paths to draw.
        moving: pairs that the animation moves.
        batch_size: that couplings are called on.
        batches: that the law of an assignment is measured on.
        seed: of everything drawn.
    """

    probes: int = 768
    paths: int = 96
    moving: int = 160
    batch_size: int = 256
    batches: int = 800
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("probes", "paths", "moving", "batches"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, got {getattr(self, name)}")
        if self.batch_size < 2:
            raise ValueError(f"batch-size must be at least 2, got {self.batch_size}")


@dataclass(frozen=True, eq=False)
class Scene:
    """One coupling in the plane.

    Attributes:
        name: as the command line spells it.
        meaning: of the name, a few words.
        rows: ``[M]``, which points the pairs are of.
        noise: ``[M, 2]``, their noise, as in training.
        destinations: ``[PIXELS, PIXELS, G]``, the chance of every group given the noise: first
            index up, second to the right, from -REACH to REACH.
        start: ``[P, 2]`` N(0, I) noise, the same for every coupling.
        paths: ``[T, P, 2]`` exact sampling paths from ``start``.
        back: ``[T, M, 2]`` exact sampling paths from ``noise``.
        mixed: miscibility at ``LEVELS``.
        figures: numbers, for people and machines.
    """

    name: str
    meaning: str
    rows: Tensor
    noise: Tensor
    destinations: Tensor
    start: Tensor
    paths: Tensor
    back: Tensor
    mixed: Miscibility
    figures: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The figures, and miscibility by level."""
        return {"name": self.name, **self.figures, "miscibility": self.mixed.to_json()}


@torch.no_grad()
def look(
    world: ToyPoints,
    name: str,
    amounts: Amounts | None = None,
    progress: Callable[[int], None] | None = None,
) -> Scene:
    """What the coupling ``name`` does to ``world``; pairs and starts are the same for all names.

    ``progress`` is called with how many of the ``PARTS`` are done.

    Raises:
        ValueError: a name that spells no coupling.
    """
    amounts, told = amounts or Amounts(), progress or (lambda done: None)
    images, seed, size = Batch(world.points), amounts.seed, amounts.batch_size
    coupling = coupling_for(world, name, amounts)
    density = plane_density(coupling, world, amounts)
    told(1)
    denoiser = OptimalDenoiser(images, density, FlowMatchingPath())
    rows = choose_rows(len(world), max(size, amounts.moving), key(seed, "pairs"))
    noise = draw_noise(coupling, images, rows, seed=key(seed, "pairs"), batch_size=size)
    rows, noise = rows[: amounts.moving], noise[: amounts.moving]
    back = exact_paths(denoiser, noise)
    told(2)
    start = torch.randn(amounts.paths, 2, generator=keyed_generator(seed, "start"))
    paths = exact_paths(denoiser, start)
    told(3)
    options: Any = {"probes": amounts.probes, "density": density, "batch_size": size, "seed": seed}
    mixed = miscibility(world.points, coupling, levels=LEVELS, **options)
    home = (group_of(world, back[-1]) == world.group[rows]).double().mean()
    figures = {
        "estimate": density.estimate,
        "effective_points": mixed.levels[-1].effective._asdict(),
        "irreducible_loss": over_time(mixed)._asdict(),
        "straightness": straightness(paths),
        "euler_error": {str(n): missed(denoiser, start, paths[-1], n) for n in BUDGETS},
        "own_group": float(home),
    }
    seen, meaning = destinations(world, density), meaning_of(coupling, size)
    told(PARTS)
    return Scene(name, meaning, rows, noise, seen, start, paths, back, mixed, figures)


def coupling_for(world: ToyPoints, name: str, amounts: Amounts) -> Coupling:
    """The coupling that ``name`` spells, with moments and law of ``world`` where it needs them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is tried on very few data
        size, seed = amounts.batch_size, amounts.seed
        return Lineup(Batch(world.points), size, seed, by_label=False).make(name)


def plane_density(coupling: Coupling, world: ToyPoints, amounts: Amounts) -> PairDensity:
    """The closed form, or for plain linear assignment its diagrams, or else a fit to pairs."""
    size, seed = amounts.batch_size, amounts.seed
    if coupling == LinearAssignment():
        batches = amounts.batches
        return Assigned.measure(world.points, batch_size=size, batches=batches, seed=seed)
    return density_for(coupling, Batch(world.points), batch_size=size, seed=seed)


def destinations(world: ToyPoints, density: PairDensity) -> Tensor:
    """``[PIXELS, PIXELS, G]``: which group a noise is of, at t = 1."""
    axis = torch.linspace(-REACH, REACH, PIXELS)
    up, right = torch.meshgrid(axis, axis, indexing="ij")
    grid = torch.stack([right, up], dim=2).view(-1, 2)
    chance = log_density(density, grid, Batch(world.points)).softmax(dim=1)
    each = torch.nn.functional.one_hot(world.group, world.groups).double()
    return (chance @ each).view(PIXELS, PIXELS, -1)


def group_of(world: ToyPoints, ends: Tensor) -> Tensor:
    """``[P]``: the group of the point nearest to each of ``ends`` ``[P, 2]``."""
    return world.group[torch.cdist(ends.double(), world.points.double()).argmin(dim=1)]


def over_time(mixed: Miscibility) -> Mean:
    """Irreducible loss, its mean over uniform times; at t = 0 there is none on points."""
    losses = [level.irreducible for level in mixed.levels]
    share = [1.0] * (len(losses) - 1) + [0.5]
    value = sum(w * loss.value for w, loss in zip(share, losses, strict=True)) / len(losses)
    # The same probes serve all levels: errors add up, at most.
    error = sum(w * loss.error for w, loss in zip(share, losses, strict=True)) / len(losses)
    return Mean(value, error)


def missed(denoiser: OptimalDenoiser, start: Tensor, ends: Tensor, steps: int) -> float:
    """Root mean square distance of so many Euler steps from where the exact path ends."""
    found = euler_ends(denoiser, start, steps)
    return float((found - ends).square().sum(dim=1).mean().sqrt())


def meaning_of(coupling: Coupling, batch_size: int) -> str:
    """A coupling in a few words."""
    if isinstance(coupling, Independent):
        return "no pairing: any noise, any point"
    if isinstance(coupling, LinearAssignment):
        return f"best one-to-one pairs of {batch_size}"
    k = strength(coupling)
    if k is None:
        return ""
    centerd = isinstance(coupling, KNN) and coupling.center is not None
    return f"the nearest of {k} noises{', centerd' if centerd else ''}"
