"""Couplings in torchcfm: in the place of its plan sampler."""

from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.couplings.base import Coupling, as_coupling


@dataclass(frozen=True)
class PlanSampler:
    """A coupling that answers to torchcfm's ``OTPlanSampler``; see ``as_torchcfm``.

    ``replace`` is there for the signature: every sample occurs once, whatever it is.
    """

    coupling: Coupling
    label_key: str = "label"
    generator: torch.Generator | None = None

    def sample_plan(self, x0: Tensor, x1: Tensor, replace: bool = True) -> tuple[Tensor, Tensor]:
        """Noise for ``x1`` ``[B, *shape]``, made from ``x0`` if the coupling can, and ``x1``."""
        return self.sample_plan_with_labels(x0, x1)[:2]

    def sample_plan_with_labels(
        self, x0: Tensor, x1: Tensor, y0: Tensor | None = None, y1: Tensor | None = None, replace: bool = True
    ) -> tuple[Tensor, Tensor, None, Tensor | None]:
        """The same, None, and ``y1``, the labels of the data; ValueError for ``y0``, which cannot follow the noise."""
        if y0 is not None:
            raise ValueError("y0 labels x0, the noise, which is replaced; label the data with y1")
        cond, coupling = None if y1 is None else {self.label_key: y1}, self.coupling
        if not coupling.takes_noise:
            return coupling(x1, cond=cond, generator=self.generator), x1, None, y1
        return coupling.pair(x1, x0, cond=cond, generator=self.generator), x1, None, y1


def as_torchcfm(
    coupling: Coupling, *, label_key: str = "label", generator: torch.Generator | None = None
) -> PlanSampler:
    """``coupling`` in the place of torchcfm's plan sampler.

    ``matcher.ot_sampler = as_torchcfm(KNN(k=4))``. There ``x0`` is noise, at t = 0, ``x1`` data, at t = 1, and ``u =
    x1 - x0`` is learned; here data are at t = 0, and ``noise - data = -u``. ``x1`` and its labels, which the coupling
    gets as ``cond[label_key]``, stay in place, bit for bit. ``x0`` is used where the coupling can start from it; a
    function draws its own.

    With a ``generator`` of its own, on the device of the data, the coupling leaves torch's alone: runs of one seed
    with and without pairing then share their times, dropout and order.
    """
    return PlanSampler(as_coupling(coupling), label_key, generator)
