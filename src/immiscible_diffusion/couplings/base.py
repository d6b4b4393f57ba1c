# SPDX-License-Identifier: Apache-2.0 (immiscible-diffusion)
"""What a coupling is: ``noise = coupling(data)``. Depends on torch alone."""

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ._validation import check_data, valid_positions

Noise = Tensor | None
Mask = Tensor | None
Cond = dict[str, Tensor] | None
Rng = torch.Generator | None


class Coupling:
    """Decides which noise goes with which sample: ``noise = coupling(data)``.

    A coupling is stateless, a frozen dataclass: what it needs to know of the data set is fitted before the first step.
    It draws noise; it never moves, drops or repeats data, so labels and other conditions stay with their data. A
    subclass defines ``choose``, and overrides the properties below where the defaults are not true of it.
    ``testing.check_coupling`` tests one.

    A function ``(data, *, cond, generator)`` does as well; ``as_coupling`` wraps it.
    """

    name: ClassVar[str] = ""
    """How ``parse_coupling`` spells the class; empty for one that has no such name."""

    @property
    def preserves_marginal(self) -> bool:
        """Whether the noise over any data set is exactly N(0, I)."""
        return False

    def preserves_conditional(self, key: str) -> bool:
        """Whether the noise is N(0, I) given ``cond[key]`` as well."""
        return False

    @property
    def pool_size(self) -> int:
        """How many batches ``PairedLoader`` and ``pair_pool`` join and pair as one."""
        return 1

    @property
    def across_ranks(self) -> bool | Literal["node"]:
        """Whether all ranks pair together, or those of a node: all must call, be it without rows."""
        return False

    @property
    def takes_mask(self) -> bool:
        """Whether ``mask`` may be given."""
        return True

    @property
    def takes_noise(self) -> bool:
        """Whether ``pair`` can start from noise of the caller's."""
        return True

    def at_step(self, step: int) -> "Coupling":
        """The coupling of an optimizer step, for one that changes in training."""
        return self

    def unpooled(self) -> "Coupling":
        """The coupling as it is called on a complete pool of batches."""
        return self

    def within_process(self) -> "Coupling":
        """The coupling as it is called on complete pools of one process, whatever others do: to measure it."""
        return self.unpooled()

    def finish_ranks(self, generator: Callable[[int], torch.Generator]) -> None:
        """Take part in the others' pairing after this rank's last batch, until all have ended.

        ``generator(n)`` serves the n-th call of theirs.
        """

    @torch.no_grad()
    def __call__(self, data: Tensor, *, cond: Cond = None, mask: Mask = None, generator: Rng = None) -> Tensor:
        """Draw noise for ``data``.

        Args:
            data: ``[B, *shape]``, floating point, any device.
            cond: conditions of the data, each ``[B, ...]``.
            mask: boolean, broadcasts to ``data``, True where data are valid.
            generator: on the device of ``data``; torch's own by default.

        Returns:
            Noise like ``data`` in shape, dtype, device and memory layout, without gradient.

        Raises:
            ValueError: data, mask or conditions that this coupling cannot pair.
        """
        return in_layout(data, self.choose(data, None, cond, self.check(data, mask), generator))

    @torch.no_grad()
    def pair(
        self, data: Tensor, noise: Tensor, *, cond: Cond = None, mask: Mask = None, generator: Rng = None
    ) -> Tensor:
        """The same from Gaussian ``noise`` ``[B, *shape]`` of the caller's, as a new tensor."""
        if not self.takes_noise:
            raise ValueError(f"{self} cannot start from noise of yours; call it as coupling(data)")
        noise = noise if isinstance(noise, Tensor) else torch.empty(0)  # None would be drawn
        return in_layout(data, self.choose(data, noise, cond, self.check(data, mask), generator))

    def choose(self, data: Tensor, noise: Noise, cond: Cond, mask: Mask, generator: Rng) -> Tensor:
        """The noise of checked ``data``: what a subclass defines.

        ``noise`` is the caller's, or None where it is to be drawn (``start_noise`` does either); ``mask`` has the
        shape of ``data``, or is None.
        """
        raise NotImplementedError(f"{type(self).__name__} must define choose")

    def check(self, data: Tensor, mask: Mask) -> Mask:
        """The mask in the shape of ``data``; ValueError for bad data or a bad mask."""
        check_data(data, may_be_empty=bool(self.across_ranks))
        if mask is not None and not self.takes_mask:
            raise ValueError(f"the data have a mask, which {self} does not take; use KNN, say")
        return valid_positions(mask, data)

    def options(self) -> dict[str, object]:
        """The fields with a word or number that is not the default, for ``str``."""
        values = ((f, getattr(self, f.name)) for f in dataclasses.fields(self) if f.repr)  # type: ignore
        simple = ((f, v) for f, v in values if isinstance(v, (bool, int, float, str)))
        return {f.name: v for f, v in simple if v != f.default}

    def __str__(self) -> str:
        """As ``parse_coupling`` reads it, such as ``knn:k=4``; for your own class its ``repr``.

        Fitted moments and distributions have no name: ``parse_coupling`` needs them beside it.
        """
        if not self.name:
            return repr(self)
        text = spell(self.options())
        return f"{self.name}:{text}" if text else self.name


