"""``immiscible sample RUN``."""

import dataclasses
import hashlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import torch
import tyro
from torch import Tensor

from immiscible_diffusion.command.options import Device, parse
from immiscible_diffusion.files import atomic_path
from immiscible_diffusion.pictures import image_grid
from immiscible_diffusion.progress import Progress
from immiscible_diffusion.runfolder import RunFolder
from immiscible_diffusion.sampler import Sampler
from immiscible_diffusion.trained import Trained

GRID = 64


@dataclass(frozen=True)
class Options:
    """Make images with the averaged weights of a trained run.

    Args:
        run: the run folder.
        out: new folder for the pictures; by default RUN/images/STEP-SAMPLER-SEED.
        count: images to make; image i depends on the seed and i alone.
        seed: of the start noise.
        method: sampler (euler, heun, midpoint, dopri5); the recipe's by default.
        steps: of the sampler.
        start: normal, N(0, I), or matched, the law of the noise the run was trained on (measured
            now and kept in the run if it is not there); the recipe's by default.
        prompt: what to show, one text or several, of a run that is told by text.
        guidance: how far to push towards the condition; the recipe's by default.
        batch_size: images at a time.
        device: where to sample.
    """

    run: Annotated[Path, tyro.conf.Positional]
    out: Path | None = None
    count: int = 64
    seed: int = 0
    method: str | None = None
    steps: int | None = None
    start: str | None = None
    prompt: tuple[str, ...] = ()
    guidance: float | None = None
    batch_size: int = 256
    device: Device = "auto"


def main(arguments: list[str]) -> int:
    """Write count numbered PNG files, and a grid of the first beside their folder."""
    options = parse(Options, arguments, "sample")
    for name in ("count", "batch_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(options, name)}")
    run = RunFolder.existing(options.run)
    if options.prompt and not run.recipe().by_text:
        raise ValueError("this run was not trained on prompts; leave prompt")
    trained = Trained.load(run, options.device)
    sampler = chosen_sampler(trained.recipe.sampler, options)
    if options.guidance is not None:
        sampler = dataclasses.replace(sampler, guidance=options.guidance)
    generator = trained.generator(sampler, options.batch_size, options.prompt)
    batches = generator(trained.model, options.count, seed=options.seed, sampler=sampler)
    series = f"step{trained.step}-{str(sampler).replace(' ', '')}-seed{options.seed}"
    if options.prompt:
        series += f"-{hashlib.sha256(chr(10).join(options.prompt).encode()).hexdigest()[:8]}"
    out = options.out or options.run / "images" / series
    if options.out and any(out.glob("*.png")):
        raise ValueError(f"{out} holds pictures already, which would mix; choose another --out")
    for surplus in sorted(out.glob("[0-9]*.png"))[options.count :]:  # of a longer call before
        surplus.unlink()
    nfe = write_images(batches, out, options.count)
    sys.stderr.write(
        f"{out}: {options.count} images of step {trained.step}, {sampler} ({nfe} function "
        f"evaluations)\n"
    )
    return 0


class SamplerOptions(Protocol):
    """Options that change the recipe's sampler; None leaves it."""

    @property
    def method(self) -> str | None:
        """Sampler."""

    @property
    def steps(self) -> int | None:
        """Its steps."""

    @property
    def start(self) -> str | None:
        """Law to start from."""


def chosen_sampler(default: Sampler, options: SamplerOptions) -> Sampler:
    """The recipe's sampler, changed where options say so."""
    named = {name: getattr(options, name) for name in ("method", "steps", "start")}
    changes: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    return dataclasses.replace(default, **changes)


def write_images(batches: Iterable[tuple[Tensor, int]], out: Path, total: int) -> int:
    """Write images as OUT/000000.png ... and the first as OUT-grid.png; evaluations an image."""
    done, nfe = 0, 0
    first: list[Tensor] = []
    with Progress(total, 0, "sampling", unit="image") as show:
        for images, evaluations in batches:
            nfe = evaluations
            for offset, image in enumerate(images):
                write_png(image[None], out / f"{done + offset:06d}.png")
            if done < GRID:
                first.append(images[: GRID - done].cpu())
            done += len(images)
            show.update(done)
    write_png(torch.cat(first), out.with_name(f"{out.name}-grid.png"))
    return nfe


def write_png(images: Tensor, path: Path) -> None:
    """One picture of ``images`` ``[B, C, H, W]`` in [-1, 1]."""
    with atomic_path(path) as temporary:
        image_grid(images).save(temporary, format="PNG")
