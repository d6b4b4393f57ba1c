"""Standardization and image scaling (*Improved Immiscible Diffusion*, arXiv 2505.18521, section 5.6)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.utils.checks import FiniteFloat, PositiveFloat, check_fields


@dataclass(frozen=True)
class DataScaling:
    """``factor * (data - mean) / std`` is diffused; undone after sampling.

    Scaled data are further apart, so their diffused distributions mix less at middle times. Scaling by c multiplies
    the signal-to-noise ratio by c^2 at every time: it acts on the data and needs no pairing, so it goes with any
    coupling. Moments, couplings and the network get scaled data; samples are scaled back before they are evaluated.
    """

    factor: PositiveFloat = 1.0  # the constant, > 0; the paper tries standard deviations of 0.5, 1 and 2. 1 = off
    # moments of the channels, to standardize data ``[C, ...]`` by: ``std`` may be given alone; none = off
    mean: tuple[FiniteFloat, ...] = ()
    std: tuple[PositiveFloat, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self, "scaling.")
        if self.mean and len(self.mean) != len(self.std):
            raise ValueError(f"scaling.mean needs as many std, got {self.mean} and {self.std}")

    @property
    def is_identity(self) -> bool:
        """Whether data are diffused as they are."""
        return self.factor == 1 and not self.std

    def apply(self, data: Tensor) -> Tensor:
        """``data`` ``[B, C, ...]`` as the network gets them; the same tensor for factor 1."""
        if self.std:
            mean, std = self._channels(data)
            data = (data - mean) / std
        return data if self.factor == 1 else data * self.factor

    def undo(self, data: Tensor) -> Tensor:
        """Sampled ``data`` (any shape) in the range of the data set."""
        data = data if self.factor == 1 else data / self.factor
        if self.std:
            mean, std = self._channels(data)
            data = data * std + mean
        return data

    def bound(self, clip: float) -> float:
        """The largest absolute value of scaled data whose own are at most ``clip``."""
        channels = zip(self.mean or (0.0,) * len(self.std), self.std, strict=True)
        return self.factor * max(((clip + abs(mean)) / std for mean, std in channels), default=clip)

    def sigma_data(self, before: float) -> float:
        """Standard deviation of scaled data whose own is ``before``."""
        return self.factor * (1.0 if self.std else before)

    def _channels(self, data: Tensor) -> tuple[Tensor, Tensor]:
        if data.shape[1] != len(self.std):
            raise ValueError(f"scaling.std has {len(self.std)} channels, the data have {data.shape[1]}")
        shape = (-1, *(1,) * (data.ndim - 2))
        std = data.new_tensor(self.std).view(shape)
        return (data.new_tensor(self.mean).view(shape) if self.mean else torch.zeros_like(std)), std
