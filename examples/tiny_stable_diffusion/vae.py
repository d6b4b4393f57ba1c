"""The VAE: creation, training objective, and standardization of its latents."""

import math
from typing import TYPE_CHECKING, Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from examples.tiny_stable_diffusion.training import Training
from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.data.images import draw_flips
from immiscible_diffusion.data.sampler import KeyedSampler
from immiscible_diffusion.utils.random import RandomStreams, hash_seed

if TYPE_CHECKING:
    from examples.tiny_stable_diffusion.build import VAEConfig

WARMUP = 50


def make_vae(config: "VAEConfig", shape: tuple[int, ...], seed: int) -> AutoencoderKL:
    """An ``AutoencoderKL`` with random weights for images of ``shape`` (C, H, W)."""
    levels = len(config.channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(hash_seed(seed, "small vae"))
        return AutoencoderKL(
            in_channels=shape[0],
            out_channels=shape[0],
            latent_channels=config.latent_channels,
            block_out_channels=config.channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            layers_per_block=config.layers,
            norm_num_groups=config.groups,
            sample_size=shape[1],
        )


def vae_loss(vae: AutoencoderKL, images: Tensor, generator: torch.Generator, config: "VAEConfig") -> Tensor:
    """``mean (x' - x)^2 + l1 mean |x' - x| + kl KL(q(z|x), N(0, I)) / dim z``, x' from z ~ q."""
    posterior = vae.encode(images).latent_dist
    error = vae.decode(posterior.sample(generator)).sample - images
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    return error.pow(2).mean() + config.l1 * error.abs().mean() + config.kl * kl


def vae_training(
    vae: AutoencoderKL, images: DataSet, rows: Tensor, config: "VAEConfig", seed: int, **options: Any
) -> Training:
    """The training of ``vae`` on ``rows`` of ``images``; ``options`` are those of ``Training``."""
    optimizer = torch.optim.AdamW(vae.parameters(), betas=(0.9, 0.99), weight_decay=0.0)
    batch_size = min(config.batch_size, len(rows))
    order = KeyedSampler(len(rows), batch_size, hash_seed(seed, "small vae order"))

    def loss(step: int) -> Tensor:
        streams = RandomStreams(seed, step)
        data = images.batch(rows[order.indices(step)]).data
        flips = draw_flips(len(data), config.flip, streams.augment)
        if flips is not None:
            data = torch.where(flips.view(-1, 1, 1, 1), data.flip(-1), data)
        return vae_loss(vae, data, streams.encode, config)

    def lr(step: int) -> float:
        return config.lr * lr_factor(step, config.steps)

    return Training(vae, optimizer, loss, lr, config.steps, "VAE", max_grad_norm=1.0, **options)


def lr_factor(step: int, steps: int) -> float:
    """Fraction of the peak learning rate at ``step``: linear warm-up, then a cosine to 0."""
    warm = min(1.0, (step + 1) / min(WARMUP, max(1, steps // 4)))
    return warm * (0.5 + 0.5 * math.cos(math.pi * step / steps))


@torch.no_grad()
def standardize_latents(vae: AutoencoderKL, mean: Tensor, std: Tensor) -> None:
    """Replace latents z by ``(z - mean) / std`` per channel ``[C]`` without changing the output.

    The affine map goes into the encoder's last 1 x 1 convolution and its inverse into the decoder's
    first. Diffusion needs it: its noise has mean 0 and the same standard deviation everywhere, but
    the scaling factor of a pipeline is one number for all channels.
    """
    count = len(mean)
    last, first = vae.quant_conv, vae.post_quant_conv
    last.weight[:count] /= std.view(-1, 1, 1, 1)
    last.bias[:count] = (last.bias[:count] - mean) / std
    last.bias[count:] -= 2 * std.log()  # log-variances
    first.bias += first.weight[:, :, 0, 0] @ mean
    first.weight *= std.view(1, -1, 1, 1)
