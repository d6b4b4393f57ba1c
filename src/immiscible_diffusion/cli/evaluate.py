"""``immiscible evaluate RUN`` or ``--folder``."""

import dataclasses
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import tyro

from immiscible_diffusion.applications.stable_diffusion.scores import ClipMetric, clip_metrics
from immiscible_diffusion.cli.options import Device, parse
from immiscible_diffusion.cli.sampler_options import SamplerChanges
from immiscible_diffusion.data import DataConfig, load_images
from immiscible_diffusion.data.folder_of_samples import SampleFolder
from immiscible_diffusion.evaluation.evaluator import Evaluator
from immiscible_diffusion.evaluation.generate_folder import SETTINGS
from immiscible_diffusion.evaluation.images import ImageEvaluator
from immiscible_diffusion.evaluation.load_run import load_run
from immiscible_diffusion.metrics import METRICS, check_metrics
from immiscible_diffusion.metrics.reference_cache import write_npz
from immiscible_diffusion.training.builders import Run
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.utils.atomic_files import read_json, read_record, write_json
from immiscible_diffusion.utils.checks import FiniteFloat, NonNegativeInt, PositiveInt
from immiscible_diffusion.utils.device import pick_device
from immiscible_diffusion.utils.folder_lock import folder_lock
from immiscible_diffusion.utils.progress import watched


@dataclass(frozen=True, kw_only=True)
class Options(SamplerChanges):
    """Score the images of a trained run against its data set.

    Args:
        run: the run folder.
        folder: score the images in this folder instead of making some.
        samples: images to make; the recipe's number by default.
        checkpoint: step of a kept checkpoint to score; by default the last.
        checkpoints: steps of kept checkpoints to score one after another, for a table with the best and the mean; 0
            for all that are kept.
        real: compare with so many real data, chosen at random; all by default.
        reference: compare with these statistics of real data, .npz with mu and sigma as clean-fid and pytorch-fid keep
            them, by the Frechet distance alone.
        save_reference: write the statistics of the real data to this .npz file.
        seed: seed of the initial noise.
        features: feature space: classifier, pixels, efficientnet, inception (FID) or dinov2 (FD-DINOv2); the recipe's
            by default.
        pixels: also the Frechet distance of the pixels; as the recipe says by default, if there are
            enough images.
        metrics: which; frechet alone keeps no features, so any number of samples fits.
        guidances: weights of guidance to score one after another, for a table with the best by Frechet distance.
        clip_metrics: metrics of a folder by CLIP besides: score (CLIPScore; needs the prompts that `immiscible sample
            --to` notes) and cmmd.
        calibrate: also score real data against real data, and pure noise: the best and the worst values of the
            metrics.
        batch_size: images at a time.
        device: where to sample and to compute features.
        allow_code: the code that the coupling of the run may import, such as my_module:MyCoupling, if it is one of
            yours (only needed for init_noise matched).
    """

    run: Annotated[Path, tyro.conf.Positional]
    folder: Path | None = None
    samples: Annotated[int, ">= 2"] | None = None
    checkpoint: PositiveInt | None = None
    checkpoints: tuple[NonNegativeInt, ...] = ()
    real: Annotated[int, ">= 2"] | None = None
    reference: str | None = None
    save_reference: Path | None = None
    seed: NonNegativeInt = 0
    features: str | None = None
    pixels: bool | None = None
    metrics: tuple[str, ...] = METRICS
    guidances: tuple[FiniteFloat, ...] = ()
    clip_metrics: tuple[ClipMetric, ...] = ()
    calibrate: bool = False
    batch_size: PositiveInt = 512
    device: Device = "auto"
    allow_code: str | None = None


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
            "clip_metrics score a folder: make one with `immiscible sample RUN --to FOLDER`, then give --folder"
        )
    run = RunDir.existing(options.run)
    folder = options.folder
    if options.guidances or options.checkpoints:
        results = evaluate_series(options, run)
        keep(run, results)
        sys.stdout.write(table(results))
        return 0
    result = evaluate_folder(options, run, folder) if folder else evaluate_run(options, run)
    keep(run, [result])
    result.pop("calibration", None)  # printed before
    sys.stdout.write(rows({name: value for name, value in result.items() if value is not None}))
    return 0


