"""Noisy points and the samples they may come from, in blocks that fit into memory."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.analysis.noise_density import PairDensity, take
from immiscible_diffusion.analysis.posterior import LogWeights, entropy, mixing, posterior
from immiscible_diffusion.couplings._validation import check_data, valid_positions
from immiscible_diffusion.diffusion.paths import Path
from immiscible_diffusion.utils.batch import Batch, Cond

BLOCK_PAIRS = 1 << 21  # pairs of a probe and an image: 16 MiB in float64
VALUES = ("effective", "entropy", "nll", "true_probability", "irreducible", "model_loss")


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
