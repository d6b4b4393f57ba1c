"""``immiscible evaluate RUN`` or ``--folder``."""

import dataclasses
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from immiscible_diffusion.applications.pusht.cli_evaluate import policy_figures
from immiscible_diffusion.applications.stable_diffusion.pipelines import (
    checkpoint_images,
    load_checkpoint,
)
from immiscible_diffusion.applications.stable_diffusion.scores import (
    ClipMetric,
    clip_metrics,
    lora_metrics,
    trains_lora,
)
from immiscible_diffusion.cli.options import Device, parse
from immiscible_diffusion.cli.sampler_options import SamplerChanges
from immiscible_diffusion.data import DataConfig, load_images
from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.data.folder_of_samples import SampleFolder
from immiscible_diffusion.data.hf_images import PICTURES
from immiscible_diffusion.diffusion.samplers import SamplerConfig
from immiscible_diffusion.evaluation.images import ImageEvaluator
from immiscible_diffusion.evaluation.load_run import LoadedRun
from immiscible_diffusion.metrics import METRICS, SPLITS, check_metrics
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.utils.atomic_files import read_json, write_json
from immiscible_diffusion.utils.device import pick_device
from immiscible_diffusion.utils.optional_deps import require_extra


@dataclass(frozen=True, kw_only=True)
class Options(SamplerChanges):
    """Score the images of a trained run against its data set.

    Args:
        run: the run folder.
        folder: score the images in this folder instead of making some.
        checkpoint: score a public unconditional DDPM instead, by its hub name
            (google/ddpm-cifar10-32) or its folder: made by diffusers with DDIM, it checks features
            and data against a published figure. Takes steps (100 by default), seed and samples.
        samples: images to make; the recipe's number by default.
        real: compare with so many real data, chosen at random; all by default.
        seed: of the initial noise.
        features: feature space: classifier, pixels, efficientnet, inception (FID) or dinov2
            (FD-DINOv2); the recipe's by default.
        metrics: which; frechet alone keeps no features, so any number of samples fits.
        clip_metrics: of a folder, metrics by CLIP besides: score (CLIPScore; needs the prompts that
            `immiscible sample --to` notes) and cmmd.
        calibrate: also score real data against real data, and pure noise: the best and the worst
            values of the metrics.
        batch_size: images at a time.
        device: where to sample and to compute features.
    """

    run: Annotated[Path, tyro.conf.Positional]
    folder: Path | None = None
    checkpoint: str | None = None
    samples: int | None = None
    real: int | None = None
    seed: int = 0
    features: str | None = None
    metrics: tuple[str, ...] = METRICS
    clip_metrics: tuple[ClipMetric, ...] = ()
    calibrate: bool = False
    batch_size: int = 512
    device: Device = "auto"


def main(arguments: list[str]) -> int:
    """Print the metrics and append them to RUN/evaluation.json."""
    options = parse(Options, arguments, "evaluate")
    check_metrics(options.metrics)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError(
            "evaluate runs in one process, and several would each do all of it; start it plainly "
            "(immiscible sample shares its work: sample first, then evaluate --folder)"
        )
    if options.folder and options.checkpoint:
        raise ValueError("folder and checkpoint are both to be scored; give one of them")
    if options.clip_metrics and not options.folder:
        raise ValueError(
            "clip_metrics score a folder: make one with `immiscible sample RUN --to FOLDER`, then "
            "give --folder"
        )
    run = RunDir.existing(options.run)
    if options.folder:
        result = evaluate_folder(options, run, options.folder)
    elif options.checkpoint:
        result = evaluate_checkpoint(options, run, options.checkpoint)
    else:
        result = evaluate_run(options, run)
    file = run.root / "evaluation.json"
    write_json(file, [*(read_json(file) if file.exists() else []), result])
    lines = [f"{name:16}{text(value)}\n" for name, value in result.items()]
    sys.stdout.write("".join(line for line in lines if not line.startswith("calibration")))
    return 0


def text(value: Any) -> str:
    """A figure to read; evaluation.json has all digits."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def evaluate_run(options: Options, run: RunDir) -> dict[str, Any]:
    """Score what the run's model makes."""
    trained = LoadedRun.load(run, options.device)
    sampler = options.of(trained.recipe.sampler)
    if trained.recipe.is_policy:
        return policy_figures(trained.sampled_by(sampler))
    recipe = with_options(options, trained.recipe)
    if trains_lora(recipe):
        tuned = dataclasses.replace(trained, recipe=recipe)
        return lora_metrics(tuned, sampler, options.seed, options.batch_size)
    generator = dataclasses.replace(trained.generator(sampler, options.batch_size), recipe=recipe)
    calls: list[int] = []
    how = {
        "step": trained.step,
        "ema": recipe.optim.averaging,
        "sampler": str(sampler),
        "step_selection": sampler.selection,
        "nfe": 0,
        "seed": options.seed,
    }

    def images() -> Iterator[Tensor]:
        count = recipe.of_images.samples
        for batch, nfe in generator(trained.model, count, seed=options.seed, sampler=sampler):
            calls.append(nfe)
            yield batch

    result = score(options, recipe, trained.pictures, trained.device, images())
    return {**how, "nfe": round(fmean(calls)), **result}


