"""``python -m examples.tiny_stable_diffusion DATA --out FOLDER``."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from examples.tiny_stable_diffusion.build import TinySD, build
from immiscible_diffusion.utils.signals import Interrupted


@dataclass(frozen=True)
class Options:
    """Build a tiny Stable Diffusion pipeline from local images, in minutes on a CPU.

    It trains a VAE and a text encoder, adds a U-Net with random weights, and saves a folder that
    diffusers' StableDiffusionPipeline and every Stable Diffusion recipe load. The same command
    resumes after an interruption. One thread is best on a busy machine: OMP_NUM_THREADS=1.

    Args:
        config: what to build.
        out: folder for the pipeline.
    """

    config: Annotated[TinySD, tyro.conf.arg(name="")]
    out: Path


def summary(figures: dict[str, Any], out: Path) -> Iterator[str]:
    """The figures, a line per part."""
    vae, text = figures["vae"], figures["text"]
    images, latents = (" x ".join(map(str, vae[name])) for name in ("images", "latents"))
    ranges = {name: f"{min(values):.2f} to {max(values):.2f}" for name, values in vae["latent_statistics"].items()}
    yield (
        f"VAE: {images} to {latents}, held-out PSNR {vae['psnr']:.2f} dB ({vae['held_out']}), "
        f"{vae['weights']:,} weights, {vae['cpu_seconds']:.0f} CPU s"
    )
    yield (
        f"latents: excess kurtosis {ranges['kurtosis']}, correlation of neighbors "
        f"{ranges['neighbors']}, fraction of encoder noise {ranges['noise']}"
    )
    line = f"text: {text['kind']}, {text['tokens']:,} tokens, {text['weights']:,} weights"
    if "nearest_distance" in text:
        line += (
            f", nearest prompts {text['nearest_distance']:.2f} of the rms distance apart, "
            f"{text['template_accuracy']:.0%} recognized in a template"
        )
    yield f"{line}, {text['cpu_seconds']:.0f} CPU s"
    if scores := figures.get("classifier"):
        yield (
            f"classifier: accuracy {scores['real']:.1%} on real held-out images, "
            f"{scores['reconstructions']:.1%} on their reconstructions"
        )
    yield f"{out}: U-Net with {figures['unet']['weights']:,} random weights, to be trained"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 well, 2 bad input, 128 + n on signal n."""
    try:
        options = tyro.cli(Options, args=arguments, prog="python -m examples.tiny_stable_diffusion")
        figures = build(options.out, options.config, quiet=False)
        sys.stdout.write("\n".join(summary(figures, options.out)) + "\n")
    except Interrupted as stop:
        sys.stderr.write(f"{stop}\n")
        return 128 + stop.signal_number
    except (ValueError, ImportError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
