"""What a coupling is, and the trivial ones."""

import inspect
import warnings
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from immiscible_diffusion.couplings._validation import check_data, valid_positions


@runtime_checkable
class Coupling(Protocol):
    """Decides which noise goes with which sample: ``noise = coupling(data)``.

    A coupling is stateless (a frozen dataclass): what it needs to know of the data set it is given
    when it is made. It draws noise; it never moves, drops or repeats data, so labels and other
    conditions stay with their data. ``immiscible_diffusion.couplings.testing.check_coupling`` tests one.

    One of your own may leave out ``mask`` if your data have none. Two things are of use where a
    coupling has them: ``pair(data, noise, cond=, mask=, generator=)``, which starts from noise of
    the caller's, and ``preserves_marginal``, whether the noise over any data set is exactly N(0, I).
    """

    def __call__(
        self,
        data: Tensor,
        *,
        cond: dict[str, Tensor] | None = None,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Noise for ``data`` ``[B, *shape]``: same shape, dtype and device, without gradient.

        ``cond`` holds the conditions of the data, row by row; ``mask`` is boolean, broadcasts to
        ``data`` and is True where data are valid; ``generator`` is on the device of ``data``.
        """


def draw(
    coupling: Coupling,
    data: Tensor,
    *,
    cond: dict[str, Tensor] | None = None,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``coupling(data)``, for a coupling that may not take ``mask``; ValueError if it must."""
    if mask is None:
        return coupling(data, cond=cond, generator=generator)
    check_takes_mask(coupling)
    return coupling(data, cond=cond, mask=mask, generator=generator)


def check_takes_mask(coupling: Coupling) -> None:
    """Raise ValueError unless ``coupling`` can be called with a mask."""
    parameters = inspect.signature(coupling).parameters.values()
    if not any(p.name == "mask" or p.kind is p.VAR_KEYWORD for p in parameters):
        raise ValueError(
            f"the data have a mask, which {coupling} does not take; give it the argument mask=, or "
            f"use KNN, which selects over valid positions"
        )


def pair(
    coupling: Coupling,
    data: Tensor,
    noise: Tensor,
    *,
    cond: dict[str, Tensor] | None = None,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``coupling.pair(data, noise)``; ValueError for a coupling that cannot start from yours."""
    own: Any = getattr(coupling, "pair", None)
    if own is None:
        raise ValueError(
            f"{coupling} has no method pair(data, noise); call it as coupling(data), which draws "
            f"the noise itself"
        )
    options = {} if mask is None else {"mask": mask}
    noise_for: Tensor = own(data, noise, cond=cond, generator=generator, **options)
    return noise_for


def may_shift_labels(coupling: Coupling, key: str) -> bool:
    """Whether the noise of ``coupling`` may depend on ``cond[key]``, though it is N(0, I) over all.

    So it is with an assignment over a batch of many labels: noises go where they suit. A coupling
    says that it does not by a method ``preserves_conditional(key)``.
    """
    keeps: Any = getattr(coupling, "preserves_conditional", None)
    return keeps is None or not keeps(key)


def check_noise(data: Tensor, noise: Tensor) -> None:
    """Raise ValueError unless ``noise`` is a tensor of the shape of ``data``."""
    if noise.shape != data.shape:
        raise ValueError(f"noise must be {tuple(data.shape)} like data, got {tuple(noise.shape)}")


@dataclass(frozen=True)
class Independent:
    """No pairing: ``torch.randn``, as diffusion models are commonly trained."""

    preserves_marginal = True

    def preserves_conditional(self, key: str) -> bool:
        """Given any condition the noise is N(0, I)."""
        return True

    @torch.no_grad()
    def __call__(
        self,
        data: Tensor,
        *,
        cond: dict[str, Tensor] | None = None,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Noise like ``data`` ``[B, *shape]``."""
        check_data(data)
        valid_positions(mask, data)
        return torch.randn(data.shape, dtype=data.dtype, device=data.device, generator=generator)

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
        """A copy of ``noise`` ``[B, *shape]``."""
        check_data(data)
        check_noise(data, noise)
        return noise.to(data, copy=True)


@dataclass(frozen=True)
class Shuffled:
    """The control: the very noises of ``coupling``, handed to other data of the batch.

    The law of the noise is kept and the pairing destroyed, so what a shuffled coupling gains over
    ``Independent`` is not due to pairing. The permutation is one random cycle: no sample keeps its
    noise (unless it is alone in its batch, which warns).
    """

    coupling: Coupling

    def __post_init__(self) -> None:
        if not callable(self.coupling):
            raise ValueError(f"Shuffled needs a coupling, such as KNN(4), got {self.coupling!r}")

    @property
    def preserves_marginal(self) -> bool:
        """As ``coupling``."""
        return bool(getattr(self.coupling, "preserves_marginal", False))

    @torch.no_grad()
    def __call__(
        self,
        data: Tensor,
        *,
        cond: dict[str, Tensor] | None = None,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Noise for ``data`` ``[B, *shape]``, independent of the sample it is given to."""
        noise = draw(self.coupling, data, cond=cond, mask=mask, generator=generator)
        return _handed_on(noise, generator)

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
        paired = pair(self.coupling, data, noise, cond=cond, mask=mask, generator=generator)
        return _handed_on(paired, generator)


def _handed_on(noise: Tensor, generator: torch.Generator | None) -> Tensor:
    """``noise`` permuted by one random cycle of its rows."""
    if len(noise) == 1:
        warnings.warn("Shuffled has nothing to shuffle in a batch of one sample", stacklevel=3)
    cycle = torch.randperm(len(noise), device=noise.device, generator=generator)
    shuffled = torch.empty_like(noise)
    shuffled[cycle] = noise[cycle.roll(1)]
    return shuffled
