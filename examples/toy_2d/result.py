"""What a coupling does in the plane, computed: pairs, exact sampling paths, and figures."""

import dataclasses
import itertools
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from examples.toy_2d.assignment_theory import AssignmentDensity
from examples.toy_2d.data import ToyData
from immiscible_diffusion.analysis.couplings import CouplingBuilder
from immiscible_diffusion.analysis.density_estimation import density_for
from immiscible_diffusion.analysis.estimates import Mean
from immiscible_diffusion.analysis.miscibility import miscibility
from immiscible_diffusion.analysis.noise_density import PairDensity, log_density
from immiscible_diffusion.analysis.posterior import OptimalDenoiser
from immiscible_diffusion.analysis.sample_pairs import choose_rows, draw_noise
from immiscible_diffusion.couplings import KNN, Calibrated, Coupling, Independent, LinearAssignment
from immiscible_diffusion.diffusion.paths import FlowMatchingPath
from immiscible_diffusion.reporting.analysis.records import Miscibility
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.random import hash_seed, keyed_generator
from immiscible_diffusion.utils.serialization import to_dict

LEVELS = tuple(round(0.05 * step, 2) for step in range(1, 21))
EULER_STEPS = (1, 2, 4, 8)
RADIUS, PIXELS = 3.0, 121  # of the map of destinations; 99 % of all noise is nearer to the middle


@dataclass(frozen=True)
class Extent:
    """How much is computed: noisy points per level, paths, pairs that move, batches to measure."""

    probes: int = 768
    paths: int = 96
    pairs: int = 160
    batch_size: int = 256
    batches: int = 800
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("probes", "paths", "pairs", "batches", "batch_size"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, got {getattr(self, name)}")


@dataclass(frozen=True)
class ToyMetrics:
    """Figures of a coupling.

    Attributes:
        estimate: how the density of the noise was estimated; empty for a closed form.
        effective_points: mixed at pure noise.
        irreducible_loss: its mean over uniform times.
        mean_distance: of the training pairs.
        straightness: length of the sampling paths over the distance of their ends.
        euler_error: by number of Euler steps, how far they end from the exact path.
        own_group: share of noises that the best network takes back to the group they came from.
    """

    estimate: str
    effective_points: Mean
    irreducible_loss: Mean
    mean_distance: float
    straightness: float
    euler_error: dict[int, float]
    own_group: float


@dataclass(frozen=True, eq=False)
class ToyResult:
    """One coupling in the plane.

    Attributes:
        name: as ``parse_coupling`` reads it.
        meaning: of the name, a few words.
        rows: ``[M]``, the points of the pairs.
        noise: ``[M, 2]``, their noise, as in training.
        destinations: ``[PIXELS, PIXELS, G]``, the chance of every group given the noise: first
            index up, second to the right, from -RADIUS to RADIUS.
        start: ``[P, 2]`` N(0, I) noise, the same for every coupling.
        paths: ``[T, P, 2]`` exact sampling paths from ``start``.
        back: ``[T, M, 2]`` exact sampling paths from ``noise``.
        mixing: miscibility at ``LEVELS``.
        metrics: figures.
    """

    name: str
    meaning: str
    rows: Tensor
    noise: Tensor
    destinations: Tensor
    start: Tensor
    paths: Tensor
    back: Tensor
    mixing: Miscibility
    metrics: ToyMetrics

    def to_json(self) -> dict[str, Any]:
        """The figures, and miscibility by level."""
        metrics = dataclasses.asdict(self.metrics)
        metrics |= {k: v._asdict() for k, v in metrics.items() if isinstance(v, Mean)}
        return {"name": self.name, **metrics, "miscibility": to_dict(self.mixing, kinds=False)}


@torch.no_grad()
def compute(data: ToyData, name: str, extent: Extent) -> ToyResult:
    """Pairs, destinations, paths and figures of the coupling ``name``; ValueError if it is none.

    Pairs and starts are the same for all names.
    """
    images, seed, size = Batch(data.points), extent.seed, extent.batch_size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is tried on very few data
        coupling = CouplingBuilder(images, size, seed, by_label=False).build(name)
    density = plane_density(coupling, data, extent)
    denoiser = OptimalDenoiser(images, density, FlowMatchingPath())
    rows = choose_rows(len(data), max(size, extent.pairs), hash_seed(seed, "pairs"))
    noise = draw_noise(coupling, images, rows, seed=hash_seed(seed, "pairs"), batch_size=size)
    rows, noise = rows[: extent.pairs], noise[: extent.pairs]
    start = torch.randn(extent.paths, 2, generator=keyed_generator(seed, "start"))
    paths, back = exact_paths(denoiser, start), exact_paths(denoiser, noise)
    mixing = miscibility(
        data.points, coupling, levels=LEVELS, probes=extent.probes, density=density, batch_size=size, seed=seed
    )
    missed = {n: euler_ends(denoiser, start, n) - paths[-1] for n in EULER_STEPS}
    metrics = ToyMetrics(
        density.estimate,
        mixing.levels[-1].effective,
        mean_over_time([level.irreducible for level in mixing.levels]),
        float((noise - data.points[rows]).norm(dim=1).mean()),
        straightness(paths),
        {n: float(each.square().sum(dim=1).mean().sqrt()) for n, each in missed.items()},
        float((data.nearest_group(back[-1]) == data.group[rows]).double().mean()),
    )
    where = destinations(data, density)
    meaning = describe(coupling, size)
    return ToyResult(name, meaning, rows, noise, where, start, paths, back, mixing, metrics)


def plane_density(coupling: Coupling, data: ToyData, extent: Extent) -> PairDensity:
    """The closed form, or for plain linear assignment its diagrams, or else a fit to pairs."""
    size, seed = extent.batch_size, extent.seed
    if coupling == LinearAssignment():
        return AssignmentDensity.measure(data.points, batch_size=size, batches=extent.batches, seed=seed)
    return density_for(coupling, Batch(data.points), batch_size=size, seed=seed)


def destinations(data: ToyData, density: PairDensity) -> Tensor:
    """``[PIXELS, PIXELS, G]``: the chance of each group given the noise, at t = 1."""
    axis = torch.linspace(-RADIUS, RADIUS, PIXELS)
    up, right = torch.meshgrid(axis, axis, indexing="ij")
    grid = torch.stack([right, up], dim=2).view(-1, 2)
    chance = log_density(density, grid, Batch(data.points)).softmax(dim=1)
    one_hot = torch.nn.functional.one_hot(data.group, data.groups).double()
    return (chance @ one_hot).view(PIXELS, PIXELS, -1)


def mean_over_time(losses: list[Mean]) -> Mean:
    """Mean over uniform times of ``losses`` at ``LEVELS``; at t = 0 there is none on points."""
    weights = [1.0] * (len(losses) - 1) + [0.5]
    # The same probes serve all levels: errors add up, at most.
    value, error = (
        sum(w * each for w, each in zip(weights, column, strict=True)) / len(losses)
        for column in zip(*losses, strict=True)
    )
    return Mean(value, error)


def describe(coupling: Coupling, batch_size: int) -> str:
    """A coupling in a few words."""
    if isinstance(coupling, Independent):
        return "no pairing: any noise, any point"
    if isinstance(coupling, LinearAssignment):
        return f"best one-to-one pairs of {batch_size}"
    if isinstance(coupling, Calibrated):
        inner = describe(coupling.coupling, batch_size)
        return f"{inner}, calibrated" if inner else ""
    if isinstance(coupling, KNN):
        centered = "" if coupling.center is None else ", centered"
        return f"the nearest of {coupling.k} noises{centered}"
    return ""


def path_times(steps: int) -> Tensor:
    """``[steps + 1]`` from 1 to 0, closer together near the data, where points part."""
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64).square()


