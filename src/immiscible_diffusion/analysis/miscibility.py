"""How many samples a noisy point may come from, by noise level, and what that costs a network.

A noisy point is a sample with noise that the coupling draws for it. The posterior over all samples is exact where the
coupling's density has a closed form. Memory grows with the data, not with points times samples.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.analysis.density_estimation import density_for
from immiscible_diffusion.analysis.estimates import mean_of
from immiscible_diffusion.analysis.noise_density import PairDensity, take
from immiscible_diffusion.analysis.posterior import LogWeights, entropy, mixing, posterior
from immiscible_diffusion.analysis.sample_pairs import BATCH_SIZE, choose_rows, draw_noise
from immiscible_diffusion.couplings import Coupling
from immiscible_diffusion.couplings._validation import check_data, valid_positions
from immiscible_diffusion.diffusion.paths import FlowMatchingPath, Path
from immiscible_diffusion.reporting.analysis.records import Level, Miscibility
from immiscible_diffusion.utils.batch import Batch, Cond

LEVELS = (0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98, 1.0)
Progress = Callable[[int, int], None]  # called with the work done and all of it
BLOCK_PAIRS = 1 << 21  # pairs of a probe and an image: 16 MiB in float64
VALUES = ("effective", "entropy", "nll", "true_probability", "irreducible", "model_loss")


@torch.no_grad()
def miscibility(
    data: Tensor,
    coupling: Coupling,
    *,
    path: Path | None = None,
    levels: Sequence[float] = LEVELS,
    probes: int | Tensor = 300,
    cond: Cond | None = None,
    mask: Tensor | None = None,
    labels: Tensor | None = None,
    weights: LogWeights | None = None,
    density: PairDensity | None = None,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    progress: Progress | None = None,
) -> Miscibility:
    """How mixed ``data`` ``[N, *shape]`` are under ``coupling``.

    Args:
        data: with their mirror images, if training mirrors.
        coupling: makes the noise of a sample.
        path: how data and noise are mixed; ``FlowMatchingPath`` by default.
        levels: times above 0 and at most 1.
        probes: how many noisy points per level, or the rows of their samples ``[P]``.
        cond: conditions for the coupling, each ``[N, ...]``; the labels by default.
        mask: boolean, broadcasts to data; data outside count as 0, the loss is of those inside.
        labels: ``[N]``: everything is given the label, among samples of the same label.
        weights: everything is given a continuous condition, such as ``GaussianKernel``.
        density: of the coupling; its closed form by default, or else an estimate from pairs.
        batch_size: the coupling is called on batches of this many samples.
        seed: of points and noise; the samples are the same for every coupling.
        progress: called with the points done and all.

    Where the density is an estimate that failed the record holds no figure but those that show it
    (``Miscibility.failed``).
    """
    path = path or FlowMatchingPath()
    check_levels(tuple(levels), path)
    images = images_of(data, cond, mask, labels)
    density = density or density_for(coupling, images, batch_size=batch_size, seed=seed)
    rows = choose_rows(len(data), probes, seed) if isinstance(probes, int) else probes.cpu()
    noise = draw_noise(coupling, images, rows, seed=seed, batch_size=batch_size)
    count, done = len(rows), 0
    values = {name: torch.zeros(len(levels), count).double() for name in VALUES}
    effective_count = torch.zeros(count).double()
    for block in blocks(images, rows, noise, labels, weights):
        effective_count[block.at] = block.effective_count
        for number, t in enumerate(levels):
            for name, value in probe(block, density, path, t).items():
                values[name][number, block.at] = value
            done += len(block.at)
            if progress is not None:
                progress(done, len(levels) * count)
    given = ["the label"] * (labels is not None) + [str(weights)] * (weights is not None)
    weight = path.weight(torch.tensor(levels)).tolist()
    means = [{name: mean_of(every[i]) for name, every in values.items()} for i in range(len(levels))]
    record = Miscibility(
        estimate=density.estimate,
        condition=" and ".join(given),
        samples=len(data),
        probes=count,
        effective_count=mean_of(effective_count),
        levels=tuple(Level(t, weight=w, **m) for t, w, m in zip(levels, weight, means, strict=True)),
    )
    return record.without_figures() if record.failed else record


@dataclass(frozen=True)
class Block:
    """Some noisy points, and the samples that each of them may come from."""

    at: Tensor  # ``[p]``, which of the points these are
    rows: Tensor  # ``[p]``, rows of their true samples in the data
    truth: Batch  # those ``p`` samples
    noise: Tensor  # ``[p, *shape]``
    images: Batch  # the candidates
    own: Tensor  # ``[p]``, rows of the true samples among the candidates
    log_weights: Tensor | None  # ``[p, candidates]`` given the condition, or None: equally likely

    @property
    def effective_count(self) -> Tensor:
        """``[p]``: effective number of candidates before the point is seen."""
        if self.log_weights is None:
            return torch.full((len(self.at),), float(len(self.images)), dtype=torch.float64)
        return entropy(self.log_weights.log_softmax(dim=1)).exp().cpu()


def blocks(
    images: Batch, rows: Tensor, noise: Tensor, labels: Tensor | None, weights: LogWeights | None
) -> Iterator[Block]:
    """Points of ``rows`` ``[P]`` with ``noise``, block by block; label by label with ``labels``."""
    groups = [torch.arange(len(images))]
    if labels is not None:
        labels = labels.cpu()
        groups = [(labels == label).nonzero()[:, 0] for label in labels[rows].unique()]
    for members in groups:
        mine = torch.isin(rows, members).nonzero()[:, 0]
        among = images if len(members) == len(images) else take(images, members)
        for at in mine.split(max(1, BLOCK_PAIRS // len(members))):
            own = torch.searchsorted(members, rows[at])
            log_weights = None if weights is None else weights(rows[at])[:, members]
            yield Block(at, rows[at], take(images, rows[at]), noise[at], among, own, log_weights)


def probe(block: Block, density: PairDensity, path: Path, t: float) -> dict[str, Tensor]:
    """``VALUES`` of the points of ``block`` at time ``t``, each ``[p]``."""
    mix = mixing(path, t)
    data = block.truth.data.double()
    times = torch.full((len(data),), t, dtype=torch.float64, device=data.device)
    x_t = path.sample(data, block.noise.double(), times).x_t
    valid = valid_positions(block.truth.mask, data)
    post = posterior(density, block.images, x_t, mix.alpha, mix.sigma, block.log_weights, valid)
    own = post.log_probability.gather(1, block.own.to(data.device)[:, None])[:, 0]
    square = (post.mean - data).square().flatten(1)
    inside = torch.ones_like(square) if valid is None else valid.flatten(1)
    square = (square * inside).sum(dim=1) / inside.sum(dim=1)
    spread = post.entropy
    values = {
        "effective": spread.exp(),
        "entropy": spread,
        "nll": -own,
        "true_probability": own.exp(),
        "irreducible": mix.slope**2 * post.variance,
        "model_loss": mix.slope**2 * square,
    }
    return {name: value.cpu() for name, value in values.items()}


def images_of(data: Tensor, cond: Cond | None, mask: Tensor | None, labels: Tensor | None) -> Batch:
    """The data as one batch, the labels their condition where no other is given.

    Raises:
        ValueError: data, conditions, mask and labels do not fit one another.
    """
    check_data(data)
    count = len(data)
    if labels is not None and labels.shape != (count,):
        raise ValueError(f"labels must be [{count}] like data, got {tuple(labels.shape)}")
    if cond is None and labels is not None:
        cond = {"label": labels}
    images = Batch(data, cond, mask)
    valid_positions(mask, data)
    if mask is None and not bool(data.isfinite().all()):
        raise ValueError("data are not finite; mend them before they are analyzed")
    for name, value in (images.cond or {}).items():
        if len(value) != count:
            raise ValueError(f'cond["{name}"] must have {count} rows like data, got {len(value)}')
    return images


def check_levels(levels: tuple[float, ...], path: Path) -> None:
    """Raise ValueError for no levels, or levels where nothing can be measured."""
    if not levels or not all(math.isfinite(t) and 0 < t <= 1 for t in levels):
        raise ValueError(f"levels must be times above 0 and at most 1, got {levels}")
    for t in levels:
        mixing(path, t)
