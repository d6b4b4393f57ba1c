"""Image scaling (*Improved Immiscible Diffusion*, arXiv 2505.18521, section 5.6)."""

from dataclasses import dataclass

from torch import Tensor

from immiscible_diffusion.utils.checks import PositiveFloat, check_fields


@dataclass(frozen=True)
class DataScaling:
    """Data multiplied by a constant before they are diffused; undone after sampling.

    Scaled data are further apart, so their diffused distributions mix less at middle times. Scaling by c multiplies
    the signal-to-noise ratio by c^2 at every time: it acts on the data and needs no pairing, so it goes with any
    coupling. Moments, couplings and the network get scaled data; samples are scaled back before they are evaluated.
    """

    factor: PositiveFloat = 1.0  # the constant, > 0; the paper tries standard deviations of 0.5, 1 and 2. 1 = off

    def __post_init__(self) -> None:
        check_fields(self, "scaling.")

    def apply(self, data: Tensor) -> Tensor:
        """``data`` (any shape) as the network gets them; the same tensor for factor 1."""
        return data if self.factor == 1 else data * self.factor

    def undo(self, data: Tensor) -> Tensor:
        """Sampled ``data`` (any shape) in the range of the data set."""
        return data if self.factor == 1 else data / self.factor
