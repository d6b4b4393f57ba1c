"""Couplings around a coupling: shuffled, from a later step, by a masked part, calibrated."""

import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.couplings._validation import can_sync, take_condition
from immiscible_diffusion.couplings.base import (
    Cond,
    Coupling,
    Independent,
    Mask,
    Noise,
    Rng,
    as_coupling,
    spell,
    start_noise,
)
from immiscible_diffusion.couplings.noise_distribution import NoiseDistribution


def _of_coupling(name: str) -> Any:
    return property(lambda wrapper: getattr(wrapper.coupling, name))  # attrgetter does not compile


@dataclass(frozen=True)
class Wrapper(Coupling):
    """A coupling around ``coupling``, with its properties unless a subclass has others."""

    coupling: Coupling

    preserves_marginal = _of_coupling("preserves_marginal")
    pool_size = _of_coupling("pool_size")
    across_ranks = _of_coupling("across_ranks")
    takes_mask = _of_coupling("takes_mask")
    takes_noise = _of_coupling("takes_noise")
    finish_ranks = _of_coupling("finish_ranks")

    def __post_init__(self) -> None:
        object.__setattr__(self, "coupling", as_coupling(self.coupling))

    def check(self, data: Tensor, mask: Mask) -> Mask:
        """As ``coupling`` checks them, which may be across ranks; ValueError for a mask that this does not take."""
        return self.coupling.check(data, mask) if mask is None or self.takes_mask else super().check(data, mask)

    def at_step(self, step: int) -> Coupling:
        """This around the coupling of an optimizer step."""
        return self._around(self.coupling.at_step(step))

    def unpooled(self) -> Coupling:
        """This around the coupling as it is called on a complete pool."""
        return self._around(self.coupling.unpooled())

    def within_process(self) -> Coupling:
        """This around the coupling as it is called within one process."""
        return self._around(self.coupling.within_process())

    def _around(self, coupling: Coupling) -> Coupling:
        return self if coupling is self.coupling else replace(self, coupling=coupling)

    def inner(self, data: Tensor, noise: Noise, cond: Cond, mask: Mask, generator: Rng) -> Tensor:
        """The noise of ``coupling``: its own, or made of ``noise``."""
        if noise is None:
            return self.coupling(data, cond=cond, mask=mask, generator=generator)
        return self.coupling.pair(data, noise, cond=cond, mask=mask, generator=generator)

    def __str__(self) -> str:
        options = spell(self.options())
        return f"{self.name}({options}):{self.coupling}" if options else f"{self.name}:{self.coupling}"


@dataclass(frozen=True)
class Shuffled(Wrapper):
    """The control: the very noises of ``coupling``, handed to other data of the batch.

    The noise distribution is kept and the pairing destroyed, so what a shuffled coupling gains over ``Independent`` is
    not due to pairing. The permutation is one random cycle: no sample keeps its noise (unless it is alone in its
    batch, which warns).
    """

    name = "shuffled"

    def choose(self, data: Tensor, noise: Noise, cond: Cond, mask: Mask, generator: Rng) -> Tensor:
        """Noise ``[B, *shape]`` that is independent of the sample it is given to."""
        noise = self.inner(data, noise, cond, mask, generator)
        if noise.shape[0] == 1:
            warnings.warn("Shuffled has nothing to shuffle in a batch of one sample", stacklevel=4)
        cycle = torch.randperm(noise.shape[0], device=noise.device, generator=generator)
        shuffled = torch.empty_like(noise)
        shuffled[cycle] = noise[cycle.roll(1)]
        return shuffled


@dataclass(frozen=True)
class WarmUp(Wrapper):
    """No pairing before ``start_step``, then ``coupling`` (arXiv 2610.09369 starts at an epoch).

    ``start_step`` is the first optimizer step with pairing. A coupling knows no step: ``at_step`` gives the one of a
    step. Called as it is, this pairs, so a noise distribution that is measured of it is that of the later training.
    """

    start_step: int

    name = "warmup"

    def __post_init__(self) -> None:
        super().__post_init__()
        step = self.start_step
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise ValueError(f"start_step must be a whole number >= 0, got {step!r}")

    def at_step(self, step: int) -> Coupling:
        """``Independent`` before ``start_step``, then ``coupling``."""
        return Independent() if step < self.start_step else self.coupling.at_step(step)

    choose = Wrapper.inner

    def __str__(self) -> str:
        if isinstance(self.coupling, Wrapper) or not self.coupling.name:
            return super().__str__()
        inner = str(self.coupling)
        return f"{inner}{',' if ':' in inner else ':'}start_step={self.start_step}"


@dataclass(frozen=True)
class MaskedCoupling(Wrapper):
    """``coupling``, looking only where the condition ``cond_key`` is not 0; all of it gets noise.

    For inpainting: what lies around the hole is known, so the noise is chosen by what is in it. The condition,
    ``[B, 1, h, w]`` or what broadcasts to the data, is no mask of the batch: all of the data are diffused and fitted.
    """

    cond_key: str = "inpaint_mask"

    name = "masked"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.takes_mask:
            raise ValueError(f"MaskedCoupling pairs by a mask, which {self.coupling} does not take; use KNN, say")

    def choose(self, data: Tensor, noise: Noise, cond: Cond, mask: Mask, generator: Rng) -> Tensor:
        """Noise for ``data``; ValueError without the condition."""
        inside = take_condition(cond, self.cond_key, "pairing inside the mask").bool()
        return self.inner(data, noise, cond, inside if mask is None else mask & inside, generator)


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
        self._inner_at(0)

    def at_step(self, step: int) -> Coupling:
        """This around the coupling of an optimizer step."""
        return self._around(self._inner_at(step))

    def _inner_at(self, step: int) -> Coupling:
        """ValueError for one that becomes another, whose noise has no one distribution."""
        coupling = self.coupling.at_step(step)
        if _kinds(coupling) != _kinds(self.coupling):
            raise ValueError(f"{self.coupling} changes with the step; use WarmUp(Calibrated(...), N)")
        return coupling

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


def _kinds(coupling: Coupling) -> list[type]:
    """The class of ``coupling`` and of those inside."""
    return [type(coupling), *(_kinds(coupling.coupling) if isinstance(coupling, Wrapper) else [])]
