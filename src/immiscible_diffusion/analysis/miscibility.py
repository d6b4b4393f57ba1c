"""How many samples a noisy point may come from, by noise level, and what that costs a network.

A noisy point is a sample with noise that the coupling draws for it. The posterior over all samples
is exact where the coupling's density has a closed form. Memory grows with the data, not with points
times samples.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from immiscible_diffusion.analysis.density_estimation import density_for
from immiscible_diffusion.analysis.estimates import mean_of
from immiscible_diffusion.analysis.noise_density import PairDensity
from immiscible_diffusion.analysis.noisy_points import (
    VALUES,
    blocks,
    check_levels,
    images_of,
    probe,
)
from immiscible_diffusion.analysis.posterior import LogWeights
from immiscible_diffusion.analysis.sample_pairs import BATCH_SIZE, choose_rows, draw_noise
from immiscible_diffusion.couplings import Coupling
from immiscible_diffusion.diffusion.paths import FlowMatchingPath, Path
from immiscible_diffusion.reporting.analysis.records import Level, Miscibility
from immiscible_diffusion.utils.batch import Cond

LEVELS = (0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98, 1.0)
Progress = Callable[[int, int], None]  # called with the work done and all of it


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
    means = [
        {name: mean_of(every[i]) for name, every in values.items()} for i in range(len(levels))
    ]
    record = Miscibility(
        estimate=density.estimate,
        condition=" and ".join(given),
        samples=len(data),
        probes=count,
        effective_count=mean_of(effective_count),
        levels=tuple(
            Level(t, weight=w, **m) for t, w, m in zip(levels, weight, means, strict=True)
        ),
    )
    return record.without_figures() if record.failed else record
