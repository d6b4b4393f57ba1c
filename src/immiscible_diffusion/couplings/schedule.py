"""Pairing that begins at a step of training.

A coupling knows no step. One that changes with it says so by a method ``at(step)``, which gives the
coupling of that step; who draws noise for a step asks for it with ``at_step``, as for the loss.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.couplings.base import Coupling, Independent, draw, pair


@dataclass(frozen=True)
class WarmUp:
    """No pairing before ``start_step``, then ``coupling`` (arXiv 2610.09369 starts at an epoch).

    Called as it is, it pairs: so a law that is measured of it is that of the later training, which
    sampling with the matched start begins from.

    Args:
        coupling: that pairs.
        start_step: the first optimizer step with pairing; 0 = from the beginning.
    """

    coupling: Coupling
    start_step: int

    def __post_init__(self) -> None:
        step = self.start_step
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise ValueError(f"start_step must be a whole number >= 0, got {step!r}")
        if not callable(self.coupling):
            raise ValueError(f"WarmUp needs a coupling, such as KNN(2), got {self.coupling!r}")

    @property
    def preserves_marginal(self) -> bool:
        """As ``coupling``."""
        return bool(getattr(self.coupling, "preserves_marginal", False))

    def at(self, step: int) -> Coupling:
        """The coupling of an optimizer step."""
        return Independent() if step < self.start_step else self.coupling

    @torch.no_grad()
    def __call__(
        self,
        data: Tensor,
        *,
        cond: dict[str, Tensor] | None = None,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Noise for ``data`` ``[B, *shape]`` as after the warm-up."""
        return draw(self.coupling, data, cond=cond, mask=mask, generator=generator)

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
        """The same from ``noise`` ``[B, *shape]`` of your own."""
        return pair(self.coupling, data, noise, cond=cond, mask=mask, generator=generator)


def at_step(coupling: Coupling, step: int) -> Coupling:
    """The coupling of an optimizer step, for one that has ``at(step)`` or wraps one that has.

    Raises:
        ValueError: a law was measured around a coupling that changes: put the warm-up outside.
    """
    own: Any = getattr(coupling, "at", None)
    if own is not None:
        return at_step(own(step), step)
    inner: Any = getattr(coupling, "coupling", None)
    if inner is None or not dataclasses.is_dataclass(coupling) or isinstance(coupling, type):
        return coupling
    now = at_step(inner, step)
    if now is inner:
        return coupling
    if hasattr(coupling, "law"):
        raise ValueError(
            f"the law of {type(coupling).__name__} is that of one coupling, and {inner} changes "
            f"with the step; use WarmUp({type(coupling).__name__}(...), start_step)"
        )
    changed: Coupling = dataclasses.replace(coupling, coupling=now)
    return changed
