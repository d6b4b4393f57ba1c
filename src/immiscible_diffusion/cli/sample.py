"""``immiscible sample RUN``."""

import hashlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from torch import Tensor

from immiscible_diffusion.cli.options import Device, parse
from immiscible_diffusion.cli.sampler_options import SamplerChanges
from immiscible_diffusion.evaluation.load_run import LoadedRun
from immiscible_diffusion.training.progress import Progress
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.utils.atomic_files import atomic_path
from immiscible_diffusion.utils.distributed import ranks_of
from immiscible_diffusion.utils.images import image_grid
from immiscible_diffusion.utils.optional_deps import require_extra

GRID = 64


@dataclass(frozen=True, kw_only=True)
class Options(SamplerChanges):
    """Make images with the averaged weights of a trained run.

    Under accelerate launch every process makes its share; the images are the same.

    Args:
        run: the run folder.
        out: new folder for the pictures; by default RUN/images/STEP-SAMPLER-SEED.
        count: images to make; image i depends on the seed and i alone.
        seed: of the start noise.
        prompt: what to show, one text or several, of a run that is told by text.
        batch_size: images at a time.
        device: where to sample.
    """

    run: Annotated[Path, tyro.conf.Positional]
    out: Path | None = None
    count: int = 64
    seed: int = 0
    prompt: tuple[str, ...] = ()
    batch_size: int = 256
    device: Device = "auto"


def main(arguments: list[str]) -> int:
    """Write count numbered PNG files, and a grid of the first beside their folder."""
    options = parse(Options, arguments, "sample")
    for name in ("count", "batch_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(options, name)}")
    ranks = ranks_of(options.device)
    run = RunDir.existing(options.run)
    if options.prompt and not run.recipe().by_text:
        raise ValueError("this run was not trained on prompts; leave prompt")
    trained = LoadedRun.load(run, options.device)
    if trained.recipe.is_policy:
        raise ValueError(
            f"{options.run} is a policy, which makes no images; immiscible evaluate {options.run} "
            f"lets it work and films it"
        )
    sampler = options.of(trained.recipe.sampler)
    generator = trained.generator(sampler, options.batch_size, options.prompt)
    series = f"step{trained.step}-{str(sampler).replace(' ', '')}-seed{options.seed}"
    if options.prompt:
        series += f"-{hashlib.sha256(chr(10).join(options.prompt).encode()).hexdigest()[:8]}"
    out = options.out or options.run / "images" / series
    if options.out and any(out.glob("*.png")):
        raise ValueError(f"{out} holds pictures already, which would mix; choose another --out")
    ranks.wait_for_everyone()  # all have looked before one writes
    rows = share_of(options.count, ranks.process_index, ranks.num_processes)
    batches = generator(trained.model, rows, seed=options.seed, sampler=sampler)
    nfe = write_images(batches, out, rows, quiet=not ranks.is_main_process)
    ranks.wait_for_everyone()
    if ranks.is_main_process:
        for oversample in sorted(out.glob("[0-9]*.png"))[
            options.count :
        ]:  # of a longer call before
            oversample.unlink()
        write_grid(out, min(GRID, options.count))
        sys.stderr.write(
            f"{out}: {options.count} images of step {trained.step}, {sampler} ({nfe} function "
            f"evaluations)\n"
        )
    return 0


def share_of(count: int, rank: int, world: int) -> range:
    """The images that a rank makes: a run of them, of equal length but for one."""
    return range(count * rank // world, count * (rank + 1) // world)


def write_images(
    batches: Iterable[tuple[Tensor, int]], out: Path, rows: range, *, quiet: bool = False
) -> int:
    """Write the images ``rows`` as OUT/000000.png ...; function evaluations of an image."""
    done, nfe = 0, 0
    out.mkdir(parents=True, exist_ok=True)
    with Progress(len(rows), 0, "sampling", unit="image", quiet=quiet) as show:
        for images, evaluations in batches:
            nfe = evaluations
            for image, row in zip(images, rows[done:], strict=False):
                write_png(image[None], out / f"{row:06d}.png")
            done += len(images)
            show.update(done)
    return nfe


def write_grid(out: Path, count: int) -> None:
    """The first ``count`` pictures of a folder as one, beside it."""
    with require_extra("train", "reading pictures"):
        from PIL import Image
    arrays = []
    for row in range(count):
        with Image.open(out / f"{row:06d}.png") as picture:
            arrays.append(np.array(picture).reshape(picture.height, picture.width, -1))
    images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1
    write_png(images, out.with_name(f"{out.name}-grid.png"))


def write_png(images: Tensor, path: Path) -> None:
    """One picture of ``images`` ``[B, C, H, W]`` in [-1, 1]."""
    with atomic_path(path) as temporary:
        image_grid(images).save(temporary, format="PNG")
