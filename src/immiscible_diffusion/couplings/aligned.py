"""Contrastive noise alignment (CNA, 2609.18488): a few gradient steps on the noise alone, after any pairing."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from immiscible_diffusion.couplings._validation import check_rows_finite, product, working_dtype
from immiscible_diffusion.couplings.base import Cond, Mask, Noise, Rng
from immiscible_diffusion.couplings.wrappers import Wrapper
from immiscible_diffusion.utils.checks import NonNegativeFloat, PositiveFloat, PositiveInt, check_fields

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # of Adam


@dataclass(frozen=True)
class Aligned(Wrapper):
    """The noise of ``coupling``, turned toward its own sample and away from the other noises of the batch.

    ``steps`` steps of Adam on the noises z with directions ``u = z / |z|`` and ``v = x / |x|`` lower

        mean_i [ -log softmax_j(u_i . v_j / temperature)_i + beta log sum_(j != i) exp(u_i . u_j / spread) ]
        + shrink mean |z|^2

    The first term tells samples apart by their noise, the second spreads the noises over the sphere. A small ``beta``
    is best in few sampling steps, a large one in many. No coordinate moves by much more than ``steps rate``, so the
    noise stays close to N(0, I), but not exactly; given its sample it moves as with any pairing. Sampling starts from
    N(0, I). Gradients are in closed form: it works under no_grad, autocast and inference mode.

    Args:
        coupling: pairs first; published is linear assignment in batches of 128.
        beta: weight of the spread; published 5 for CIFAR-10 at 32 to 128 Euler steps, 2 at 1 to 8.
        temperature: of the first term.
        spread: temperature of the second.
        shrink: keeps the mean length of the noise; published 0.001 to 0.005.
        steps: of Adam.
        rate: of Adam, in standard deviations.
    """

    beta: NonNegativeFloat = 5.0
    temperature: PositiveFloat = 0.01
    spread: PositiveFloat = 0.01
    shrink: NonNegativeFloat = 1e-3
    steps: PositiveInt = 4
    rate: PositiveFloat = 0.02

    name = "aligned"
    preserves_marginal = False
    takes_mask = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self)

    def preserves_conditional(self, key: str) -> bool:
        """Not exactly."""
        return False

    def choose(self, data: Tensor, noise: Noise, cond: Cond, mask: Mask, generator: Rng) -> Tensor:
        """Noise ``[B, *shape]``; that of ``coupling`` for a batch of one sample, which has no others beside it.

        ValueError for a sample or a noise that is not finite, which would spoil the noise of all.
        """
        noise = self.inner(data, noise, cond, mask, generator)
        if len(data) < 2:
            return noise
        dtype = working_dtype(data.dtype)
        rows = noise.flatten(1).to(dtype)
        toward = normalize(data.flatten(1).to(dtype), dim=1)
        check_rows_finite(toward)
        check_rows_finite(rows, "noise")
        mean, square = torch.zeros_like(rows), torch.zeros_like(rows)
        for step in range(1, self.steps + 1):
            slope = self.gradient(rows, toward)
            mean, square = mean.lerp(slope, 1 - BETA1), square.lerp(slope.square(), 1 - BETA2)
            root = (square / (1 - BETA2**step)).sqrt() + EPSILON
            rows = rows - self.rate * mean / (1 - BETA1**step) / root
        return rows.view(data.shape).to(data.dtype)

    def gradient(self, noise: Tensor, toward: Tensor) -> Tensor:
        """Of the loss above in ``noise`` ``[B, D]``, with ``toward`` ``[B, D]`` the directions of the data."""
        count, length = len(noise), torch.linalg.vector_norm(noise, dim=1, keepdim=True)
        units = normalize(noise, dim=1)
        pull = (product(units, toward.T) / self.temperature).softmax(dim=1)
        pull.diagonal().sub_(1)
        near = (product(units, units.T) / self.spread).fill_diagonal_(-torch.inf).softmax(dim=1)
        slope = product(pull, toward) / self.temperature
        slope += product(self.beta / self.spread * (near + near.T), units)
        slope = slope - (slope * units).sum(dim=1, keepdim=True) * units  # only along the sphere
        return (slope / length.clamp_min(1e-12) + 2 * self.shrink * noise) / count
