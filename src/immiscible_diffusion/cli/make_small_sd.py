"""``immiscible make-small-sd``."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from immiscible_diffusion.cli.options import parse
from immiscible_diffusion.data.captions import Captions
from immiscible_diffusion.data.load import DataConfig
from immiscible_diffusion.smallsd import (
    SmallSD,
    TextSettings,
    UNetSettings,
    VAESettings,
    make_small_sd,
)


@dataclass(frozen=True)
class Options:
    """Make a small Stable Diffusion pipeline from local pictures, in minutes on a CPU.

    It trains a VAE and a text encoder, adds a U-Net with random weights, and saves a folder that
    diffusers' StableDiffusionPipeline and every Stable Diffusion recipe read. The same command goes
    on after an interruption. One thread is best on a busy machine: OMP_NUM_THREADS=1.

    Args:
        data: cifar10, fashion_mnist, hub:ID, or a folder or .parquet file of pictures.
        out: folder for the pipeline.
        path: where a named data set is.
        size: pictures are brought to this, shorter side first, then the center square; as they
            are by default.
        limit: the first so many pictures only.
        caption_column: column of the captions, if it has no usual name.
        template: what is said of a class, with {label} where its name goes.
        vae: from pictures to latents.
        text: from prompts to what the U-Net attends to.
        unet: what recipes train; its weights are random here.
        prediction: what the U-Net is to say; the schedule keeps it.
        judge: train the classifier of the data set, and see what it makes of reconstructions.
        seed: of everything.
        checkpoint_every: steps of the VAE between states to go on from.
    """

    data: Annotated[str, tyro.conf.Positional]
    out: Path
    path: str | None = None
    size: int | None = None
    limit: int | None = None
    caption_column: str | None = None
    template: str = "{label}"
    vae: VAESettings = field(default_factory=VAESettings)
    text: TextSettings = field(default_factory=TextSettings)
    unet: UNetSettings = field(default_factory=UNetSettings)
    prediction: Literal["epsilon", "v_prediction"] = "v_prediction"
    judge: bool = True
    seed: int = 0
    checkpoint_every: int = 100

    @property
    def settings(self) -> SmallSD:
        """What to make."""
        local = self.path is None and Path(self.data).exists()
        data = DataConfig(
            name="folder" if local else self.data,
            path=self.data if local else self.path,
            size=self.size,
            channels=3,
            limit=self.limit,
        )
        return SmallSD(
            data,
            Captions(self.caption_column, self.template),
            self.vae,
            self.text,
            self.unet,
            self.prediction,
            self.judge,
            self.seed,
            self.checkpoint_every,
        )


def main(arguments: list[str]) -> int:
    """Make the pipeline and say how good its parts are."""
    options = parse(Options, arguments, "make-small-sd")
    figures = make_small_sd(options.out, options.settings, quiet=False)
    sys.stdout.write("\n".join(said(figures, options.out)) + "\n")
    return 0


def said(figures: dict[str, Any], out: Path) -> Iterator[str]:
    """The figures in words."""
    vae, text = figures["vae"], figures["text"]
    latents = vae["latent_figures"]
    yield (
        f"VAE: {_by(vae['pictures'])} to {_by(vae['latents'])}, held-out PSNR {vae['psnr']:.2f} dB "
        f"({vae['held_out']}), {vae['weights']:,} weights, {vae['cpu_seconds']:.0f} CPU s"
    )
    yield (
        f"     excess kurtosis {_range(latents['kurtosis'])}, neighbors correlate "
        f"{_range(latents['neighbors'])}, the encoder's noise {_range(latents['noise'])}"
    )
    line = f"text: {text['kind']}, {text['words']:,} tokens, {text['weights']:,} weights"
    if "closest" in text:
        line += (
            f"; nearest two prompts {text['closest']:.2f} of the typical distance apart, "
            f"{text['rephrased']:.0%} known when said in a sentence"
        )
    yield f"{line}, {text['cpu_seconds']:.0f} CPU s"
    if judge := figures.get("judge"):
        yield (
            f"judge: accuracy {judge['real']:.1%} on real, {judge['reconstructions']:.1%} on "
            f"reconstructed held-out pictures; half of that, to be reached, is "
            f"{judge['reconstructions'] / 2:.1%}"
        )
    yield f"{out}: U-Net with {figures['unet']['weights']:,} random weights, to be trained"


def _by(shape: list[int]) -> str:
    return " x ".join(map(str, shape))


def _range(values: list[float]) -> str:
    return f"{min(values):.2f} ... {max(values):.2f}"
