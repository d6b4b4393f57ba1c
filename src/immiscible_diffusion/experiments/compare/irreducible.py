"""The loss that no network can go below, for every coupling of a comparison; kept in its folder.

Moments and laws are measured anew for every seed, and noisy images are made by the coupling of the
seed: where seeds have different couplings each has its own figures.

irreducible.json  what it was computed from, means by level, what was left out and why
irreducible/NAME-HASH.npy  the best possible loss on each of the noisy images of ``denoising``
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from immiscible_diffusion.analysis.estimates import mean_of
from immiscible_diffusion.analysis.hashing import content_of
from immiscible_diffusion.analysis.nce_density import density_for
from immiscible_diffusion.analysis.noise_density import PairDensity, has_closed_form
from immiscible_diffusion.analysis.noisy_points import blocks, check_levels, probe
from immiscible_diffusion.couplings import Coupling
from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.diffusion.losses import RegressionLoss
from immiscible_diffusion.experiments.compare.denoising import (
    LEVELS,
    PROBES,
    SEED,
    Probes,
    images_at,
    paired_at_once,
    row_count,
)
from immiscible_diffusion.experiments.compare.plan import Plan, Trial, slug
from immiscible_diffusion.training.builders import make_coupling
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.utils.atomic_files import atomic_path, read_json, write_json
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.progress import Progress

FORMAT = 2
MOST_WORK = 1e12  # probes x images x levels x D of a coupling: about 10 minutes on a core
MOST_ELEMENTS = 2e9  # of images, held at once: 8 GB
FEWEST = 64  # probes


@dataclass(frozen=True, eq=False)
class Best:
    """The optimal denoiser's losses, ``[levels, P]`` each, not weighted.

    Attributes:
        irreducible: variance of the target given the noisy image, over all images.
        reached: its loss on that image; the same on average where the density is exact.
        estimate: how the density was estimated; empty for a closed form.
    """

    irreducible: Tensor
    reached: Tensor
    estimate: str


def best_losses(recipe: Recipe, dataset: DataSet, coupling: Coupling, progress: Any = None) -> Best:
    """By level on the probes of ``denoising``, among all images that training shows.

    Given the label for a conditional recipe. Of a large set only the first probes are used.
    """
    images = images_at(recipe, dataset, torch.arange(row_count(recipe, dataset)))
    probes = Probes.draw(recipe, dataset, coupling)
    size = paired_at_once(recipe, coupling)
    density = density_for(coupling, images, batch_size=size, seed=SEED)
    return _measured(recipe, images, probes.first(probes_used(recipe, dataset)), density, progress)


def _measured(
    recipe: Recipe, images: Batch, probes: Probes, density: PairDensity, progress: Any
) -> Best:
    labels = (images.cond or {}).get("label") if recipe.conditional else None
    count, done = len(probes.rows), 0
    irreducible, reached = torch.zeros(2, len(LEVELS), count).double()
    for block in blocks(images, probes.rows, probes.noise, labels, None):
        for level, t in enumerate(LEVELS):
            values = probe(block, density, recipe.noise_path, t).by_name
            irreducible[level, block.at] = values["irreducible"]
            reached[level, block.at] = values["reached"]
            done += len(block.at)
            if progress is not None:
                progress(done)
    return Best(irreducible, reached, density.estimate)


def find_irreducible(plan: Plan, dataset: DataSet) -> dict[str, Any]:
    """The contents of irreducible.json for the couplings trained so far, computed where missing.

    Of every coupling ``seeds``, the hash of what it is at each, and ``laws``, figures by hash.
    """
    path, basis = plan.folder / "irreducible.json", _basis(plan.recipe, dataset)
    kept = read_json(path) if path.exists() else {}
    same = kept.get("format") == FORMAT and kept.get("computed_from") == basis
    found: dict[str, Any] = dict(kept["couplings"]) if same else {}
    skipped: dict[str, str] = {}
    for name, cells in _trained(plan).items():
        reason = no_bound(plan.recipe) or too_large(plan.recipe, dataset)
        try:
            if not reason:
                found[name] = _by_seed(plan, cells, dataset, found.get(name, {}))
        except (ValueError, torch.linalg.LinAlgError) as error:
            reason = str(error)
        if reason:
            found.pop(name, None)
            skipped[name] = reason
    values = {"format": FORMAT, "computed_from": basis, "couplings": found, "skipped": skipped}
    write_json(path, values)
    return values


def _by_seed(
    plan: Plan, cells: Sequence[Trial], dataset: DataSet, kept: dict[str, Any]
) -> dict[str, Any]:
    """Of one coupling at every seed: what is kept, and what is missing."""
    check_levels(LEVELS, plan.recipe.noise_path)
    seeds, laws = dict(kept.get("seeds", {})), dict(kept.get("laws", {}))
    for cell in cells:
        recipe, run = plan.trial_recipe(cell), RunDir(plan.trial_dir(cell))
        mark = seeds.get(str(cell.seed), "")
        if mark in laws and best_file(plan, recipe.coupling, mark).exists():
            continue
        coupling = make_coupling(recipe, dataset, run, torch.device("cpu"))
        mark = content_of(coupling)
        if mark not in laws or not best_file(plan, recipe.coupling, mark).exists():
            laws[mark] = _computed(plan, recipe, dataset, coupling, mark)
        seeds[str(cell.seed)] = mark
    return {"seeds": seeds, "laws": laws}


def _computed(
    plan: Plan, recipe: Recipe, dataset: DataSet, coupling: Coupling, mark: str
) -> dict[str, Any]:
    name = recipe.coupling
    with Progress(len(LEVELS) * PROBES, 0, f"irreducible loss, {name}", unit="point") as show:
        best = best_losses(recipe, dataset, coupling, show.update)
    if not bool(torch.stack([best.irreducible, best.reached]).isfinite().all()):
        raise ValueError("the posterior over the images is not finite")
    with atomic_path(best_file(plan, name, mark)) as temporary, temporary.open("wb") as file:
        np.save(file, best.reached.numpy(), allow_pickle=False)
    return {
        "closed_form": has_closed_form(coupling),
        "estimate": best.estimate,
        "irreducible": [mean_of(row)._asdict() for row in best.irreducible],
        "reached": [mean_of(row)._asdict() for row in best.reached],
    }


def _trained(plan: Plan) -> dict[str, list[Trial]]:
    """Of every coupling a cell of each seed that has losses by level.

    A matched start is of sampling alone, so it counts as the coupling that it trains with.
    """
    found: dict[str, dict[int, Trial]] = {}
    for cell in sorted(plan.cells, key=lambda cell: cell.is_matched):
        if (plan.trial_dir(cell) / "denoising").is_dir():
            found.setdefault(cell.unmatched.coupling, {}).setdefault(cell.seed, cell)
    return {name: list(cells.values()) for name, cells in found.items()}


def _basis(recipe: Recipe, dataset: DataSet) -> dict[str, Any]:
    """What the figures depend on besides the coupling."""
    values = recipe.to_dict()
    names = ("data", "scaling", "path", "conditional", "batch_size", "gradient_accumulation_steps")
    return {
        **{name: values[name] for name in names},
        "images": row_count(recipe, dataset),
        "content": getattr(dataset, "digest", None),
        "levels": list(LEVELS),
        "probes": probes_used(recipe, dataset),
        "seed": SEED,
    }


def no_bound(recipe: Recipe) -> str:
    """Why the recipe's loss has no such bound; empty if it has."""
    if isinstance(recipe.loss, RegressionLoss):
        return ""
    kind = type(recipe.loss).__name__
    return f"the recipe trains with {kind}, whose network is no denoiser: the bound is of denoising"


