"""The check of the metric: torchcfm's published CIFAR-10 weights in our U-Net, scored by our FID.

    python -m reproduce.torchcfm_weights otcfm --out runs/torchcfm/otcfm

Downloads the weights (570 MB; ``--file`` takes a copy), writes them as a run folder and calls ``immiscible
evaluate`` with the published protocol: 50,000 images, dopri5 1e-5, Inception. Published: 3.5 for otcfm (arXiv
2302.00482). Further options are those of ``evaluate``. Networks are equal weight for weight; torchcfm counts time from
noise to data, so the layer that reads the time is rotated and the last one negated.
"""

import argparse
import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from immiscible_diffusion.cli.main import main as immiscible
from immiscible_diffusion.models import UNet
from immiscible_diffusion.recipes import recipe_from_name
from immiscible_diffusion.training.run_dir import RunDir

RELEASE = "https://github.com/atong01/conditional-flow-matching/releases/download/1.0.4"
FILES = {"otcfm": "otcfm", "icfm": "cfm", "fm": "fm"}
RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
PUBLISHED = ["--features", "inception", "--metrics", "frechet", "--samples", "50000", "--method", "dopri5"]


def module_names(config: UNet, size: int) -> Iterator[tuple[str, str]]:
    """Torchcfm's names of blocks and layers beside diffusers'."""
    yield from {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in",
        "middle_block.0": "mid_block.resnets.0",
        "middle_block.1": "mid_block.attentions.0",
        "middle_block.2": "mid_block.resnets.1",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
    }.items()
    levels = len(config.multipliers)
    number = 1
    for level in range(levels):
        for block in range(config.blocks):
            yield f"input_blocks.{number}.0", f"down_blocks.{level}.resnets.{block}"
            yield f"input_blocks.{number}.1", f"down_blocks.{level}.attentions.{block}"
            number += 1
        yield f"input_blocks.{number}.0.op", f"down_blocks.{level}.downsamplers.0.conv"
        number += 1
    number = 0
    for level in range(levels):
        attends = size // 2 ** (levels - 1 - level) in config.attention
        for block in range(config.blocks + 1):
            yield f"output_blocks.{number}.0", f"up_blocks.{level}.resnets.{block}"
            if attends:
                yield f"output_blocks.{number}.1", f"up_blocks.{level}.attentions.{block}"
            yield f"output_blocks.{number}.{1 + attends}.conv", f"up_blocks.{level}.upsamplers.0.conv"
            number += 1


def convert(theirs: Mapping[str, Tensor], config: UNet, size: int = 32) -> dict[str, Tensor]:
    """The weights of torchcfm's ``UNetModelWrapper`` as those of ``config``'s network; ValueError if some are left."""
    left = {name.removeprefix("module."): value for name, value in theirs.items()}
    ours: dict[str, Tensor] = {}

    def move(source: str, target: str) -> None:
        for kind in ("weight", "bias"):
            if (value := left.pop(f"{source}.{kind}", None)) is not None:
                ours[f"unet.{target}.{kind}"] = value

    for source, target in module_names(config, size):
        move(source, target)
        for part, name in RESIDUAL.items():
            move(f"{source}.{part}", f"{target}.{name}")
        if f"{source}.qkv.weight" in left:
            move(f"{source}.norm", f"{target}.group_norm")
            for kind in ("weight", "bias"):
                joined = left.pop(f"{source}.qkv.{kind}").squeeze(-1)
                heads = joined.unflatten(0, (-1, 3, config.head_channels))  # of every head: query, key, value
                for name, part in zip("qkv", heads.unbind(1), strict=True):
                    ours[f"unet.{target}.to_{name}.{kind}"] = part.flatten(0, 1).contiguous()
                value = left.pop(f"{source}.proj_out.{kind}")
                ours[f"unet.{target}.to_out.0.{kind}"] = value.squeeze(-1) if kind == "weight" else value
    if left:
        raise ValueError(
            f"the weights are of another network: {', '.join(sorted(left)[:3])} ... have no place in ours"
        )
    # Our time is 1 - theirs, and our velocity minus theirs: cos(w - wt) and sin(w - wt) of what the first layer reads.
    first = "unet.time_embedding.linear_1.weight"
    cos, sin = ours[first].double().chunk(2, dim=1)
    w = torch.exp(-math.log(10_000) * torch.arange(cos.shape[1], dtype=torch.float64) / cos.shape[1])
    turned = torch.cat([cos * w.cos() + sin * w.sin(), cos * w.sin() - sin * w.cos()], dim=1)
    ours[first] = turned.to(ours[first].dtype)
    for kind in ("weight", "bias"):
        ours[f"unet.conv_out.{kind}"] = -ours[f"unet.conv_out.{kind}"]
    return ours


def write_run(file: Path, name: str, out: Path) -> RunDir:
    """Write the averaged weights of a checkpoint of torchcfm as a run folder."""
    recipe = recipe_from_name("cifar10-otcfm")
    recipe = dataclasses.replace(recipe, name=f"torchcfm-{name}")
    checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    model = recipe.model.build((3, 32, 32))
    model.load_state_dict(convert(checkpoint["ema_model"], recipe.model))
    run_dir = RunDir(out)
    run_dir.begin(recipe)
    run_dir.save_weights(model, int(checkpoint.get("step", recipe.steps)))
    return run_dir


def main(arguments: list[str] | None = None) -> int:
    """Get, convert and score."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=FILES, help="which of torchcfm's models")
    parser.add_argument("--file", type=Path, help="its weights, if they are here already")
    parser.add_argument("--out", type=Path, required=True, help="the run folder to write")
    options, rest = parser.parse_known_args(arguments)
    file = options.file or options.out / f"{FILES[options.name]}_cifar10_weights_step_400000.pt"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(f"{RELEASE}/{file.name}", str(file))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    print(f"{file}: sha256 {digest}", flush=True)
    write_run(file, options.name, options.out)
    return immiscible(["evaluate", str(options.out), *PUBLISHED, *rest])


if __name__ == "__main__":
    raise SystemExit(main())