def keep(run: RunDir, results: list[dict[str, Any]]) -> None:
    """Append to RUN/evaluation.json."""
    file = run.root / "evaluation.json"
    with folder_lock(run.root, ".evaluation.lock"):
        before: list[Any] = read_json(file) if file.exists() else []
        if not isinstance(before, list):
            raise ValueError(f"{file} is no list of evaluations; remove it")
        write_json(file, [*before, *results])


def rows(values: dict[str, Any]) -> str:
    """Names and values in two columns."""
    width = max(map(len, values)) + 2
    return "".join(f"{name:{width}}{text(value)}\n" for name, value in values.items())


def text(value: Any) -> str:
    """A figure to read; evaluation.json has all digits."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def evaluate_run(options: Options, run_dir: RunDir) -> dict[str, Any]:
    """Score what the run's model makes."""
    run = load_run(run_dir, options.device, allow_code=options.allow_code or False, step=options.checkpoint)
    run = run.with_sampler(options.of(run.recipe.sampler))
    evaluator = checked_evaluator(options, run)
    calibration = calibrate(options, evaluator)
    scores = evaluator.evaluate_run(run, seed=options.seed, batch_size=options.batch_size, metrics=options.metrics)
    return {**scores, **calibration}


def evaluate_series(options: Options, run_dir: RunDir) -> list[dict[str, Any]]:
    """Score what the run's model makes with every weight of guidance, or of every checkpoint; mark the best.

    The best is of the least Frechet distance; of a policy, of the highest score.
    """
    weighted = bool(options.guidances)
    twice = weighted and (options.guidance is not None or options.checkpoints != ())
    if options.folder or "frechet" not in options.metrics or twice or (options.checkpoints and options.checkpoint):
        raise ValueError(
            "guidances, and checkpoints, sample a run one after another and compare Frechet distances: give one of "
            "the two, leave folder and guidance or checkpoint, and keep frechet among the metrics"
        )
    steps = tuple(run_dir.kept_checkpoints) if 0 in options.checkpoints else options.checkpoints
    if options.checkpoints and not steps:
        raise ValueError(f"{run_dir.root} keeps no checkpoints; train with --checkpoints_total_limit")
    first = steps[0] if steps else options.checkpoint
    run = load_run(run_dir, options.device, allow_code=options.allow_code or False, step=first)
    evaluator = checked_evaluator(options, run)
    if weighted and not isinstance(evaluator, ImageEvaluator):
        raise ValueError(f"{run.recipe.name} is not scored by a Frechet distance; give one guidance at a time")
    calibration = calibrate(options, evaluator)
    how: dict[str, Any] = {"seed": options.seed, "batch_size": options.batch_size, "metrics": options.metrics}
    results = []
    for weight in options.guidances:
        one = run.with_sampler(replace(options, guidance=weight).of(run.recipe.sampler))
        results.append({"guidance": weight, "best": False, **evaluator.evaluate_run(one, **how), **calibration})
    for step in steps:
        one = load_run(run_dir, options.device, run.task.dataset, allow_code=options.allow_code or False, step=step)
        one = one.with_sampler(options.of(one.recipe.sampler))
        results.append({"best": False, **evaluator.evaluate_run(one, **how), **calibration})
    key = "frechet" if "frechet" in results[0] else "score" if "score" in results[0] else "action_error"
    best = (max if key == "score" else min)(results, key=lambda result: result[key])
    best["best"] = True
    return results


