"""What a latent cache saves of a training step of Stable Diffusion.

    OMP_NUM_THREADS=1 python benchmarks/latent_cache.py --json FILE --markdown FILE

One process; every round takes one batch of every arm, in random order, so that a change in the
machine's load meets them all. A batch is either made by decoding JPEG files and encoding them with
the VAE, or read from the cache; then a U-Net takes a training step on it, the same for both. Ratios
are medians over the rounds of the one arm's time over the other's, with a 95 % interval (bootstrap
over the rounds). Weights are random: time does not depend on them.

``--model small`` is of the size of `python -m examples.tiny_stable_diffusion`, ``--model sd`` of
Stable Diffusion 1's (needs about 8 GB; use --device cuda).
"""

import argparse
import json
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from coupling_cost import machine

from immiscible_diffusion.applications.stable_diffusion.latent_cache import LatentSet
from immiscible_diffusion.applications.stable_diffusion.latent_encoding import EncodingConfig, encode, posterior
from immiscible_diffusion.data import DataConfig
from immiscible_diffusion.data.hf_images import images_from_rows, open_rows

IMAGES = 32
SMALL = {
    "vae": {"block_out_channels": (16, 32, 32), "norm_num_groups": 8},
    "unet": {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8},
    "width": 64,
    "size": 32,
}
SD = {
    "vae": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2},
    "unet": {"block_out_channels": (320, 640, 1280, 1280)},
    "width": 768,
    "size": 256,
}


@dataclass(frozen=True)
class Ratio:
    """One arm's time over another's, with interval; and both times in milliseconds."""

    what: str
    encoded_ms: float
    cached_ms: float
    ratio: float
    low: float
    high: float


def models(name: str, device: str) -> tuple[Any, Any, dict[str, Any]]:
    """VAE and U-Net of random weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import AutoencoderKL, UNet2DConditionModel
    sizes = SMALL if name == "small" else SD
    levels = len(sizes["vae"]["block_out_channels"])
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        **sizes["vae"],
    )
    blocks = len(sizes["unet"]["block_out_channels"])
    unet = UNet2DConditionModel(
        sample_size=sizes["size"] // 2 ** (levels - 1),
        down_block_types=("CrossAttnDownBlock2D",) * (blocks - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (blocks - 1),
        cross_attention_dim=sizes["width"],
        **sizes["unet"],
    )
    return vae.to(device).eval().requires_grad_(False), unet.to(device), sizes


def write_images(folder: Path, size: int) -> None:
    """JPEG files of smooth noise, a quarter larger than what is trained on, as photographs are."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for number in range(IMAGES):
        coarse = torch.rand(1, 3, 8, 8, generator=generator)
        side = (size * 5 // 4, size * 3 // 2)
        image = torch.nn.functional.interpolate(coarse, size=side, mode="bicubic").clamp(0, 1)
        array = (image[0].permute(1, 2, 0) * 255).byte().numpy()
        Image.fromarray(array).save(folder / f"{number:03d}.jpg", quality=92)


def step_of(unet: Any, width: int) -> Callable[[torch.Tensor], None]:
    """A training step on latents."""
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4)

    def step(latents: torch.Tensor) -> None:
        device = next(unet.parameters()).device
        text = torch.zeros(len(latents), 77, width, device=device)
        noise = torch.randn_like(latents)
        out = unet(latents + noise, torch.full((len(latents),), 500, device=device), text).sample
        torch.nn.functional.mse_loss(out, noise).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that ``work`` takes, and what it gives."""
    start = time.perf_counter()
    found = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, found


def rounds(options: argparse.Namespace, folder: Path) -> list[dict[str, dict[str, float]]]:
    """Seconds of data and of step, of both arms, a round each."""
    vae, unet, sizes = models(options.model, options.device)
    images = folder / "images"
    images.mkdir()
    write_images(images, sizes["size"])
    config = DataConfig("folder", path=str(images), size=sizes["size"], flip=True, in_memory_gib=0.0)
    dataset = images_from_rows(open_rows(config, ""), config)
    encode(dataset, vae, folder / "latents", EncodingConfig(batch_size=8))
    cache = LatentSet.open(folder / "latents", flip=True)

    def encoded(rows: torch.Tensor) -> torch.Tensor:
        mean, log = posterior(vae, dataset.batch(rows, torch.Generator()).data)
        return (mean + (0.5 * log).exp() * torch.randn_like(mean)) * vae.config.scaling_factor

    def cached(rows: torch.Tensor) -> torch.Tensor:
        return cache.batch(rows, torch.Generator()).data.to(options.device)

    arms, step = {"encoded": encoded, "cached": cached}, step_of(unet, sizes["width"])
    found = []
    for number in range(options.rounds + 1):
        rows = torch.randint(IMAGES, (options.batch,))
        order = random.sample(sorted(arms), len(arms))
        this: dict[str, dict[str, float]] = {}
        for name in order:
            seconds, latents = timed(lambda arm=arms[name], rows=rows: arm(rows))
            this[name] = {"data": seconds, "step": timed(lambda data=latents: step(data))[0]}
        if number:  # the first warms up
            found.append(this)
    return found


def ratio(what: str, found: list[dict[str, dict[str, float]]], parts: tuple[str, ...]) -> Ratio:
    """Time with the VAE over time with the cache, of some parts of a round."""
    pairs = [(sum(r["encoded"][p] for p in parts), sum(r["cached"][p] for p in parts)) for r in found]
    ratios = [a / b for a, b in pairs]
    drawn = random.Random(0)
    medians = sorted(median(drawn.choices(ratios, k=len(ratios))) for _ in range(1000))
    return Ratio(
        what,
        1e3 * median(a for a, _ in pairs),
        1e3 * median(b for _, b in pairs),
        median(ratios),
        medians[25],
        medians[974],
    )


def markdown(rows: list[Ratio], options: argparse.Namespace) -> str:
    """A table."""
    lines = [
        "# What a latent cache saves",
        "",
        ", ".join(f"{name} {value}" for name, value in machine(options.rounds).items()),
        "",
        f"`--model {options.model} --batch {options.batch} --rounds {options.rounds} --device "
        f"{options.device}`; times in ms, medians.",
        "",
        "| what | VAE each time | cache | times faster (95 %) |",
        "|---|--:|--:|--:|",
    ]
    for row in rows:
        lines.append(
            f"| {row.what} | {row.encoded_ms:.1f} | {row.cached_ms:.1f} | {row.ratio:.2f} "
            f"({row.low:.2f} to {row.high:.2f}) |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("small", "sd"), default="small")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        found = rounds(options, Path(folder))
    rows = [ratio("images to latents", found, ("data",)), ratio("the whole training step", found, ("data", "step"))]
    text = markdown(rows, options)
    sys.stdout.write(text)
    if options.markdown:
        options.markdown.write_text(text)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
