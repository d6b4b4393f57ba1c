"""``immiscible encode``."""

import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from immiscible_diffusion.applications.stable_diffusion.latent_cache import (
    Encoding,
    encode,
    missing_shards,
    transform_of,
    vae_digest,
)
from immiscible_diffusion.cli.options import Device, parse
from immiscible_diffusion.data.captions import Captions, load_captioned
from immiscible_diffusion.data.load import DataConfig, load_images
from immiscible_diffusion.data.prompts import Synonyms
from immiscible_diffusion.training.progress import Progress
from immiscible_diffusion.utils.distributed import rank_world_device
from immiscible_diffusion.utils.optional_deps import require_extra

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Options:
    """Encode a data set with a VAE once, to train from its latents ever after.

    The same command continues after an interruption; under `accelerate launch` every process
    makes its share.

    Args:
        vae: folder or hub name of a pipeline (its subfolder vae is taken) or of a VAE.
        data: digits, fashion_mnist, cifar10, imagenet-1k, coco, hub:ID, or a folder or .parquet
            file.
        out: folder for the latents.
        path: where a named data set is.
        split: train or test, where the set has both.
        size: pictures are brought to this, shorter side first, then the center square; as they
            are by default.
        channels: 1 = gray, 3 = color.
        limit: the first so many pictures only.
        caption_column: column of the captions, if it has no usual name.
        synonyms: which synonyms of class names prompts are made of.
        dtype: of what is kept.
        precision: of the VAE.
        flips: encode mirror images too.
        shard_size: pictures in a shard.
        batch_size: pictures in the VAE at a time.
        device: where the VAE is.
    """

    vae: Annotated[str, tyro.conf.Positional]
    data: str
    out: Path
    path: str | None = None
    split: str = "train"
    size: int | None = None
    channels: int = 3
    limit: int | None = None
    caption_column: str | None = None
    synonyms: Synonyms = "first"
    dtype: Literal["float16", "bfloat16"] = "float16"
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    flips: bool = True
    shard_size: int = 1024
    batch_size: int = 16
    device: Device = "auto"

    @property
    def config(self) -> DataConfig:
        """The pictures."""
        local = self.path is None and Path(self.data).exists()
        return DataConfig(
            name="folder" if local else self.data,
            path=self.data if local else self.path,
            split=self.split,
            size=self.size,
            channels=self.channels,
            limit=self.limit,
        )

    @property
    def how(self) -> Encoding:
        """How to encode them."""
        transform = transform_of(self.config, self.channels)
        return Encoding(self.dtype, self.flips, self.shard_size, self.batch_size, transform)


def main(arguments: list[str]) -> int:
    """Write the shards that are missing."""
    options = parse(Options, arguments, "encode")
    rank, world, device = rank_world_device(options.device)
    dataset = pictures(options)
    vae = load_vae(options.vae)
    identity = vae_digest(vae)
    vae = vae.to(device).eval().requires_grad_(False)
    if options.precision != "float32":
        vae = vae.to(PRECISIONS[options.precision])
    share = -(-len(dataset) // world)
    with Progress(share, 0, "encoding", unit="picture", quiet=rank > 0) as show:
        manifest = encode(
            dataset,
            vae,
            options.out,
            options.how,
            vae_hash=identity,
            rank=rank,
            world=world,
            told=lambda done: show.update(min(done, share)),
        )
    missing = missing_shards(manifest, options.out)
    state = "complete" if not missing else f"{len(missing)} shards of other processes to come"
    sys.stderr.write(
        f"{options.out}: latents {manifest.shape} of {manifest.count:,} pictures in "
        f"{manifest.shards} shards; {state}\n"
    )
    return 0


def pictures(options: Options) -> Any:
    """The pictures with what is said of them; pictures alone where nothing is."""
    captions = Captions(options.caption_column, synonyms=options.synonyms)
    try:
        return load_captioned(options.config, captions)
    except ValueError as error:
        if options.caption_column or "nothing to say" not in str(error):
            raise
        return load_images(options.config)


def load_vae(source: str) -> Any:
    """The VAE of a pipeline or alone, from a folder or the hub, in float32.

    Raises:
        ValueError: it is not there: says what to download.
    """
    with require_extra("train", "the VAE"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from diffusers import AutoencoderKL
    folder = Path(source)
    inside = {} if folder.is_dir() and not (folder / "vae").is_dir() else {"subfolder": "vae"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch_dtype: an older name of dtype
            vae = AutoencoderKL.from_pretrained(source, torch_dtype=torch.float32, **inside)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"there is no VAE at {source} ({reason}); fetch the pipeline where there is a network "
            f"(`hf download {source} --include 'vae/*' --local-dir FOLDER`), and give that folder"
        ) from error
    return vae