def table(results: list[dict[str, Any]]) -> str:
    """What the results have in common, a row of metrics for every weight or checkpoint, and their mean."""
    row = "guidance" if "guidance" in results[0] else "step"
    names = [name for name, value in results[0].items() if isinstance(value, float) and name != "kid_error"]
    columns = [row, *(name for name in names if name != row)]
    common = {n: v for n, v in results[0].items() if all(result[n] == v for result in results) and n != "calibration"}
    lines = ["".join(f"{name:14}" for name in columns)]
    lines += ["".join(f"{text(r[name]):14}" for name in columns) + "best" * r["best"] for r in results]
    if row == "step":
        means = [text(fmean(r[name] for r in results)) for name in columns[1:]]
        lines.append("".join(f"{value:14}" for value in ("mean", *means)))
    every = rows({name: value for name, value in common.items() if name not in columns and value is not None})
    return every + "\n" + "\n".join(line.rstrip() for line in lines) + "\n"


def evaluate_folder(options: Options, run: RunDir, folder: Path) -> dict[str, Any]:
    """Score images made elsewhere, resized as the run's data are."""
    recipe, device = run.recipe(), pick_device(options.device)
    data = recipe.task.data
    if not isinstance(data, DataConfig):
        raise ValueError(f"{recipe.name} makes no images to score")
    if options.checkpoint or options.of(recipe.sampler) != recipe.sampler:
        raise ValueError("the images of a folder are there already: leave checkpoint and the options of the sampler")
    real = load_images(data)
    channels, height, width = real.shape
    samples = SampleFolder(folder, width, channels)
    original = SampleFolder(folder, channels=channels).shape
    resized = f", resized from {original[2]} x {original[1]} to {width} x {height}"
    made = folder / SETTINGS
    how = {
        "folder": str(folder),
        "files": samples.encoding + ("" if original == real.shape else resized),
        "sampling": read_record(made) if made.is_file() else None,
    }
    config = eval_config(replace(options, samples=len(samples)), recipe)
    by_clip = clip_metrics(options.clip_metrics, folder, real, device)
    evaluator = ImageEvaluator.of(real, config, device, options.real)
    check_pixels(options, evaluator)
    save_reference(options, evaluator)
    calibration = calibrate(options, evaluator)
    metrics = evaluator.measure(watched(samples.in_batches(), len(samples), "scoring"), options.metrics)
    scores = metrics.as_dict() | evaluator.describe(metrics.samples)
    return how | scores | calibration | by_clip


def calibrate(options: Options, evaluator: Evaluator) -> dict[str, Any]:
    """Real data against real data, and noise; printed before any image is made."""
    if not options.calibrate:
        return {}
    values = evaluator.calibrate(options.metrics)
    sys.stdout.write("real against real, and the distance of pure noise:\n")
    sys.stdout.write(rows(values))
    sys.stdout.flush()
    return {"calibration": values}


def checked_evaluator(options: Options, run: Run) -> Evaluator:
    """What scores the run, as the options ask for."""
    evaluator: Evaluator = run.task.evaluator(eval_config(options, run.recipe), options.real)
    check_pixels(options, evaluator)
    save_reference(options, evaluator)
    return evaluator


def save_reference(options: Options, evaluator: Evaluator) -> None:
    """Write the statistics of the real data, if asked for; ValueError where there are none."""
    if options.save_reference is not None:
        if not isinstance(evaluator, ImageEvaluator):
            raise ValueError("save_reference writes statistics of images, and this run is not scored by them")
        write_npz(options.save_reference, evaluator.reference.statistics)


def check_pixels(options: Options, evaluator: Evaluator) -> None:
    """ValueError if pixels are asked for by name and there are too few images for them."""
    if options.pixels and isinstance(evaluator, ImageEvaluator) and evaluator.pixels is None:
        raise ValueError("pixels: too few images (see the notice above); give more samples and real data, or leave it")


def eval_config(options: Options, recipe: Recipe) -> Any:
    """How the recipe is evaluated, with the options that concern it."""
    names = ("samples", "features", "pixels", "reference")
    changes: dict[str, Any] = {name: getattr(options, name) for name in names}
    changes = {name: value for name, value in changes.items() if value is not None}
    known = {field.name for field in dataclasses.fields(recipe.task.eval)}
    if wrong := changes.keys() - known:
        raise ValueError(f"{recipe.name} makes no images to score; leave {', '.join(wrong)}")
    return replace(recipe.task.eval, **changes)
