"""``immiscible evaluate RUN`` or ``--folder``."""

import dataclasses
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from immiscible_diffusion.applications.stable_diffusion.clip_scores import ClipFigure, clip_figures
from immiscible_diffusion.applications.stable_diffusion.pipelines import (
    checkpoint_images,
    load_checkpoint,
)
from immiscible_diffusion.cli.options import Device, parse
from immiscible_diffusion.cli.sampler_options import SamplerChanges
from immiscible_diffusion.data import DataConfig, load_images
from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.data.folder_of_samples import SampleFolder
from immiscible_diffusion.data.hf_images import PICTURES
from immiscible_diffusion.diffusion.samplers import SamplerConfig
from immiscible_diffusion.evaluation.config import ImageEvalConfig
from immiscible_diffusion.evaluation.evaluator import Evaluator
from immiscible_diffusion.evaluation.images import ImageEvaluator
from immiscible_diffusion.evaluation.load_run import load_run
from immiscible_diffusion.metrics import METRICS, check_metrics
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
    clip_metrics: tuple[ClipFigure, ...] = ()
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


def evaluate_run(options: Options, run_dir: RunDir) -> dict[str, Any]:
    """Score what the run's model makes."""
    run = load_run(run_dir, options.device)
    run = run.with_sampler(options.of(run.recipe.sampler))
    evaluator = run.task.evaluator(eval_config(options, run.recipe), options.real)
    calibration = calibrate(options, evaluator)
    scores = evaluator.evaluate_run(
        run, seed=options.seed, batch_size=options.batch_size, metrics=options.metrics
    )
    return {**scores, **calibration}


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
    config = eval_config(dataclasses.replace(options, samples=len(samples)), recipe)
    by_clip = clip_figures(options.clip_metrics, folder, real, device)
    batches = (samples.batch(rows).data for rows in torch.arange(len(samples)).split(512))
    result = score(options, config, real, device, batches)
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
    recipe = run.recipe()
    config = eval_config(options, recipe)
    real, device = real_images(recipe), pick_device(options.device)
    pipeline = load_checkpoint(checkpoint, real.shape, device)
    images = checkpoint_images(
        pipeline,
        config.samples,
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
    return how | score(options, config, real, device, images)


def score(
    options: Options,
    config: ImageEvalConfig,
    real: DataSet,
    device: torch.device,
    images: Iterator[Tensor],
) -> dict[str, Any]:
    """The metrics of ``images`` against ``real``, and what must stand beside them."""
    evaluator = ImageEvaluator.of(real, config, device, options.real)
    calibration = calibrate(options, evaluator)
    metrics = evaluator.measure(images, options.metrics)
    return metrics.as_dict() | evaluator.describe(metrics.samples) | calibration


def calibrate(options: Options, evaluator: Evaluator) -> dict[str, Any]:
    """Real data against real data, and noise; printed before any image is made."""
    if not options.calibrate:
        return {}
    values = evaluator.calibrate(options.metrics)
    sys.stdout.write("real against real, and the distance of pure noise:\n")
    sys.stdout.write("".join(f"  {name:20}{text(value)}\n" for name, value in values.items()))
    sys.stdout.flush()
    return {"calibration": values}


def real_images(recipe: Recipe) -> DataSet:
    """The images that a recipe trains on; ValueError for a policy."""
    data = recipe.task.data
    if not isinstance(data, DataConfig):
        raise ValueError(f"{recipe.name} makes no images to score")
    return load_images(data)


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


def eval_config(options: Options, recipe: Recipe) -> Any:
    """How the recipe is evaluated, with the options that concern it."""
    changes: dict[str, Any] = {"samples": options.samples, "features": options.features}
    changes = {name: value for name, value in changes.items() if value is not None}
    known = {field.name for field in dataclasses.fields(recipe.task.eval)}
    if wrong := changes.keys() - known:
        raise ValueError(f"{recipe.name} makes no images to score; leave {', '.join(wrong)}")
    return dataclasses.replace(recipe.task.eval, **changes)
