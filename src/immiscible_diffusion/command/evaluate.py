"""``immiscible evaluate RUN`` or ``--folder``."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from immiscible_diffusion.command.options import Device, parse
from immiscible_diffusion.command.sample import chosen_sampler
from immiscible_diffusion.data import DataConfig, DataSet, load_images
from immiscible_diffusion.files import write_json
from immiscible_diffusion.judge import Judge, judged
from immiscible_diffusion.metric import Quality
from immiscible_diffusion.runfolder import RunFolder
from immiscible_diffusion.trained import Trained


@dataclass(frozen=True)
class Options:
    """Judge the images of a trained run against its data set.

    Args:
        run: the run folder.
        folder: judge the images in this folder instead of making some.
        samples: images to make; the recipe's number by default.
        seed: of the start noise.
        method: sampler (euler, heun, midpoint, dopri5); the recipe's by default.
        steps: of the sampler.
        start: normal, N(0, I), or matched, the law of the noise the run was trained on; the
            recipe's by default.
        features: feature space, classifier or pixels; the recipe's by default.
        batch_size: images at a time.
        device: where to sample.
    """

    run: Annotated[Path, tyro.conf.Positional]
    folder: Path | None = None
    samples: int | None = None
    seed: int = 0
    method: str | None = None
    steps: int | None = None
    start: str | None = None
    features: str | None = None
    batch_size: int = 512
    device: Device = "auto"


def main(arguments: list[str]) -> int:
    """Print the metrics and append them to RUN/evaluation.json."""
    options = parse(Options, arguments, "evaluate")
    run = RunFolder.existing(options.run)
    result = of_folder(options, run) if options.folder else of_run(options, run)
    existing = run.root / "evaluation.json"
    results = json.loads(existing.read_text(encoding="utf-8")) if existing.exists() else []
    write_json(existing, [*results, result])
    sys.stdout.write("".join(f"{name:14}{said(value)}\n" for name, value in result.items()))
    return 0


def said(value: Any) -> str:
    """A figure to read; evaluation.json has all digits."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def of_run(options: Options, run: RunFolder) -> dict[str, Any]:
    """Judge what the run's model makes."""
    trained = Trained.load(run, options.device)
    recipe = with_options(options, trained.recipe)
    sampler = chosen_sampler(recipe.sampler, options)
    generator = dataclasses.replace(trained.generator(sampler, options.batch_size), recipe=recipe)
    judge = Judge.of(recipe, trained.dataset)
    quality, nfe, _ = judged(generator, judge, trained.model, options.seed, sampler)
    how = {"step": trained.step, "sampler": str(sampler), "nfe": nfe, "seed": options.seed}
    return how | described(quality, judge, trained.dataset)


def of_folder(options: Options, run: RunFolder) -> dict[str, Any]:
    """Judge images made elsewhere, sized as the run's data."""
    recipe = with_options(options, run.recipe())
    dataset = load_images(recipe.data)
    shape = dataset.shape
    config = DataConfig(
        name="folder", path=str(options.folder), size=shape[-1], channels=shape[0], labels=False
    )
    images = load_images(config)
    recipe = dataclasses.replace(
        recipe, evaluation=dataclasses.replace(recipe.evaluation, samples=len(images))
    )
    judge = Judge.of(recipe, dataset)
    return {"folder": str(options.folder)} | described(judge(in_batches(images)), judge, dataset)


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


def described(quality: Quality, judge: Judge, dataset: DataSet) -> dict[str, Any]:
    """The figures, and what must stand beside them."""
    floor = judge.reference.floor
    return quality.as_dict() | {
        "data": f"{dataset.name}{f' ({dataset.note})' if dataset.note else ''}, {len(dataset)}",
        "floor": floor.note if floor is not None else "too few real data to tell",
    }
