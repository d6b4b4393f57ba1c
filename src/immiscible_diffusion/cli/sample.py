"""``immiscible sample RUN [--to DIR]``."""

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor

from immiscible_diffusion.applications.stable_diffusion.load_pipeline import (
    load_pipeline,
    pipeline_digests,
    sample_pipeline,
)
from immiscible_diffusion.cli.options import Device, parse
from immiscible_diffusion.cli.sampler_options import SamplerChanges
from immiscible_diffusion.data.folder_of_samples import PROMPTS, SampleFolder
from immiscible_diffusion.data.prompts import Synonyms, check_template, class_prompts
from immiscible_diffusion.evaluation.generate_folder import claim_folder, generate_folder
from immiscible_diffusion.evaluation.load_run import load_run
from immiscible_diffusion.evaluation.sample_writers import SampleWriter
from immiscible_diffusion.metrics.features.preprocess import weights_digest
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.utils.atomic_files import atomic_path, write_text
from immiscible_diffusion.utils.checks import NonNegativeInt, PositiveInt
from immiscible_diffusion.utils.device import process_state, rank_world_device
from immiscible_diffusion.utils.folder_lock import shared_lock
from immiscible_diffusion.utils.images import image_grid

GRID = 64
NOT_OF_PIPELINES = (
    "checkpoint",
    "method",
    "tolerance",
    "init_noise",
    "init_scale",
    "prune",
    "shift",
    "spacing",
    "eta",
    "clip",
)


@dataclass(frozen=True, kw_only=True)
class Options(SamplerChanges):
    """Make images with a trained run, or with a published pipeline of diffusers.

    Image i depends on the seed and i alone, and is of class (or prompt) i mod their number. With
    --to the same command resumes after an interruption, without a duplicate or a gap; under
    accelerate launch every process makes its share. Examples:

    immiscible sample runs/digits-flow/knn-seed0

    immiscible sample RUN --to images --count 50000 --format tar

    immiscible sample --pipeline NAME --to images --count 50000 --classes classes.txt

    immiscible sample --pipeline google/ddpm-cifar10-32 --to images --count 10000 --sampling-steps 100

    Args:
        run: a run folder; its averaged weights are sampled.
        checkpoint: step of a kept checkpoint to sample; by default the last.
        pipeline: sample this instead: a folder with a pipeline of diffusers, or its hub name; an unconditional one by
            DDIM.
        to: folder for the images; by default RUN/images/STEP-SAMPLER-SEED, made again, and a grid of its first images
            beside it.
        count: images in all; more can be asked for later.
        seed: seed of the initial noise.
        prompt: text to show, one or several, for a model conditioned on text.
        prompts: a file of prompts, one a line.
        classes: a file of class names, one a line, synonyms separated by commas.
        template: the prompt for a class.
        synonyms: which synonyms of a class name are used.
        format: png, files {class}_{i}.png; tar, webdataset shards of them; or both.
        shard_size: images in a tar shard.
        batch_size: images at a time, on each process; by default 256 and at most what the VAE takes, 16 with a
            pipeline.
        precision: precision of a pipeline.
        device: where to sample.
        allow_code: the code that the coupling of the run may import, such as my_module:MyCoupling, if it is one of
            yours (only needed for init_noise matched).
    """

    run: Annotated[Path | None, tyro.conf.Positional] = None
    checkpoint: PositiveInt | None = None
    pipeline: str | None = None
    to: Path | None = None
    count: PositiveInt = 64
    seed: NonNegativeInt = 0
    prompt: tuple[str, ...] = ()
    prompts: Path | None = None
    classes: Path | None = None
    template: str = "{label}"
    synonyms: Synonyms = "first"
    format: Literal["png", "tar", "both"] = "png"
    shard_size: PositiveInt = 1000
    batch_size: PositiveInt | None = None
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    device: Device = "auto"
    allow_code: str | None = None


@dataclass
class Source:
    """What makes images.

    Attributes:
        draw: makes the images ``[b, C, H, W]`` of b indices.
        settings: what they depend on, for the record.
        classes: names of the classes of image 0, 1, ..., in turn; none where there are none.
        batch_size: images at a time.
    """

    draw: Callable[[Sequence[int]], Tensor]
    settings: dict[str, Any]
    classes: Sequence[str]
    batch_size: int


