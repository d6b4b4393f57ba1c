"""Figures of a run that was tuned on a few pictures, for ``immiscible evaluate``."""

import dataclasses
from typing import Any

import torch

from immiscible_diffusion.applications.stable_diffusion.unet import StableDiffusionUNet
from immiscible_diffusion.diffusion.samplers import SamplerConfig
from immiscible_diffusion.evaluation.images import EVAL_SEED
from immiscible_diffusion.evaluation.load_run import LoadedRun
from immiscible_diffusion.metrics.features import extractor_from_name
from immiscible_diffusion.metrics.few_shot import few_shot_metrics
from immiscible_diffusion.training.load import alike
from immiscible_diffusion.training.recipe import Recipe


def is_tuned_on_few(recipe: Recipe) -> bool:
    """Whether it is adapters that are trained, on pictures too few for a Frechet distance."""
    return isinstance(recipe.model, StableDiffusionUNet) and recipe.model.lora is not None


def tuned_figures(
    trained: LoadedRun, sampler: SamplerConfig, seed: int, size: int
) -> dict[str, Any]:
    """Samples of its captions beside the pictures themselves, those of the commonest shape.

    Args:
        trained: the run; its recipe says how many samples, and which features.
        sampler: how they are made.
        seed: of the start noise.
        size: samples at a time.
    """
    recipe, dataset = trained.recipe, trained.dataset
    if getattr(dataset, "encoded", False):
        dataset = trained.pictures
    real = dataset.batch(alike(dataset)).data
    generator, count = trained.generator(sampler, size), recipe.of_images.samples
    batches = generator(trained.model, count, seed=seed, sampler=sampler)
    made = torch.cat([pictures for pictures, _ in batches]).cpu()
    judge = extractor_from_name(
        recipe.of_images.features, dataset, seed=EVAL_SEED, device=str(trained.device)
    )
    return {
        "step": trained.step,
        "sampler": str(sampler),
        "seed": seed,
        "samples": len(made),
        "features": judge.name,
        "data": f"{dataset.name}, {len(real)} pictures",
        **dataclasses.asdict(few_shot_metrics(judge, made, real)),
    }
