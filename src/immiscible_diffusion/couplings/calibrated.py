"""Calibration: the noise of a coupling brought back to mean 0 and covariance I."""

from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.couplings._validation import can_sync, valid_positions
from immiscible_diffusion.couplings.base import Coupling, Independent, draw, pair
from immiscible_diffusion.couplings.noise_distribution import NoiseDistribution


@dataclass(frozen=True)
class Calibrated:
    """The noise of ``coupling``, mapped so that over the data set it has mean 0 and covariance I.

    An affine map, one for all data (or all of a label), so the noise is paired as before and
    sampling starts from N(0, I). First two moments only: the law is not exactly N(0, I).

    Data that a mask cuts are not paired: the law was measured on whole data and differs for every
    mask. They get N(0, I), as calibration aims at.

    Args:
        coupling: what pairs.
        law: of its noise on this data set, ``NoiseDistribution.measure(coupling, batches, moments)``.
        label_key: the condition that holds the labels, if the law has labels.
    """

    coupling: Coupling
    law: NoiseDistribution
    label_key: str = "label"

    preserves_marginal = False

    def __post_init__(self) -> None:
        if not callable(self.coupling) or not isinstance(self.law, NoiseDistribution):
            raise ValueError(
                f"Calibrated needs a coupling and its NoiseDistribution, got {self.coupling!r} and "
                f"{self.law!r}"
            )

    @torch.no_grad()
    def __call__(
        self,
        data: Tensor,
        *,
        cond: dict[str, Tensor] | None = None,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Noise for ``data`` ``[B, *shape]``; ValueError for a mask that cuts them all."""
        labels, cut = self._labels(cond), self._cut(data, mask)
        noise = draw(self.coupling, data, cond=cond, mask=mask, generator=generator)
        paired = self.law.whiten(noise, labels)
        if cut is None:
            return paired
        own = Independent()(data, generator=generator)
        return torch.where(cut, own, paired)

    @torch.no_grad()
    def pair(
        self,
        data: Tensor,
        noise: Tensor,
        *,
        cond: dict[str, Tensor] | None = None,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The same from Gaussian ``noise`` ``[B, *shape]`` of your own."""
        labels, cut = self._labels(cond), self._cut(data, mask)
        paired = pair(self.coupling, data, noise, cond=cond, mask=mask, generator=generator)
        paired = self.law.whiten(paired, labels)
        return paired if cut is None else torch.where(cut, noise.to(paired), paired)

    def _cut(self, data: Tensor, mask: Tensor | None) -> Tensor | None:
        """``[B, 1, ...]``: which data the mask cuts; None without one."""
        valid = valid_positions(mask, data)
        if valid is None:
            return None
        cut = ~valid.flatten(1).all(dim=1)
        if can_sync(cut) and bool(cut.all()):
            raise ValueError(
                "the mask cuts every sample, and the law of Calibrated was measured on whole data; "
                "use the coupling inside it, or drop the mask"
            )
        return cut.view(-1, *(1,) * (data.ndim - 1))

    def _labels(self, cond: dict[str, Tensor] | None) -> Tensor | None:
        if self.law.label_mean is None:
            return None
        if cond is None or self.label_key not in cond:
            known = ", ".join(cond or {}) or "none"
            raise ValueError(
                f'a law by label needs cond["{self.label_key}"]; conditions given: {known}'
            )
        return cond[self.label_key]
