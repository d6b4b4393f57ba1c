"""``immiscible evaluate RUN`` or ``--folder``."""

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from immiscible_diffusion.applications.pusht.cli_evaluate import policy_figures
from immiscible_diffusion.applications.stable_diffusion.clip_scores import ClipFigure, clip_figures
from immiscible_diffusion.applications.stable_diffusion.lora_scores import (
    is_tuned_on_few,
    tuned_figures,
)
from immiscible_diffusion.applications.stable_diffusion.pipelines import (
    checkpoint_images,
    load_checkpoint,
)
from immiscible_diffusion.cli.options import Device, parse
from immiscible_diffusion.cli.sampler_options import SamplerChanges
from immiscible_diffusion.data import DataConfig, load_images
from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.data.hf_images import PICTURES
from immiscible_diffusion.diffusion.samplers import SamplerConfig
from immiscible_diffusion.evaluation.bulk import BulkPictures, BulkSet
from immiscible_diffusion.evaluation.images import ImageEvaluator, judged
from immiscible_diffusion.evaluation.load_run import LoadedRun
from immiscible_diffusion.metrics import METRICS, SPLITS, SampleMetrics, check_metrics
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.utils.atomic_files import write_json
from immiscible_diffusion.utils.device import pick_device
from immiscible_diffusion.utils.optional_deps import require_extra


@dataclass(frozen=True, kw_only=True)
class Options(SamplerChanges):
    """Judge the images of a trained run against its data set.

    Args:
        run: the run folder.
        folder: judge the images in this folder instead of making some.
        checkpoint: judge a public unconditional DDPM instead, by its name on the hub
            (google/ddpm-cifar10-32) or its folder: made by diffusers with DDIM, it checks the
            judge against a published figure. Takes steps (100 by default), seed and samples.
        samples: images to make; the recipe's number by default.
        real: compare with so many real data, chosen at random; all by default.
        seed: of the start noise.
        features: feature space: classifier, pixels, efficientnet, inception (FID) or dinov2
            (FD-DINOv2); the recipe's by default.
        metrics: which; frechet alone keeps no features, so any number of samples fits.
        clip_metrics: with folder, figures by CLIP besides: score (CLIPScore; the folder must be of
            `immiscible bulk` with prompts) and cmmd.
        calibrate: score real against real first, and pure noise, what learning nothing scores:
            the two ends of the scale.
        batch_size: images at a time.
        device: where to sample and to judge.
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
    run = RunDir.existing(options.run)
    result = judged_of(options)(options, run)
    existing = run.root / "evaluation.json"
    results = json.loads(existing.read_text(encoding="utf-8")) if existing.exists() else []
    write_json(existing, [*results, result])
    shown = {name: value for name, value in result.items() if name != "calibration"}
    sys.stdout.write("".join(f"{name:16}{said(value)}\n" for name, value in shown.items()))
    return 0


def judged_of(options: Options) -> Callable[[Options, RunDir], dict[str, Any]]:
    """What is to be judged: a folder, a public checkpoint, or the run's model."""
    if options.folder and options.checkpoint:
        raise ValueError("folder and checkpoint are two things to judge; give one")
    if options.folder:
        return of_folder
    if options.clip_metrics:
        raise ValueError(
            "clip_metrics judge a folder: make one with `immiscible bulk`, then give --folder"
        )
    return of_checkpoint if options.checkpoint else of_run


def said(value: Any) -> str:
    """A figure to read; evaluation.json has all digits."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def of_run(options: Options, run: RunDir) -> dict[str, Any]:
    """Judge what the run's model makes."""
    trained = LoadedRun.load(run, options.device)
    if trained.recipe.is_policy:
        return policy_figures(trained.sampled_by(options.of(trained.recipe.sampler)))
    recipe = with_options(options, trained.recipe)
    sampler = options.of(recipe.sampler)
    if is_tuned_on_few(recipe):
        tuned = dataclasses.replace(trained, recipe=recipe)
        return tuned_figures(tuned, sampler, options.seed, options.batch_size)
    generator = dataclasses.replace(trained.generator(sampler, options.batch_size), recipe=recipe)
    pictures = trained.pictures
    judge = ImageEvaluator.of(recipe, pictures, trained.device, options.real)
    calibration = calibrated(options, judge, recipe.evaluation.samples)
    quality, nfe, _ = judged(
        generator, judge, trained.model, options.seed, sampler, metrics=options.metrics
    )
    how = {
        "step": trained.step,
        "ema": recipe.optim.averaging,
        "sampler": str(sampler),
        "step_selection": sampler.selection,
        "nfe": nfe,
        "seed": options.seed,
    }
    return how | described(quality, judge, pictures) | calibration


def of_folder(options: Options, run: RunDir) -> dict[str, Any]:
    """Judge images made elsewhere, sized as the run's data."""
    recipe = with_options(options, run.recipe())
    dataset = load_images(recipe.data)
    shape = dataset.shape
    assert options.folder is not None
    images = of_size(options.folder, shape)
    recipe = dataclasses.replace(
        recipe, evaluation=dataclasses.replace(recipe.evaluation, samples=len(images))
    )
    device = pick_device(options.device)
    judge = ImageEvaluator.of(recipe, dataset, device, options.real)
    by_clip = clip_figures(options.clip_metrics, options.folder, dataset, device)  # or say why not
    calibration = calibrated(options, judge, len(images))
    quality = judge(in_batches(images), options.metrics)
    how = {"folder": str(options.folder), "pictures": of_pictures(options.folder, shape[-1])}
    return how | described(quality, judge, dataset) | by_clip | calibration


