"""From a recipe to its codec and its data."""

from pathlib import Path
from typing import Any

import torch

from immiscible_diffusion.codec import Codec, LatentCodec, StableDiffusionCodec
from immiscible_diffusion.data import DataSet, load_images
from immiscible_diffusion.data.captions import Captioned, Captions, load_captioned
from immiscible_diffusion.data.images import all_labels
from immiscible_diffusion.data.prompts import Named
from immiscible_diffusion.recipe import Recipe


def load_codec(recipe: Recipe, device: torch.device | str = "cpu") -> Codec:
    """The recipe's codec, its frozen parts on ``device`` and in half under mixed precision.

    Raises:
        ValueError: its pipeline is not there; says what to do.
    """
    if not isinstance(recipe.codec, StableDiffusionCodec):
        return recipe.codec
    codec = recipe.codec.load(device, recipe.precision, digest=recipe.latents is not None)
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
    if not isinstance(codec, LatentCodec):
        return load_images(config)
    if not recipe.by_text:
        return load_images(config)
    captions = recipe.captions or Captions()
    if recipe.latents is None:
        return load_captioned(config, captions, codec.tokenize, recipe.buckets)
    from immiscible_diffusion.latents import load_latents

    folder = Path(recipe.latents)
    return load_latents(folder, captions, codec.tokenize, flip=config.flip, vae=codec.vae_hash)


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
    prompts = Named(all_labels(dataset), names, captions.template, captions.synonyms)
    return Captioned(dataset, prompts, codec.tokenize)


def pictures_of(recipe: Recipe, dataset: DataSet) -> DataSet:
    """The pictures that ``dataset``, which may be of latents, is of: what samples are judged by."""
    return load_images(recipe.data) if getattr(dataset, "encoded", False) else dataset
