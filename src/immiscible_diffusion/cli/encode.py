"""``immiscible encode``."""

import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from immiscible_diffusion.applications.stable_diffusion.latent_cache import describe_transform, vae_digest
from immiscible_diffusion.applications.stable_diffusion.latent_encoding import EncodingConfig, encode
from immiscible_diffusion.applications.stable_diffusion.load_pipeline import load_reason
from immiscible_diffusion.cli.options import Device, parse
from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.data.captions import Captions, NoCaptionsError, load_captioned
from immiscible_diffusion.data.load import DataConfig, load_images
from immiscible_diffusion.data.prompts import Synonyms
from immiscible_diffusion.utils.checks import ImageSize, PositiveInt
from immiscible_diffusion.utils.device import process_state, rank_world_device
from immiscible_diffusion.utils.folder_lock import shared_lock
from immiscible_diffusion.utils.hub import split_revision
from immiscible_diffusion.utils.optional_deps import require_extra
from immiscible_diffusion.utils.progress import Progress


@dataclass(frozen=True)
class Options:
    """Encode a data set with a VAE once, to train from its latents.

    The same command resumes after an interruption; under `accelerate launch` every process encodes its part.

    Args:
        vae: folder or hub name of a pipeline (its subfolder vae is taken) or of a VAE.
        data: digits, fashion_mnist, cifar10, imagenet-1k, coco, hub:ID, or a folder or .parquet file.
        out: folder for the latents.
        path: where a named data set is.
        split: train or test, where the set has both.
        size: resize the shorter side to this and crop the center square.
        resize: how: box or bilinear (torchvision's).
        channels: 1 = gray, 3 = color.
        max_samples: use only the first so many images.
        caption_column: column of the captions, if it has no usual name.
        synonyms: which synonyms of class names prompts are made of.
        dtype: type of what is stored.
        precision: precision of the VAE.
        flips: encode mirror images too.
        shard_size: images per shard.
        batch_size: images in the VAE at a time.
        device: device of the VAE.
    """

    vae: Annotated[str, tyro.conf.Positional]
    data: str
    out: Path
    path: str | None = None
    split: str = "train"
    size: ImageSize | None = None
    resize: Literal["box", "bilinear"] = "box"
    channels: Literal[1, 3] = 3
    max_samples: PositiveInt | None = None
    caption_column: str | None = None
    synonyms: Synonyms = "first"
    dtype: Literal["float16", "bfloat16"] = "float16"
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    flips: bool = True
    shard_size: PositiveInt = 1024
    batch_size: PositiveInt = 16
    device: Device = "auto"


def main(arguments: list[str]) -> int:
    """Write the shards that are missing."""
    options = parse(Options, arguments, "encode")
    ranks = process_state(options.device)
    rank, world, device = rank_world_device(options.device)
    local = options.path is None and Path(options.data).exists()
    name, path = ("folder", options.data) if local else (options.data, options.path)
    config = DataConfig(
        name,
        path,
        options.split,
        size=options.size,
        resize=options.resize,
        channels=options.channels,
        max_samples=options.max_samples,
    )
    try:
        captions = Captions(options.caption_column, synonyms=options.synonyms)
        dataset: DataSet = load_captioned(config, captions)
    except NoCaptionsError:  # nor class names: images alone
        dataset = load_images(config)
    transform = describe_transform(config, options.channels)
    encoding = EncodingConfig(options.dtype, options.flips, options.shard_size, options.batch_size, transform)
    vae = load_vae(options.vae)
    vae_hash = vae_digest(vae)
    vae = vae.to(device, getattr(torch, options.precision)).eval().requires_grad_(False)
    share = -(-len(dataset) // world)
    with shared_lock(options.out, ranks), Progress(share, 0, "encoding", unit="image", quiet=rank > 0) as progress:
        manifest = encode(
            dataset,
            vae,
            options.out,
            encoding,
            vae_hash=vae_hash,
            rank=rank,
            world=world,
            on_progress=lambda done: progress.update(min(done, share)),
        )
        ranks.wait_for_everyone()
    if rank == 0:
        shards = f"{manifest.shards} shard{'s' * (manifest.shards > 1)}"
        sys.stderr.write(
            f"{options.out}: latents {manifest.shape} of {manifest.count:,} images in {shards}; complete\n"
        )
    return 0


def load_vae(source: str) -> Any:
    """Load the VAE of a pipeline or alone, from a folder or the hub, in float32."""
    with require_extra("train", "the VAE"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from diffusers import AutoencoderKL
    folder = Path(source)
    inside = {} if folder.is_dir() and not (folder / "vae").is_dir() else {"subfolder": "vae"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch_dtype: an older name of dtype
            name, revision = split_revision(source)
            return AutoencoderKL.from_pretrained(name, torch_dtype=torch.float32, **inside, **revision)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"there is no VAE at {source} ({load_reason(error)}); download the pipeline where there is a network "
            f"(`hf download {source} --include 'vae/*' --local-dir FOLDER`), and give that folder"
        ) from error