def probes_used(recipe: Recipe, dataset: DataSet) -> int:
    """How many probes the work allows, ``PROBES`` at most."""
    return min(PROBES, int(MOST_WORK / _work_of_one(recipe, dataset)))


def _work_of_one(recipe: Recipe, dataset: DataSet) -> float:
    return float(len(LEVELS)) * row_count(recipe, dataset) * math.prod(dataset.shape)


def too_large(recipe: Recipe, dataset: DataSet) -> str:
    """Why the posterior over all images is not computed; empty if it is."""
    images, dim = row_count(recipe, dataset), math.prod(dataset.shape)
    if images * dim > MOST_ELEMENTS:
        return (
            f"too large: {images:,} images of {dim:,} dimensions are {4 * images * dim / 1e9:.2g} "
            f"GB, and {4 * MOST_ELEMENTS / 1e9:.2g} GB is the most that is held at once"
        )
    work = FEWEST * _work_of_one(recipe, dataset)
    if work > MOST_WORK:
        return (
            f"too large: even {FEWEST} noisy images x {images:,} images x {len(LEVELS)} levels x "
            f"{dim:,} dimensions are {work:.2g} multiplications, and {MOST_WORK:.2g} is the most"
        )
    return ""


def best_file(plan: Plan, coupling: str, mark: str) -> Path:
    """Where the best possible loss on every noisy image is, of the coupling with the hash."""
    return plan.folder / "irreducible" / f"{slug(coupling)}-{mark}.npy"


def best_on_probes(plan: Plan, coupling: str, seed: int) -> Tensor:
    """The optimal denoiser's loss ``[levels, P]`` on the noisy images of a coupling at a seed."""
    known = read_json(plan.folder / "irreducible.json")["couplings"][coupling]
    path = best_file(plan, coupling, known["seeds"][str(seed)])
    return torch.from_numpy(np.load(path, allow_pickle=False))
