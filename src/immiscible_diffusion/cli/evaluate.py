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
from immiscible_diffusion.evaluation.generate_folder import SETTINGS
from immiscible_diffusion.evaluation.images import ImageEvaluator
from immiscible_diffusion.evaluation.load_run import LoadedRun
from immiscible_diffusion.metrics import METRICS, SPLITS, check_metrics
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.utils.atomic_files import read_json, write_json
from immiscible_diffusion.utils.device import pick_device


@dataclass(frozen=True, kw_only=True)
class Options(SamplerChanges):
    """Score the images of a trained run against its data set.

    Args:
        run: the run folder.
        folder: score the images in this folder instead of making some.
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
    if options.clip_metrics and not options.folder:
        raise ValueError(
            "clip_metrics score a folder: make one with `immiscible sample RUN --to FOLDER`, then "
            "give --folder"
        )
    run = RunDir.existing(options.run)
    folder = options.folder
    result = evaluate_folder(options, run, folder) if folder else evaluate_run(options, run)
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
    if not isinstance(recipe.data, DataConfig):
        raise ValueError(f"{recipe.name} trains a policy, which makes no images to score")
    real = load_images(recipe.data)
    channels, height, width = real.shape
    samples = SampleFolder(folder, width, channels)
    original = SampleFolder(folder, channels=channels).shape
    resized = f", resized from {original[2]} x {original[1]} to {width} x {height}"
    made = folder / SETTINGS
    how = {
        "folder": str(folder),
        "files": samples.encoding + ("" if original == real.shape else resized),
        "sampling": read_json(made) if made.is_file() else None,
    }
    recipe = with_options(dataclasses.replace(options, samples=len(samples)), recipe)
    by_clip = clip_metrics(options.clip_metrics, folder, real, device)
    return how | score(options, recipe, real, device, samples.in_batches()) | by_clip


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


def with_options(options: Options, recipe: Recipe) -> Recipe:
    """The recipe with the options that concern evaluation."""
    changes: dict[str, Any] = {"samples": options.samples, "features": options.features}
    changes = {name: value for name, value in changes.items() if value is not None}
    evaluation = dataclasses.replace(recipe.evaluation, **changes)
    return dataclasses.replace(recipe, evaluation=evaluation)
