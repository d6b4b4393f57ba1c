"""From a recipe to its codec and its data."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.applications.pusht.config import DemonstrationConfig, load_windows
from immiscible_diffusion.applications.stable_diffusion.codec import LatentCodec
from immiscible_diffusion.applications.stable_diffusion.config import StableDiffusionCodec
from immiscible_diffusion.data import DataConfig, load_images
from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.data.captions import (
    Captioned,
    Captions,
    load_captioned,
)
from immiscible_diffusion.data.images import all_labels
from immiscible_diffusion.data.prompts import ClassNamePrompts
from immiscible_diffusion.data.streamed_captions import load_streamed
from immiscible_diffusion.training.codec import Codec
from immiscible_diffusion.training.recipe import Recipe


def load_raw(config: DataConfig | DemonstrationConfig) -> DataSet:
    """The data to train on that ``config`` names; ValueError says what is missing."""
    if isinstance(config, DemonstrationConfig):
        return load_windows(config)[0]
    return load_streamed(config) if config.stream else load_images(config)


def load_codec(recipe: Recipe, device: torch.device | str = "cpu") -> Codec:
    """The recipe's codec, its frozen parts on ``device`` and in half under mixed precision.

    Raises:
        ValueError: its pipeline is not there; says what to do.
    """
    if not isinstance(recipe.codec, StableDiffusionCodec):
        return recipe.codec
    codec = recipe.codec.load(device, recipe.mixed_precision, digest=recipe.latents is not None)
    return codec.of_latents() if recipe.latents is not None else codec


def load_data(recipe: Recipe, codec: Codec, config: Any = None) -> DataSet:
    """The data that go into ``codec``: pictures, or latents from a folder; with tokens.

    Args:
        recipe: names the data.
        codec: as ``load_codec`` gave it.
        config: other data than the recipe's, such as another split.

    Raises:
        ValueError: the data are not there or do not fit; says what to do.
    """
    config = config or recipe.data
    if not isinstance(codec, LatentCodec) or not recipe.by_text:
        return load_raw(config)
    captions = recipe.captions or Captions()
    if config.stream:
        return load_streamed(config, captions, codec.tokenize)
    if recipe.latents is None:
        return load_captioned(config, captions, codec.tokenize, recipe.buckets)
    from immiscible_diffusion.applications.stable_diffusion.latent_cache import (
        describe_transform,
        load_latents,
    )

    # Pictures that judge samples are the recipe's: latents of another size would go unnoticed.
    wanted = describe_transform(config, int(codec.vae.config.in_channels))
    return load_latents(
        Path(recipe.latents),
        captions,
        codec.tokenize,
        flip=config.flip,
        vae=codec.vae_hash,
        transform=wanted,
    )


def with_tokens(dataset: DataSet, recipe: Recipe, codec: Codec) -> DataSet:
    """``dataset`` with prompts and tokens where the network is told by text.

    Raises:
        ValueError: nothing can be said of the data.
    """
    if not recipe.by_text or not isinstance(codec, LatentCodec):
        return dataset
    if isinstance(dataset, Captioned):
        return dataset if dataset.tokenize else dataset.tokenized(codec.tokenize)
    names = getattr(dataset, "class_names", None)
    if dataset.num_classes is None or not names:
        raise ValueError(
            f"the data set {dataset.name} has neither captions nor named classes; give a Captioned"
        )
    captions = recipe.captions or Captions()
    prompts = ClassNamePrompts(all_labels(dataset), names, captions.template, captions.synonyms)
    return Captioned(dataset, prompts, codec.tokenize)


def pictures_of(recipe: Recipe, dataset: DataSet) -> DataSet:
    """Pictures of one shape that samples are judged by, where ``dataset`` is of latents, say."""
    squares = recipe.buckets is not None or getattr(dataset, "encoded", False)
    return load_raw(recipe.data) if squares else dataset


def alike(dataset: DataSet) -> Tensor:
    """The rows whose data are of ``dataset.shape``: all, but for pictures of several shapes."""
    images = dataset.images if isinstance(dataset, Captioned) else dataset
    bucket = getattr(images, "bucket", None)
    if bucket is None:
        return torch.arange(len(dataset))
    rows: Tensor = (bucket == bucket.mode().values).nonzero()[:, 0]
    return rows


def whole_rows(dataset: DataSet) -> Tensor:
    """Of those, the rows that are valid everywhere: of actions, windows within their episode.

    Such are the plans that a policy samples.
    """
    return dataset.complete_rows()
