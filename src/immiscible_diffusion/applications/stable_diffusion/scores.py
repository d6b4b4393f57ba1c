"""Scores for text-to-image models in ``immiscible evaluate``: CLIP, and LoRA on few images."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from immiscible_diffusion.applications.stable_diffusion.unet import StableDiffusionUNet
from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.data.folder_of_samples import SampleFolder
from immiscible_diffusion.data.in_memory import chosen
from immiscible_diffusion.diffusion.samplers import SamplerConfig
from immiscible_diffusion.evaluation.images import EVAL_SEED
from immiscible_diffusion.evaluation.load_run import LoadedRun
from immiscible_diffusion.metrics.clip import Clip, cmmd, cmmd_features
from immiscible_diffusion.metrics.features import extractor_from_name
from immiscible_diffusion.metrics.features.base import data_batches, extract
from immiscible_diffusion.metrics.few_shot import few_shot_metrics
from immiscible_diffusion.training.recipe import Recipe

ClipMetric = Literal["score", "cmmd"]
CMMD_REAL = 30_000  # real images that CMMD compares with: the paper's number on COCO
BATCH = 64


def clip_metrics(
    metrics: Sequence[ClipMetric], folder: Path, dataset: DataSet, device: torch.device
) -> dict[str, Any]:
    """CLIPScore and CMMD of a folder of images, each with what it depends on.

    Args:
        metrics: score, for which the folder must hold its prompts, and cmmd.
        folder: images that ``immiscible sample --to`` wrote.
        dataset: real images.
        device: of CLIP.

    Raises:
        ValueError: CLIP's weights or the prompts are absent; says where they are looked for.
    """
    images, scores = SampleFolder(folder), dict[str, Any]()
    if "score" in metrics:
        score = Clip.load(device=device).score(images.with_prompts(BATCH))
        scores |= {
            "clip_score": score.mean,
            "clip_score_error": score.standard_error,
            "clip_score_model": f"{score.model}, 100 max(cos, 0)",
        }
    if "cmmd" in metrics:
        extractor = cmmd_features(device)
        rows = chosen(len(dataset), CMMD_REAL, seed=0)
        real = extract(extractor, data_batches(dataset, rows, BATCH))
        samples = extract(extractor, images.in_batches(BATCH))
        scores |= {
            "cmmd": cmmd(real, samples),
            "cmmd_real": len(real),
            "cmmd_model": f"{extractor.name}, {extractor.preprocessing}",
        }
    return scores


def trains_lora(recipe: Recipe) -> bool:
    """Whether the recipe trains adapters, on images too few for a Frechet distance."""
    return isinstance(recipe.model, StableDiffusionUNet) and recipe.model.lora is not None


def lora_metrics(run: LoadedRun, sampler: SamplerConfig, seed: int, size: int) -> dict[str, Any]:
    """Compare samples of the captions with the training images of the most common shape.

    Args:
        run: its recipe has the number of samples and the features.
        sampler: of the samples.
        seed: of the initial noise.
        size: samples at a time.
    """
    recipe, dataset = run.recipe, run.dataset
    if dataset.is_encoded:
        dataset = run.pictures
    real = dataset.batch(dataset.common_rows()).data
    generator, count = run.generator(sampler, size), recipe.of_images.samples
    batches = generator(run.model, count, seed=seed, sampler=sampler)
    samples = torch.cat([images for images, _ in batches]).cpu()
    extractor = extractor_from_name(
        recipe.of_images.features, dataset, seed=EVAL_SEED, device=str(run.device)
    )
    return {
        "step": run.step,
        "sampler": str(sampler),
        "seed": seed,
        "samples": len(samples),
        "features": extractor.name,
        "data": f"{dataset.name}, {len(real)} images",
        **dataclasses.asdict(few_shot_metrics(extractor, samples, real)),
    }
