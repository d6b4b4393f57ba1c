"""Excess loss: a network's loss by noise level, less what the optimal denoiser loses there.

Both are measured on noisy images that are the same at every training step and for every seed, at the same levels for
every coupling. Their noise is the coupling's own, keyed apart from training, so no network can have learned it.

RUN/denoising/step_000500.safetensors  losses of every noisy image, ``[levels, P]``
COMPARISON/irreducible/  the optimal denoiser's losses, computed once for every coupling
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from immiscible_diffusion.analysis.cache import content_of, digest
from immiscible_diffusion.analysis.density_estimation import density_for
from immiscible_diffusion.analysis.estimates import mean_of
from immiscible_diffusion.analysis.miscibility import blocks, check_levels, probe
from immiscible_diffusion.analysis.sample_pairs import choose_rows
from immiscible_diffusion.couplings import Coupling
from immiscible_diffusion.couplings.paired_loader import pair_pool
from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.diffusion.losses import RegressionLoss
from immiscible_diffusion.experiments.compare.plan import Plan, Trial
from immiscible_diffusion.reporting.compare.records import Excess, ExcessPoint, Irreducible
from immiscible_diffusion.training.builders import build_coupling
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.training.task import Task
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.progress import Progress
from immiscible_diffusion.utils.random import keyed_generator
from immiscible_diffusion.utils.tensor_files import load_tensors, save_tensors

AVERAGED = 10  # The first so many levels are the middles of equal bins of t: their mean is the mean over t.
LEVELS = (*((2 * i + 1) / (2 * AVERAGED) for i in range(AVERAGED)), 0.98, 1.0)
PROBES = 512
SEED = 0
MOST_WORK = 1e12  # probes x images x levels x D of a coupling: about 10 minutes on a core
MOST_ELEMENTS = 2e9  # of images, held at once: 8 GB
FEWEST = 64  # probes


@dataclass(frozen=True, eq=False)
class Probes:
    """Images of the data set with noise that the coupling drew for them, on the CPU."""

    rows: Tensor  # ``[P]``; from ``len(dataset)`` on they are mirror images
    images: Batch  # ``P`` samples, scaled as in training, and their conditions
    noise: Tensor  # ``[P, *shape]``

    @classmethod
    def draw(cls, recipe: Recipe, dataset: DataSet, coupling: Coupling) -> "Probes":
        """``PROBES`` of them, the same images for every coupling, paired in training's batches."""
        size = pairing_batch(recipe, coupling)
        rows = choose_rows(dataset.index_count, -(-PROBES // size) * size, SEED)
        noises = []
        for number, part in enumerate(rows.split(size)):
            generator = keyed_generator(SEED, number, "denoising")
            noises.append(pair_pool(coupling, [images_at(recipe, dataset, part)], generator=generator)[0])
        rows = rows[:PROBES]
        return cls(rows, images_at(recipe, dataset, rows), torch.cat(noises)[:PROBES])


def pairing_batch(recipe: Recipe, coupling: Coupling) -> int:
    """The number of samples that one call of the coupling pairs when one process trains."""
    return recipe.batch_size // recipe.gradient_accumulation_steps * coupling.pool_size


def images_at(recipe: Recipe, dataset: DataSet, rows: Tensor) -> Batch:
    """The images with the index ``rows`` ``[B]``, scaled."""
    batch = dataset.indexed(rows)
    return replace(batch, data=recipe.scaling.apply(batch.data))


@torch.no_grad()
def losses_by_level(recipe: Recipe, model: nn.Module, probes: Probes, device: torch.device) -> Tensor:
    """Squared error ``[levels, P]``, mean over dimensions, not weighted; ``model`` in eval mode."""
    batch, noise, path = probes.images.to(device), probes.noise.to(device), recipe.noise_path
    cond = batch.cond if recipe.conditional else None
    rows = []
    for level in LEVELS:
        t = torch.full((len(noise),), level, device=device)
        point = path.sample(batch.data, noise, t)
        output = model(point.x_t, path.network_time(t), cond)
        rows.append((output.float() - point.target.float()).square().flatten(1).mean(dim=1).cpu())
    return torch.stack(rows)


def keep_losses(run: RunDir, step: int, losses: Tensor) -> None:
    """Write ``losses`` ``[levels, P]``: their means to metrics.jsonl, all to a file, for a difference by image."""
    save_tensors(_losses_file(run, step), {"losses": losses.float()})
    run.log("denoising", step, levels=list(LEVELS), loss=[mean_of(row)._asdict() for row in losses])


def load_losses(run: RunDir, step: int) -> Tensor | None:
    """The losses that ``keep_losses`` wrote; None if there are none."""
    path = _losses_file(run, step)
    return load_tensors(path)[0]["losses"].double() if path.exists() else None


def _losses_file(run: RunDir, step: int) -> Path:
    return run.root / "denoising" / f"step_{step:06d}.safetensors"


@dataclass(frozen=True, eq=False)
class OptimalLosses:
    """The optimal denoiser's losses, ``[levels, P]`` each, not weighted."""

    irreducible: Tensor  # variance of the target given the noisy image, over all images
    reached: Tensor  # its loss on that image; the same on average where the density is exact
    estimate: str  # how the density was estimated; empty for a closed form


def optimal_losses(
    recipe: Recipe, dataset: DataSet, coupling: Coupling, progress: Callable[[int], None] = lambda done: None
) -> OptimalLosses:
    """By the posterior over all images, given the label for a conditional recipe; a large set has fewer probes."""
    images = images_at(recipe, dataset, torch.arange(dataset.index_count))
    probes, count = Probes.draw(recipe, dataset, coupling), probe_count(recipe, dataset)
    size = pairing_batch(recipe, coupling)
    density = density_for(coupling, images, batch_size=size, seed=SEED)
    labels = (images.cond or {}).get("label") if recipe.conditional else None
    done = 0
    irreducible, reached = torch.zeros(2, len(LEVELS), count).double()
    for block in blocks(images, probes.rows[:count], probes.noise[:count], labels, None):
        for level, t in enumerate(LEVELS):
            values = probe(block, density, recipe.noise_path, t)
            irreducible[level, block.at] = values["irreducible"]
            reached[level, block.at] = values["model_loss"]
            done += len(block.at)
            progress(done)
    if not bool(torch.stack([irreducible, reached]).isfinite().all()):
        raise ValueError("the posterior over the images is not finite")
    return OptimalLosses(irreducible, reached, density.estimate)


def measure_excess(plan: Plan, task: Task) -> tuple[Excess | None, Mapping[Trial, OptimalLosses]]:
    """The irreducible losses of the couplings trained so far (None if there are none), and by trial of every probe.

    Moments and calibrations are measured anew for every seed: where couplings differ by seed, so do their losses.
    """
    recipe, dataset, entries = plan.recipe, task.dataset, []
    optimal: dict[Trial, OptimalLosses] = {}
    with_losses: dict[str, dict[int, Trial]] = {}  # coupling -> seed -> trial; matched: changes sampling alone
    for trial in sorted(plan.trials, key=lambda trial: trial.is_matched):
        if (plan.trial_dir(trial) / "denoising").is_dir():
            with_losses.setdefault(trial.unmatched.coupling, {}).setdefault(trial.seed, trial)
    for name, trials in with_losses.items():
        reason = no_bound(recipe) or too_large(recipe, dataset)
        try:
            if not reason:
                found = {trial.unmatched: _cached(plan, trial, task) for trial in trials.values()}
                entries.append(_entry(name, list(found.values())))
                optimal |= found
        except (ValueError, torch.linalg.LinAlgError) as error:
            reason = str(error)
        if reason:
            entries.append(Irreducible(name, skipped=reason))
    if not entries:
        return None, {}
    condition = "the label" if recipe.conditional else ""
    entries.sort(key=lambda entry: bool(entry.skipped))
    probes, images = probe_count(recipe, dataset), dataset.index_count
    return Excess(LEVELS, AVERAGED, probes, images, condition, tuple(entries)), optimal


def _cached(plan: Plan, trial: Trial, task: Task) -> OptimalLosses:
    """``optimal_losses`` of a trial's coupling, from the folder of the comparison if there."""
    check_levels(LEVELS, plan.recipe.noise_path)
    recipe, run = plan.trial_recipe(trial), RunDir(plan.trial_dir(trial))
    dataset, coupling = task.dataset, build_coupling(recipe, task, run, torch.device("cpu"))
    names = ("task", "scaling", "path", "conditional", "batch_size", "gradient_accumulation_steps")
    values = recipe.to_dict()
    basis = {
        **{name: values[name] for name in names},
        "images": dataset.index_count,
        "content": dataset.digest,
        "levels": LEVELS,
        "probes": probe_count(recipe, dataset),
        "seed": SEED,
        "coupling": content_of(coupling),
    }
    path = plan.folder / "irreducible" / f"{digest(basis)}.safetensors"
    if path.exists():
        try:
            kept, about = load_tensors(path)
            return OptimalLosses(kept["irreducible"], kept["reached"], about["estimate"])
        except (ValueError, KeyError) as error:
            warnings.warn(f"computed again: {error}", stacklevel=2)
    label = f"irreducible loss, {recipe.coupling}"
    with Progress(len(LEVELS) * probe_count(recipe, dataset), 0, label, unit="point") as show:
        losses = optimal_losses(recipe, dataset, coupling, show.update)
    tensors = {"irreducible": losses.irreducible, "reached": losses.reached}
    save_tensors(path, tensors, {"estimate": losses.estimate})
    return losses


def _entry(name: str, losses: Sequence[OptimalLosses]) -> Irreducible:
    """Means over the seeds; errors as of one, since all seeds have the same images."""

    def levels(rows: list[list[Any]], part: str) -> tuple[float, ...]:
        return tuple(fmean(getattr(m, part) for m in row) for row in zip(*rows, strict=True))

    irreducible = [[mean_of(row) for row in one.irreducible] for one in losses]
    reached = [[mean_of(row) for row in one.reached] for one in losses]
    means = levels(irreducible, "value"), levels(irreducible, "error"), levels(reached, "value")
    return Irreducible(name, *means, losses[0].estimate)


def excess_points(run: RunDir, optimal: OptimalLosses) -> tuple[ExcessPoint, ...]:
    """The excess loss of ``run`` at every step with losses, by noisy image: most of the noise of both cancels."""
    points = []
    for step in sorted({record["step"] for record in run.records("denoising")}):
        if (losses := load_losses(run, step)) is None:
            continue
        losses = losses[:, : optimal.reached.shape[1]]
        excess = losses - optimal.reached
        values, errors = zip(*(mean_of(row) for row in excess), strict=True)
        over_t = mean_of(excess[:AVERAGED].mean(dim=0))
        points.append(ExcessPoint(step, tuple(float(row.mean()) for row in losses), values, errors, *over_t))
    return tuple(points)


def no_bound(recipe: Recipe) -> str:
    """Why the recipe's loss has no such bound; empty if it has."""
    kind = type(recipe.loss).__name__
    text = f"the recipe trains with {kind}, whose network is no denoiser: the bound is of denoising"
    return "" if isinstance(recipe.loss, RegressionLoss) else text


def probe_count(recipe: Recipe, dataset: DataSet) -> int:
    """How many probes the work allows, ``PROBES`` at most."""
    return min(PROBES, int(MOST_WORK / _work_of_one(recipe, dataset)))


def _work_of_one(recipe: Recipe, dataset: DataSet) -> float:
    return float(len(LEVELS)) * dataset.index_count * math.prod(dataset.shape)


def too_large(recipe: Recipe, dataset: DataSet) -> str:
    """Why the posterior over all images is not computed; empty if it is."""
    images, dim = dataset.index_count, math.prod(dataset.shape)
    if images * dim > MOST_ELEMENTS:
        text = f"too large: {images:,} images of {dim:,} dimensions are {4 * images * dim / 1e9:.2g} GB"
        return f"{text}, and {4 * MOST_ELEMENTS / 1e9:.2g} GB is the most that is held at once"
    work = FEWEST * _work_of_one(recipe, dataset)
    if work > MOST_WORK:
        factors = f"{FEWEST} noisy images x {images:,} images x {len(LEVELS)} levels x {dim:,} dimensions"
        return f"too large: even {factors} are {work:.2g} multiplications, and {MOST_WORK:.2g} is the most"
    return ""
