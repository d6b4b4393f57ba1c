"""The loss of a model by noise level, on noisy images that are the same at every step and seed.

Noise is the coupling's own and fresh: keyed apart from training, so no network can have learnt it.
The levels are the same for every coupling, whatever times a recipe trains at.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from immiscible_diffusion.analysis.estimates import mean_of
from immiscible_diffusion.analysis.sample_pairs import choose_rows
from immiscible_diffusion.couplings import Coupling
from immiscible_diffusion.couplings.paired_loader import pair_pool, pool_size
from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.diffusion.paths import per_row
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.utils.atomic_files import atomic_path
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.random import keyed_generator

AVERAGED = 10
"""The first so many levels are the middles of equal bins of t: their mean is the mean over t."""
LEVELS = (*((2 * i + 1) / (2 * AVERAGED) for i in range(AVERAGED)), 0.98, 1.0)
PROBES = 512
SEED = 0


@dataclass(frozen=True, eq=False)
class Probes:
    """Images of the data set with noise that the coupling drew for them, on the CPU.

    Attributes:
        rows: ``[P]``; from ``len(dataset)`` on they are mirror images.
        images: ``P`` data, scaled as in training, and their conditions.
        noise: ``[P, *shape]``.
    """

    rows: Tensor
    images: Batch
    noise: Tensor

    @classmethod
    def draw(cls, recipe: Recipe, dataset: DataSet, coupling: Coupling) -> "Probes":
        """``PROBES`` of them, the same images for every coupling, paired in training's batches."""
        size = paired_at_once(recipe, coupling)
        every = choose_rows(row_count(recipe, dataset), -(-PROBES // size) * size, SEED)
        noises = []
        for number, rows in enumerate(every.split(size)):
            batch = images_at(recipe, dataset, rows)
            generator = keyed_generator(SEED, number, "denoising")
            noises.append(pair_pool(coupling, [batch], generator=generator)[0])
        rows = every[:PROBES]
        return cls(rows, images_at(recipe, dataset, rows), torch.cat(noises)[:PROBES])

    def first(self, count: int) -> "Probes":
        """The first ``count`` of them."""
        cond = self.images.cond and {n: v[:count] for n, v in self.images.cond.items()}
        images = Batch(self.images.data[:count], cond)
        return Probes(self.rows[:count], images, self.noise[:count])


def paired_at_once(recipe: Recipe, coupling: Coupling) -> int:
    """How many data one call of the coupling sees in training by one process."""
    return recipe.batch_size // recipe.gradient_accumulation_steps * pool_size(coupling)


def row_count(recipe: Recipe, dataset: DataSet) -> int:
    """Number of images that training shows: mirror images count where it mirrors."""
    return len(dataset) * (2 if recipe.data.flip else 1)


def images_at(recipe: Recipe, dataset: DataSet, rows: Tensor) -> Batch:
    """The images ``rows`` ``[B]``, scaled; rows from ``len(dataset)`` on are mirror images."""
    batch = dataset.batch(rows % len(dataset))
    mirrored = per_row(rows >= len(dataset), batch.data).bool()
    data = torch.where(mirrored, batch.data.flip(-1), batch.data)
    return recipe.as_seen(Batch(data, batch.cond))


@torch.no_grad()
def losses_by_level(
    recipe: Recipe, model: nn.Module, probes: Probes, device: torch.device
) -> Tensor:
    """Squared error ``[levels, P]``, mean over dimensions, not weighted; ``model`` in eval mode."""
    batch, noise, path = probes.images.to(device), probes.noise.to(device), recipe.noise_path
    cond = batch.cond if recipe.conditional else None
    rows = []
    for level in LEVELS:
        t = torch.full((len(noise),), level, device=device)
        point = path.sample(batch.data, noise, t)
        output = model(point.x_t, path.network_time(t), cond)
        error = (output.float() - point.target.float()).square().flatten(1).mean(dim=1)
        rows.append(error.cpu())
    return torch.stack(rows)


def keep_losses(run: RunDir, step: int, losses: Tensor) -> None:
    """Write ``losses`` ``[levels, P]``: means to metrics.jsonl, all to denoising/step_000500.npy.

    The loss of each noisy image is kept so that the best possible loss on that very image can be
    taken off.
    """
    with atomic_path(losses_file(run, step)) as temporary, temporary.open("wb") as file:
        np.save(file, losses.float().numpy(), allow_pickle=False)
    means = [mean_of(row)._asdict() for row in losses]
    run.log("denoising", step, levels=list(LEVELS), loss=means)


def kept_losses(run: RunDir, step: int) -> Tensor | None:
    """What ``keep_losses`` wrote, None if it is not there."""
    path = losses_file(run, step)
    return torch.from_numpy(np.load(path, allow_pickle=False)).double() if path.exists() else None


def losses_file(run: RunDir, step: int) -> Path:
    """Where the losses of every noisy image at ``step`` are."""
    return run.root / "denoising" / f"step_{step:06d}.npy"
