"""How good a VAE is: error of reconstructions, and what its latents are like."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.data.base import DataSet

BATCH = 128


def psnr(squared_error: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error of pictures in [-1, 1]."""
    if squared_error < 0:
        raise ValueError(f"a squared error is not negative, got {squared_error}")
    return 10 * math.log10(4 / squared_error) if squared_error else math.inf


@torch.no_grad()
def reconstructions(vae: Any, images: DataSet, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of pictures and what the VAE makes of the modes of their latents, in [-1, 1]."""
    for part in rows.split(BATCH):
        pictures = images.batch(part).data
        yield pictures, vae.decode(vae.encode(pictures).latent_dist.mode()).sample.clamp(-1, 1)


def held_out_psnr(vae: Any, images: DataSet, rows: Tensor) -> float:
    """PSNR in dB of the squared error over all of ``rows``.

    At most the mean of the pictures' own ratios, which a few easy pictures can raise.
    """
    total = sum(
        float((made - real).pow(2).flatten(1).mean(1).double().sum())
        for real, made in reconstructions(vae, images, rows)
    )
    return psnr(total / len(rows))


@dataclass(frozen=True)
class LatentFigures:
    """What latents are like, per channel.

    Attributes:
        mean: of latents drawn.
        std: of latents drawn.
        noise: standard deviation that the encoder itself adds, as a share of ``std``.
        kurtosis: excess over a normal law, of the modes.
        neighbors: correlation of horizontal and vertical neighbors, of the modes; 0 is white.
    """

    mean: list[float]
    std: list[float]
    noise: list[float]
    kurtosis: list[float]
    neighbors: list[float]

    def to_dict(self) -> dict[str, list[float]]:
        """Rounded, for a file."""
        return {name: [round(x, 4) for x in values] for name, values in asdict(self).items()}


@torch.no_grad()
def latent_figures(vae: Any, images: DataSet, rows: Tensor) -> LatentFigures:
    """The figures of the latents of ``rows``."""
    posteriors = [vae.encode(images.batch(part).data).latent_dist for part in rows.split(BATCH)]
    modes = torch.cat([posterior.mode() for posterior in posteriors]).double()
    variance = torch.cat([posterior.var for posterior in posteriors]).double()
    added = variance.mean((0, 2, 3))
    mean = modes.mean((0, 2, 3))
    centerd = modes - mean.view(1, -1, 1, 1)
    spread = centerd.pow(2).mean((0, 2, 3))
    std = (spread + added).sqrt()
    across, down = _neighbors(centerd), _neighbors(centerd.transpose(-1, -2))
    return LatentFigures(
        mean.tolist(),
        std.tolist(),
        (added.sqrt() / std).tolist(),
        (centerd.pow(4).mean((0, 2, 3)) / spread.pow(2) - 3).tolist(),
        ((across + down) / (2 * spread)).tolist(),
    )


def _neighbors(centerd: Tensor) -> Tensor:
    if centerd.shape[-1] < 2:
        return torch.zeros(centerd.shape[1], dtype=centerd.dtype)
    return (centerd[..., 1:] * centerd[..., :-1]).mean((0, 2, 3))


@torch.no_grad()
def standardize(vae: Any, mean: Tensor, std: Tensor) -> None:
    """Let latents come out as ``(z - mean) / std`` per channel ``[C]``, without other change.

    The affine map goes into the encoder's last 1 x 1 convolution, its inverse into the decoder's
    first: reconstructions stay what they were. Diffusion needs it, as its noise has mean 0 and one
    standard deviation, and the scaling factor of a pipeline is one number for all channels.
    """
    count = len(mean)
    last, first = vae.quant_conv, vae.post_quant_conv
    last.weight[:count] /= std.view(-1, 1, 1, 1)
    last.bias[:count] = (last.bias[:count] - mean) / std
    last.bias[count:] -= 2 * std.log()  # log-variances
    first.bias += first.weight[:, :, 0, 0] @ mean
    first.weight *= std.view(1, -1, 1, 1)