def main(arguments: list[str]) -> int:
    """Make the images that are missing; say how many exist."""
    options = parse(Options, arguments, "sample")
    ranks = process_state(options.device)
    rank, world = ranks.process_index, ranks.num_processes
    if (options.run is None) == (options.pipeline is None):
        raise ValueError("what is to be sampled? give a run folder, or --pipeline NAME_OR_FOLDER")
    names, prompts = texts(options)
    source = (of_run if options.run else of_pipeline)(options, prompts)
    names, settings = names or source.classes, source.settings
    settings |= {"seed": options.seed} | ({"prompts": digest(prompts)} if prompts else {})
    series = f"step{settings.get('step')}-{settings.get('sampler', '').replace(' ', '')}-seed{options.seed}"
    series += f"-{settings['prompts'][:8]}" if prompts else ""
    out = options.to or Path(str(options.run), "images", series)
    with shared_lock(out, ranks):
        if options.to:
            shard = None if options.format == "png" else options.shard_size
            named = {"classes": digest(names), "format": options.format, "shard_size": shard}
            claim_folder(out, settings | named)
        else:
            names = ()
            for file in out.glob("[!.]*") if rank == 0 else ():  # made anew
                file.unlink()
            ranks.wait_for_everyone()
        if prompts:
            write_text(out / PROMPTS, "".join(f"{prompt}\n" for prompt in prompts))
        writer = SampleWriter(out, options.count, names, options.format, options.shard_size)
        writer.existing()  # an error now if the folder holds other images
        size, quiet = source.batch_size, rank > 0
        generate_folder(writer, source.draw, batch_size=size, rank=rank, world=world, quiet=quiet)
        ranks.wait_for_everyone()
        if rank > 0:
            return 0
        if options.to is None:
            with atomic_path(out.with_name(f"{out.name}-grid.png")) as temporary:
                image_grid(next(SampleFolder(out).in_batches(GRID))).save(temporary, format="PNG")
    how = ", ".join(f"{name} {value}" for name, value in settings.items())
    sys.stderr.write(f"{out}: {options.count:,} images, complete ({how})\n")
    return 0


def of_run(options: Options, prompts: Sequence[str]) -> Source:
    """Load a run to sample, with the classes of its data."""
    run_dir = RunDir.existing(str(options.run))
    if not run_dir.recipe().task.makes_images:
        raise ValueError(f"{options.run} makes no images; try immiscible evaluate {options.run}")
    run = load_run(run_dir, options.device, allow_code=options.allow_code or False, step=options.checkpoint)
    run.task.conditions([0], prompts)  # an error now if it takes no prompts
    run = run.with_sampler(options.of(run.recipe.sampler))
    size = min(256, run.task.max_batch_size or 256)
    size = size if options.batch_size is None else options.batch_size
    pipeline = run.pipeline(size, tuple(prompts))
    settings = {"step": run.step, "sampler": str(run.recipe.sampler)}
    if options.to:
        settings["weights"] = weights_digest(run.model)

    def draw(indices: Sequence[int]) -> Tensor:
        sampled = pipeline.sample(run.model, indices, seed=options.seed)
        settings["nfe"] = sampled.nfe
        return sampled.data

    dataset = run.task.dataset
    number = dataset.num_classes if run.recipe.conditional and not prompts else None
    names = dataset.class_names or [str(c) for c in range(number or 0)]
    return Source(draw, settings, names if number else (), size)


def of_pipeline(options: Options, prompts: Sequence[str]) -> Source:
    """Load a published pipeline to sample."""
    if useless := [name for name in NOT_OF_PIPELINES if getattr(options, name) is not None]:
        raise ValueError(f"a pipeline has its own sampler; leave {', '.join(useless)}")
    if not options.to:
        raise ValueError("where do the images of a pipeline go? --to FOLDER")
    changes: dict[str, Any] = {} if (n := options.sampling_steps) is None else {"num_inference_steps": n}
    changes |= {} if options.guidance is None else {"guidance_scale": options.guidance}
    device, dtype = rank_world_device(options.device)[2], getattr(torch, options.precision)
    pipeline = load_pipeline(str(options.pipeline), device, dtype, text=bool(prompts))
    draw = partial(sample_pipeline, pipeline, prompts, options.seed, **changes)
    settings = {**pipeline_digests(pipeline), "precision": options.precision, **changes}
    return Source(draw, settings, (), 16 if options.batch_size is None else options.batch_size)


def texts(options: Options) -> tuple[Sequence[str], Sequence[str]]:
    """Return names for the files and the prompts, both empty if none are given."""
    check_template(options.template)
    if sum(map(bool, (options.classes, options.prompts, options.prompt))) > 1:
        raise ValueError("classes, prompts and prompt all say what to show; give one of them")
    lines = list(options.prompt)
    if file := options.classes or options.prompts:
        if not file.is_file():
            raise ValueError(f"there is no file {file}")
        lines = [line.strip() for line in file.read_text(encoding="utf-8").strip("\n").split("\n")]
    if not all(lines) or any("\n" in line for line in lines):
        raise ValueError(f"every prompt or class is one line and not empty; look at {file or lines}")
    if not options.classes:
        return lines, lines
    plain = class_prompts(lines, "{label}", options.synonyms)
    return plain, class_prompts(lines, options.template, options.synonyms)


def digest(lines: Sequence[str]) -> str:
    """Return a hash of ``lines``."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
