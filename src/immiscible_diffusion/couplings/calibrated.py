"""Calibration: the noise of a coupling brought back to mean 0 and covariance I."""

from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.couplings._validation import can_sync, take_condition
from immiscible_diffusion.couplings.base import Cond, Coupling, Mask, Noise, Rng, start_noise
from immiscible_diffusion.couplings.noise_distribution import NoiseDistribution
from immiscible_diffusion.couplings.wrappers import Wrapper


@dataclass(frozen=True)
class Calibrated(Wrapper):
    """``n' = C^(-1/2) (n - m)``: the noise of ``coupling`` with mean 0 and covariance I.

    ``m`` and ``C`` are the moments of its noise over the data set (or of a label): one affine map, so the noise is
    paired as before and sampling starts from N(0, I). First two moments only: the noise is not exactly N(0, I).

    Samples that a mask cuts are not paired: the moments were measured on complete samples and differ for every mask.
    They get N(0, I), as calibration aims at.

    Args:
        coupling: pairs.
        distribution: of its noise, ``NoiseDistribution.measure(coupling, batches, moments)``.
        label_key: the condition that holds the labels, if the distribution has labels.
    """

    distribution: NoiseDistribution
    label_key: str = "label"

    name = "calibrated"
    preserves_marginal = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.distribution, NoiseDistribution):
            kind = type(self.distribution).__name__
            raise ValueError(f"Calibrated needs the NoiseDistribution of its coupling, got {kind}")

    def at_step(self, step: int) -> Coupling:
        """This; ValueError around a coupling that changes, whose noise has no one distribution."""
        if self.coupling.at_step(step) is not self.coupling:
            raise ValueError(f"{self.coupling} changes with the step; use WarmUp(Calibrated(...), N)")
        return self

    def choose(self, data: Tensor, noise: Noise, cond: Cond, mask: Mask, generator: Rng) -> Tensor:
        """Noise for ``data`` ``[B, *shape]``; ValueError for a mask that cuts every sample."""
        labels, cut = self.labels_of(cond), None
        if mask is not None:
            cut = ~mask.flatten(1).all(dim=1)
            if can_sync(cut) and bool(cut.all()):
                raise ValueError("the mask cuts every sample; use the coupling inside Calibrated")
        paired = self.distribution.whiten(self.inner(data, noise, cond, mask, generator), labels)
        if cut is None:
            return paired
        cut = cut.view(-1, *(1 for _ in data.shape[1:]))
        return torch.where(cut, start_noise(data, noise, generator), paired)

    def labels_of(self, cond: Cond) -> Tensor | None:
        """``cond[label_key]`` where the distribution has labels; ValueError if it is missing."""
        if self.distribution.label_mean is None:
            return None
        return take_condition(cond, self.label_key, "a noise distribution by label")
