"""Pairing by a part of every sample, which a condition names."""

from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.couplings.base import Coupling, draw


@dataclass(frozen=True)
class MaskedCoupling:
    """``coupling``, looking only where the condition ``name`` is not 0; all of it gets noise.

    For in-painting: the part around the mask is known, so the noise is chosen by what is inside.
    It is no mask of the batch: all of the data are diffused and fitted.

    Args:
        coupling: which noise goes with what is inside.
        name: of the condition, ``[B, 1, h, w]`` or whatever broadcasts to the data.
    """

    coupling: Coupling
    name: str = "inpaint_mask"

    def __call__(
        self,
        data: Tensor,
        *,
        cond: dict[str, Tensor] | None = None,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Noise for ``data``; ValueError without the condition."""
        if cond is None or self.name not in cond:
            raise ValueError(
                f"pairing inside needs cond[{self.name!r}], got {sorted(cond or {})}; "
                f"in-painting gives it"
            )
        inside = cond[self.name].bool()
        mask = inside if mask is None else mask & inside
        return draw(self.coupling, data, cond=cond, mask=mask, generator=generator)
