"""What samplers return, and the noise that they start from."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.utils.random import keyed_generator

StepNoise = Callable[[int], Tensor]
"""``noise(n) -> [B, *shape]``: what step n adds, for stochastic samplers."""

AT_A_TIME = 64
"""Candidates that a refused row draws at once."""


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


def pruned_noise(
    seed: int, indices: Sequence[int], noise: Tensor, accepts: Callable[[Tensor], Tensor], attempts: int = 100_000
) -> Tensor:
    """``noise`` ``[B, *shape]`` with every row that ``accepts`` (``[n, *shape] -> bool [n]``) refuses drawn again.

    Row i draws from a stream of ``(seed, index)`` until one is accepted; ValueError after so many ``attempts``.
    """
    noise = noise.clone()
    for row in (~accepts(noise)).nonzero().flatten().tolist():
        generator = keyed_generator(seed, indices[row], "pruned sample")
        for _ in range(attempts // AT_A_TIME):
            candidates = torch.randn((AT_A_TIME, *noise.shape[1:]), generator=generator).to(noise.device)
            if len(accepted := accepts(candidates).nonzero()):
                noise[row] = candidates[accepted[0, 0]]
                break
        else:
            raise ValueError(f"sampler.prune refused {attempts} starts of sample {indices[row]}; give a larger one")
    return noise
