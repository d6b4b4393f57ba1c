"""What samplers return, and the noise that they start from."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.utils.random import keyed_generator

StepNoise = Callable[[int], Tensor]
"""``noise(n) -> [B, *shape]``: what step n adds, for stochastic samplers."""


@dataclass(frozen=True)
class SamplerOutput:
    """Samples and their cost.

    Attributes:
        data: ``[B, *shape]``.
        nfe: number of function evaluations: calls of the network on the batch.
    """

    data: Tensor
    nfe: int


def start_noise(
    seed: int,
    indices: Iterable[int],
    shape: tuple[int, ...],
    device: torch.device | str = "cpu",
    step: int | None = None,
) -> Tensor:
    """Noise ``[len(indices), *shape]`` to start from: row i depends on ``(seed, index)`` alone.

    So a sample does not depend on how sampling was split into batches or over devices. With ``step``, the noise that
    this step of a stochastic sampler adds.
    """
    name = "sample" if step is None else f"sample step {step}"
    rows = [torch.randn(shape, generator=keyed_generator(seed, index, name)) for index in indices]
    return torch.stack(rows).to(device)
