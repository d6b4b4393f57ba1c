"""A VAE of a few weights, and pictures for it."""

import warnings
from typing import Any

import pytest
import torch

from immiscible_diffusion.data import ImageSet


def make_vae(seed: int = 0) -> Any:
    pytest.importorskip("diffusers", reason="the VAE is diffusers'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from diffusers import AutoencoderKL
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = AutoencoderKL(
            in_channels=3,
            out_channels=3,
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            latent_channels=2,
            scaling_factor=0.7,
            shift_factor=0.1,
        )
    return vae.eval().requires_grad_(False)


def make_pictures(count: int, seed: int = 0) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 3, (count,), generator=generator)
    return ImageSet(images, "made", labels, class_names=("ant, bug", "bee", "cat"))
