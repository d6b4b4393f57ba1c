"""The pictures a pipeline is made from, and those it is judged by."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.data.captions import Captioned, load_captioned
from immiscible_diffusion.data.load import DataConfig, load_images
from immiscible_diffusion.smallsd.settings import SmallSD
from immiscible_diffusion.utils.random import keyed_generator

WITH_TEST = ("cifar10", "fashion_mnist")
HELD_OUT = 1000
LEAST = 8


@dataclass(frozen=True)
class Pictures:
    """Pictures with prompts, and held-out ones.

    Attributes:
        captioned: the pictures with what is said of them.
        rows: those that training may see.
        held: the data set of the held-out ones.
        held_rows: which they are.
        held_from: where they come from, in words.
    """

    captioned: Captioned
    rows: Tensor
    held: DataSet
    held_rows: Tensor
    held_from: str

    @property
    def images(self) -> Any:
        """The pictures alone."""
        return self.captioned.images

    def all_texts(self) -> list[str]:
        """Every prompt of the pictures once, in the order of their first row."""
        return list(dict.fromkeys(self.captioned.texts(self.rows)))


def load_pictures(settings: SmallSD) -> Pictures:
    """The pictures of ``settings``; a test split is held out where there is one, else a tenth.

    Raises:
        ValueError: what loading raises (no pictures, no captions); too few pictures.
    """
    config = settings.data
    captioned = load_captioned(config, settings.captions)
    settings.check_pictures(captioned.shape)
    if len(captioned) < LEAST:
        raise ValueError(
            f"{config.path or config.name} has {len(captioned)} pictures; a VAE needs at least "
            f"{LEAST}, and hundreds to be of use"
        )
    if _has_test(config):
        test = load_images(dataclasses.replace(config, split="test", limit=HELD_OUT, flip=False))
        rows = torch.arange(len(captioned))
        return Pictures(captioned, rows, test, torch.arange(len(test)), "the test split")
    generator = keyed_generator(settings.seed, "small held out")
    order = torch.randperm(len(captioned), generator=generator)
    count = min(HELD_OUT, max(1, len(order) // 10))
    held, rows = order[:count].sort().values, order[count:].sort().values
    said = f"{count} of {len(order)} pictures, which training did not see"
    return Pictures(captioned, rows, captioned.images, held, said)


def _has_test(config: DataConfig) -> bool:
    if config.split != "train":
        return False
    if config.name != "folder" or not config.path:
        return config.name in WITH_TEST
    # Without a folder train the pictures in test are trained on, or are a class.
    return all((Path(config.path) / part).is_dir() for part in ("train", "test"))
