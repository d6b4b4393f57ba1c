"""How many data a noisy point may come from, by noise level, and what that costs a network.

Probes are data with noise that the coupling draws for them. The posterior over all images is exact
where the coupling's density has a closed form. Memory grows with the data, not with probes times
images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.analysis.estimates import Mean, mean_of
from immiscible_diffusion.analysis.nce_density import density_for
from immiscible_diffusion.analysis.noise_density import PairDensity
from immiscible_diffusion.analysis.noisy_points import (
    VALUES,
    Block,
    blocks,
    check_levels,
    images_of,
    probe,
)
from immiscible_diffusion.analysis.posterior import LogWeights
from immiscible_diffusion.analysis.sample_pairs import BATCH_SIZE, choose_rows, draw_noise
from immiscible_diffusion.couplings import Coupling
from immiscible_diffusion.diffusion.paths import FlowMatchingPath, Path
from immiscible_diffusion.utils.batch import Cond

LEVELS = (0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98, 1.0)
Progress = Callable[[int, int], None]
"""Called with the work done and the whole."""


@dataclass(frozen=True)
class Level:
    """What holds at one noise level; means over the probes with their standard errors.

    Attributes:
        t: time on the path, 0 = data, 1 = noise.
        effective: effective number of images, exp of the posterior's entropy; its mean.
        entropy: of the posterior over images, nats.
        surprise: -log of the true image's probability, nats. Its mean is the entropy's where the
            density is exact, and above it by what an estimate is wrong.
        true_probability: probability of the image that the point came from.
        irreducible: variance of the target given ``x_t``, mean over (valid) dimensions: the loss,
            not weighted, that no network can go below on these data.
        reached: the loss that the optimal denoiser had on these very probes.
        weight: the path's weight at ``t``; weighted losses compare with ``weight * irreducible``.
    """

    t: float
    effective: Mean
    entropy: Mean
    surprise: Mean
    true_probability: Mean
    irreducible: Mean
    reached: Mean
    weight: float


@dataclass(frozen=True, eq=False)
class Shown:
    """Probes to look at.

    Attributes:
        rows: ``[K]``, their rows in the data.
        x_t: ``[levels, K, *shape]`` float32.
        denoised: ``[levels, K, *shape]`` float32, the optimal denoiser's ``E[data | x_t]``.
    """

    rows: Tensor
    x_t: Tensor
    denoised: Tensor


@dataclass(frozen=True, eq=False)
class Miscibility:
    """How mixed data are under a coupling, by noise level.

    Attributes:
        coupling: how it prints.
        estimate: how its density was estimated; empty where it is a closed form.
        given: the condition that everything is given, for people to read; may be empty.
        images: number of data.
        probes: number of noisy points per level.
        candidates: effective number of images given the condition, before ``x_t`` is seen.
        levels: in the order asked for.
        shown: probes to look at, if asked for.
    """

    coupling: str
    estimate: str
    given: str
    images: int
    probes: int
    candidates: Mean
    levels: tuple[Level, ...]
    shown: Shown | None = None

    def to_json(self) -> dict[str, Any]:
        """All but the pictures, as plain numbers and names."""
        fields = {name: value for name, value in vars(self).items() if name != "shown"}
        fields["candidates"] = self.candidates._asdict()
        return fields | {"levels": [_plain(level) for level in self.levels]}


def _plain(level: Level) -> dict[str, Any]:
    items = {name: getattr(level, name) for name in level.__dataclass_fields__}
    return {n: v._asdict() if isinstance(v, Mean) else v for n, v in items.items()}


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
    show: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Miscibility:
    """How mixed ``data`` ``[N, *shape]`` are under ``coupling``.

    Args:
        data: with their mirror images, if training mirrors.
        coupling: decides the noise of a sample.
        path: how they are mixed; FlowMatchingPath where not given.
        levels: times above 0 and at most 1.
        probes: how many, or the rows of the data to probe ``[P]``.
        cond: conditions for the coupling, each ``[N, ...]``; the labels where not given.
        mask: boolean, broadcasts to data; data outside count as 0, the loss is of those inside.
        labels: ``[N]``: everything is given the label, among data of the same label.
        weights: everything is given a continuous condition, such as ``GaussianKernel``.
        density: of the coupling; where not given its closed form, or else an estimate from pairs.
        batch_size: the coupling is called on batches of this many data.
        show: so many probes are kept to look at.
        seed: of probes and noise; the probes are the same for every coupling.
        progress: called with the probes done and all.
    """
    path = path or FlowMatchingPath()
    check_levels(tuple(levels), path)
    images = images_of(data, cond, mask, labels)
    density = density or density_for(coupling, images, batch_size=batch_size, seed=seed)
    rows = choose_rows(len(data), probes, seed) if isinstance(probes, int) else probes.cpu()
    noise = draw_noise(coupling, images, rows, seed=seed, batch_size=batch_size)
    work = list(blocks(images, rows, noise, labels, weights))
    found = _measured(work, density, path, levels, min(show, len(rows)), progress)
    return replace(found, coupling=str(coupling), given=_given(labels, weights), images=len(data))


def _measured(
    work: list[Block],
    density: PairDensity,
    path: Path,
    levels: Sequence[float],
    show: int,
    progress: Progress | None,
) -> Miscibility:
    """The values of all probes, block by block, and their means."""
    count, shape = sum(len(block.at) for block in work), work[0].noise.shape[1:]
    found = {name: torch.zeros(len(levels), count).double() for name in VALUES}
    seen, candidates = torch.zeros(2, len(levels), show, *shape), torch.zeros(count).double()
    rows, done = torch.zeros(show, dtype=torch.int64), 0
    for block in work:
        candidates[block.at] = block.candidates
        wanted = block.at < show
        rows[block.at[wanted]] = block.rows[wanted]
        for level, t in enumerate(levels):
            values = probe(block, density, path, t)
            for name, value in values.by_name.items():
                found[name][level, block.at] = value
            seen[0, level, block.at[wanted]] = values.x_t[wanted].float().cpu()
            seen[1, level, block.at[wanted]] = values.denoised[wanted].float().cpu()
            done += len(block.at)
            if progress is not None:
                progress(done, len(levels) * count)
    every = tuple(_level(found, path, i, t) for i, t in enumerate(levels))
    shown = Shown(rows, seen[0], seen[1]) if show else None
    return Miscibility("", density.estimate, "", 0, count, mean_of(candidates), every, shown)


def _level(found: dict[str, Tensor], path: Path, index: int, t: float) -> Level:
    means = {name: mean_of(values[index]) for name, values in found.items()}
    return Level(t, weight=float(path.weight(torch.tensor([t]))[0]), **means)


def _given(labels: Tensor | None, weights: LogWeights | None) -> str:
    parts = [] if labels is None else ["the label"]
    return " and ".join(parts + ([] if weights is None else [str(weights)]))