def evaluate_folder(options: Options, run: RunDir, folder: Path) -> dict[str, Any]:
    """Score images made elsewhere, resized as the run's data are."""
    recipe, device = run.recipe(), pick_device(options.device)
    real = real_images(recipe)
    channels, _, size = real.shape
    if shards := list(folder.glob("*.tar")):
        samples: DataSet = SampleFolder(folder, size, channels)
        files = f"png in {len(shards)} tar shards"
    else:
        files = encoding_of(folder, size)
        samples = load_images(
            DataConfig("folder", path=str(folder), size=size, channels=channels, labels=False)
        )
    recipe = with_options(dataclasses.replace(options, samples=len(samples)), recipe)
    by_clip = clip_metrics(options.clip_metrics, folder, real, device)
    batches = (samples.batch(rows).data for rows in torch.arange(len(samples)).split(512))
    result = score(options, recipe, real, device, batches)
    return {"folder": str(folder), "files": files, **result, **by_clip}


def evaluate_checkpoint(options: Options, run: RunDir, checkpoint: str) -> dict[str, Any]:
    """Score a public checkpoint."""
    usual = SamplerConfig("ddim", spacing="trailing")
    if dataclasses.replace(options.of(usual), steps=usual.steps) != usual:
        raise ValueError(
            "a checkpoint is sampled by ddim from normal noise, its steps selected as diffusers "
            "does; leave method, init_noise, spacing, eta and guidance"
        )
    steps = 100 if options.steps is None else options.steps
    if steps < 1 or options.batch_size < 1:
        raise ValueError(f"expected steps and batch_size >= 1, got {steps}, {options.batch_size}")
    recipe = with_options(options, run.recipe())
    real, device = real_images(recipe), pick_device(options.device)
    pipeline = load_checkpoint(checkpoint, real.shape, device)
    images = checkpoint_images(
        pipeline,
        recipe.of_images.samples,
        steps=steps,
        seed=options.seed,
        batch_size=options.batch_size,
    )
    how = {
        "checkpoint": checkpoint,
        "ema": "as published",
        "sampler": f"ddim {steps}",
        "step_selection": f"{pipeline.scheduler.config['timestep_spacing']}, as diffusers",
        "nfe": steps,
        "seed": options.seed,
    }
    return how | score(options, recipe, real, device, images)


def score(
    options: Options, recipe: Recipe, real: DataSet, device: torch.device, images: Iterator[Tensor]
) -> dict[str, Any]:
    """The metrics of ``images`` against ``real``, and what must stand beside them."""
    evaluator = ImageEvaluator.of(recipe, real, device, options.real)
    calibration = calibrate(options, evaluator, recipe.of_images.samples)
    metrics = evaluator(images, options.metrics)
    floor, used = evaluator.floor(metrics.samples), evaluator.reference.statistics.count
    return metrics.as_dict() | {
        "distance": evaluator.extractor.distance,
        "preprocessing": evaluator.extractor.preprocessing,
        "data": f"{real.name}{f' ({real.note})' if real.note else ''}, "
        + (str(used) if used == len(real) else f"{used} of {len(real)}"),
        "encoding": real.note or "of the source",
        "floor": "too few real data to tell" if floor is None else floor.note,
        **calibration,
    }


def calibrate(options: Options, evaluator: ImageEvaluator, samples: int) -> dict[str, Any]:
    """Real data against real data, and noise; printed before any image is made."""
    if not options.calibrate:
        return {}
    floor, metrics = evaluator.real_against_real(samples, options.metrics)
    values = {name: value for name, value in metrics.as_dict().items() if value is not None}
    distance = evaluator.extractor.distance
    first = f"too few real data for a {distance}"
    if floor is not None:
        values |= {"frechet": floor.mean, "frechet_low": floor.low, "frechet_high": floor.high}
        interval = f"{text(floor.low)} to {text(floor.high)} over {SPLITS} splits"
        first = f"{distance} {text(floor.mean)} ({interval})"
    others = [f"{n} {text(values[n])}" for n in METRICS if n != "frechet" and n in values]
    noise = evaluator.noise_distance(samples)
    sys.stdout.write(
        f"real against real, {metrics.samples:,} each: {', '.join([first, *others])}\n"
        f"pure noise, {samples:,}: {distance} {text(noise)}\n"
    )
    sys.stdout.flush()
    return {"calibration": values | {"frechet_of_noise": noise}}


def real_images(recipe: Recipe) -> DataSet:
    """The images that a recipe trains on; ValueError for a policy."""
    if not isinstance(recipe.data, DataConfig):
        raise ValueError(f"{recipe.name} trains a policy, which makes no images to score")
    return load_images(recipe.data)


def encoding_of(folder: Path, size: int) -> str:
    """How the images of a folder are encoded, and whether they were resized, by the first."""
    with require_extra("train", "reading images"):
        from PIL import Image
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURES)
    if not files:
        raise ValueError(f"{folder} holds no images")
    kinds = ", ".join(sorted({file.suffix.lower().lstrip(".") for file in files}))
    with Image.open(files[0]) as first:
        width, height = first.size
    resized = f", resized from {width} x {height} to {size} x {size}"
    return kinds if (width, height) == (size, size) else kinds + resized


def with_options(options: Options, recipe: Recipe) -> Recipe:
    """The recipe with the options that concern evaluation."""
    changes: dict[str, Any] = {"samples": options.samples, "features": options.features}
    changes = {name: value for name, value in changes.items() if value is not None}
    evaluation = dataclasses.replace(recipe.evaluation, **changes)
    return dataclasses.replace(recipe, evaluation=evaluation)
