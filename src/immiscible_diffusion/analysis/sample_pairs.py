"""Pairs of data and noise as a training run would see them."""

from dataclasses import replace

import torch
from torch import Tensor

from immiscible_diffusion.analysis.noise_density import take
from immiscible_diffusion.couplings import Coupling, as_coupling
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.random import keyed_generator

BATCH_SIZE = 256


@torch.no_grad()
def draw_noise(
    coupling: Coupling, images: Batch, rows: Tensor, *, seed: int, batch_size: int = BATCH_SIZE, share: float = 1.0
) -> Tensor:
    """Noise for the samples ``rows`` ``[P]`` of ``images``: ``[P, *shape]``.

    The coupling is called on batches of ``batch_size``; an assignment depends on the whole batch.
    The fraction ``share`` of a batch is of ``rows``, the rest any of ``images``: give the fraction
    of samples like ``rows`` where these are not a random choice.
    """
    coupling, noises = as_coupling(coupling), []
    for number, chunk in enumerate(rows.split(max(1, round(share * batch_size)))):
        size, generator = (batch_size - len(chunk),), keyed_generator(seed, number, "fill")
        filler = torch.randint(len(images), size, generator=generator).to(chunk)
        batch = replace(take(images, every := torch.cat([chunk, filler])), index=every)
        generator = keyed_generator(seed, number, "noise", device=images.data.device)
        noise = coupling(batch.data, cond=batch.pairing_cond, mask=batch.mask, generator=generator)
        noises.append(noise[: len(chunk)])
    return torch.cat(noises)


def choose_rows(count: int, number: int, seed: int) -> Tensor:
    """``number`` random rows of ``count``: distinct ones as long as there are enough."""
    generator = keyed_generator(seed, "rows")
    rounds = -(-number // count)
    return torch.cat([torch.randperm(count, generator=generator) for _ in range(rounds)])[:number]