def of_size(folder: Path, shape: tuple[int, ...]) -> DataSet:
    """The pictures of a folder, or of its tar shards, in the shape of the data."""
    bulk = BulkPictures(folder)
    if bulk.shards:
        return BulkSet(bulk, shape[-1], shape[0])
    config = DataConfig(
        name="folder", path=str(folder), size=shape[-1], channels=shape[0], labels=False
    )
    return load_images(config)


def of_checkpoint(options: Options, run: RunDir) -> dict[str, Any]:
    """Judge a public checkpoint against the run's data."""
    recipe = with_options(options, run.recipe())
    usual = SamplerConfig("ddim", spacing="trailing")
    if dataclasses.replace(options.of(usual), steps=usual.steps) != usual:
        raise ValueError(
            "a checkpoint is sampled by ddim from normal noise, its steps selected as diffusers "
            "does; leave method, start, spacing, eta and guidance"
        )
    steps = 100 if options.steps is None else options.steps
    if steps < 1 or options.batch_size < 1:
        raise ValueError(f"expected steps and batch_size >= 1, got {steps}, {options.batch_size}")
    dataset, device = load_images(recipe.data), pick_device(options.device)
    assert options.checkpoint is not None
    pipeline = load_checkpoint(options.checkpoint, dataset.shape, device)
    judge = ImageEvaluator.of(recipe, dataset, device, options.real)
    samples = recipe.evaluation.samples
    calibration = calibrated(options, judge, samples)
    images = checkpoint_images(
        pipeline, samples, steps=steps, seed=options.seed, batch_size=options.batch_size
    )
    how = {
        "checkpoint": options.checkpoint,
        "ema": "as published",
        "sampler": f"ddim {steps}",
        "step_selection": f"{pipeline.scheduler.config['timestep_spacing']}, as diffusers",
        "nfe": steps,
        "seed": options.seed,
    }
    return how | described(judge(images, options.metrics), judge, dataset) | calibration


def calibrated(options: Options, judge: ImageEvaluator, samples: int) -> dict[str, Any]:
    """Real against real, and noise: said before anything is made; nothing unless asked for."""
    if not options.calibrate:
        return {}
    floor, quality = judge.real_against_real(samples, options.metrics)
    values = {name: value for name, value in quality.as_dict().items() if value is not None}
    if floor is not None:
        values |= {"frechet": floor.mean, "frechet_low": floor.low, "frechet_high": floor.high}
    figures = [
        f"{name} {said(values[name])}" for name in METRICS if name != "frechet" and name in values
    ]
    distance = judge.extractor.distance
    if floor is None:
        figures.insert(0, f"too few real data for a {distance}")
    else:
        interval = f"{said(floor.low)} to {said(floor.high)} over {SPLITS} splits"
        figures.insert(0, f"{distance} {said(floor.mean)} ({interval})")
    sys.stdout.write(f"real against real, {quality.samples:,} each: {', '.join(figures)}\n")
    noise = judge.noise_distance(samples)
    sys.stdout.write(f"pure noise, {samples:,}: {distance} {said(noise)}\n")
    sys.stdout.flush()
    return {"calibration": values | {"frechet_of_noise": noise}}


def of_pictures(folder: Path, size: int) -> str:
    """How the pictures of a folder are encoded, and whether they were resized, as far as seen."""
    with require_extra("train", "reading pictures"):
        from PIL import Image
    if bulk := BulkPictures(folder).shards:
        return f"png in {len(bulk)} tar shards"
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURES)
    kinds = ", ".join(sorted({file.suffix.lower().lstrip(".") for file in files}))
    with Image.open(files[0]) as first:
        width, height = first.size
    same = (width, height) == (size, size)
    return kinds if same else f"{kinds}, resized from {width} x {height} to {size} x {size}"


def with_options(options: Options, recipe: Any) -> Any:
    """The recipe with the options that concern evaluation."""
    evaluation = recipe.evaluation
    if options.samples is not None:
        evaluation = dataclasses.replace(evaluation, samples=options.samples)
    if options.features is not None:
        evaluation = dataclasses.replace(evaluation, features=options.features)
    return dataclasses.replace(recipe, evaluation=evaluation)


def in_batches(images: DataSet) -> Iterator[Tensor]:
    """All images, 512 at a time."""
    for rows in torch.arange(len(images)).split(512):
        yield images.batch(rows).data


def described(quality: SampleMetrics, judge: ImageEvaluator, dataset: DataSet) -> dict[str, Any]:
    """The figures, and what must stand beside them."""
    floor = judge.floor(quality.samples)
    return quality.as_dict() | {
        "distance": judge.extractor.distance,
        "preprocessing": judge.extractor.preprocessing,
        "data": f"{dataset.name}{f' ({dataset.note})' if dataset.note else ''}, {_used(judge)}",
        "encoding": dataset.note or "of the source",
        "floor": floor.note if floor is not None else "too few real data to tell",
    }


def _used(judge: ImageEvaluator) -> str:
    """How many of the real data the figures compare with."""
    used, there = judge.reference.statistics.count, len(judge.dataset)
    return str(there) if used == there else f"{used} of {there}"