def spell(options: dict[str, object]) -> str:
    """``"k=4,center=mean"``; quoted where a word would be read as something else."""

    def word(value: object) -> str:
        if isinstance(value, str):
            plain = value.isidentifier() and value.lower() not in ("true", "false", "none")
            return value if plain else repr(value)
        return str(value).lower() if isinstance(value, bool) else str(value)

    return ",".join(f"{name}={word(value)}" for name, value in options.items())


def start_noise(data: Tensor, noise: Noise, generator: Rng) -> Tensor:
    """``torch.randn`` like ``data``, or a copy of ``noise``; ValueError for another shape."""
    if noise is None:
        return torch.randn(data.shape, dtype=data.dtype, device=data.device, generator=generator)
    check_noise(data, noise)
    return noise.to(data, copy=True)


def in_layout(data: Tensor, noise: Tensor) -> Tensor:
    """``noise`` with the strides of ``torch.empty_like(data)``, so that ``channels_last`` stays."""
    if data.is_contiguous() and noise.is_contiguous():
        return noise
    result = torch.empty_like(data)
    return noise if noise.stride() == result.stride() else result.copy_(noise)


def check_noise(data: Tensor, noise: Tensor) -> None:
    """Raise ValueError unless ``noise`` is a tensor of the shape of ``data``."""
    if noise.shape != data.shape:
        raise ValueError(f"noise must be {tuple(data.shape)} like data, got {tuple(noise.shape)}")


@dataclass(frozen=True)
class Independent(Coupling):
    """No pairing: ``torch.randn_like``, as diffusion models are commonly trained."""

    name = "independent"
    preserves_marginal = True

    def preserves_conditional(self, key: str) -> bool:
        """Given any condition the noise is N(0, I)."""
        return True

    def choose(self, data: Tensor, noise: Noise, cond: Cond, mask: Mask, generator: Rng) -> Tensor:
        """Noise like ``data``, drawn in the order of its memory."""
        if noise is None:
            return torch.empty_like(data).normal_(generator=generator)
        return start_noise(data, noise, generator)


@dataclass(frozen=True)
class FunctionCoupling(Coupling):
    """A function ``(data, *, cond, generator)``, or with ``mask`` too, as a coupling; see ``as_coupling``."""

    function: Callable[..., Tensor]
    takes_noise = False

    def __post_init__(self) -> None:
        check_signature(self.function)

    @property
    def takes_mask(self) -> bool:
        """Whether the function has an argument ``mask``."""
        parameters = inspect.signature(self.function).parameters.values()
        return any(p.name == "mask" or p.kind is p.VAR_KEYWORD for p in parameters)

    def choose(self, data: Tensor, noise: Noise, cond: Cond, mask: Mask, generator: Rng) -> Tensor:
        """What the function returns; ValueError if it is not like ``data``."""
        options = {"mask": mask} if self.takes_mask else {}
        result = self.function(data, cond=cond, generator=generator, **options)
        check_noise(data, result)
        return result

    def __repr__(self) -> str:
        return repr(self.function)


def as_coupling(coupling: Any) -> Coupling:
    """``coupling`` itself, or a function (an object that can be called) wrapped as one.

    Nothing is read off what is wrapped: it has the defaults of ``Coupling``. ValueError if it cannot be called as
    ``coupling(data, cond=cond, generator=generator)``.
    """
    return coupling if isinstance(coupling, Coupling) else FunctionCoupling(coupling)


def check_signature(function: Any, *first: None) -> None:
    """Raise ValueError unless ``function(*first, data, cond=, generator=)`` is a legal call."""
    if not callable(function) or isinstance(function, type):
        raise ValueError(f"expected a coupling, such as KNN(4), or a function, got {function!r}")
    try:
        signature = inspect.signature(function)
        mask = {"mask": None} if "mask" in signature.parameters else {}
        signature.bind(*first, None, cond=None, generator=None, **mask)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{function!r} cannot be called as coupling(data, cond=cond, generator=generator): {error}"
        ) from error