@torch.no_grad()
def exact_paths(denoiser: OptimalDenoiser, noise: Tensor, *, steps: int = 80) -> Tensor:
    """Solve the flow of the best network on a FlowMatchingPath from ``noise`` ``[P, *shape]``.

    A predictor and corrector of second order on ``x_s = (s / t) x_t + (1 - s / t) E[data | x]``,
    which is exact as long as the expected sample does not change. The last step gives the expected
    sample itself. Returns ``[steps + 1, P, *shape]`` float64 at ``path_times(steps)``.
    """
    times = path_times(steps).tolist()
    x = noise.double()
    path, mean = [x], denoiser(x, times[0])
    for t, s in itertools.pairwise(times):
        x, before = (s / t) * x + (1 - s / t) * mean, mean
        if s > 0:
            # Once a step: the next one starts from what is expected at the prediction.
            mean = denoiser(x, s)
            x = x + (1 - s / t) * (mean - before) / 2
        path.append(x)
    return torch.stack(path)


@torch.no_grad()
def euler_ends(denoiser: OptimalDenoiser, noise: Tensor, steps: int) -> Tensor:
    """Where ``steps`` equal Euler steps along the exact velocity end: ``[P, *shape]`` float64."""
    x = noise.double()
    for number in range(steps, 0, -1):
        x = x - denoiser.target(x, number / steps) / steps
    return x


def straightness(paths: Tensor) -> float:
    """Length of ``paths`` ``[T, P, 2]`` over the distance between their ends; 1 is straight."""
    length = paths.diff(dim=0).norm(dim=2).sum()
    return float(length / (paths[-1] - paths[0]).norm(dim=1).sum())
