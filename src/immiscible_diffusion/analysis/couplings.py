"""Couplings made for a data set, and tried before anything long starts."""

import dataclasses
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.analysis.cache import digest
from immiscible_diffusion.analysis.conditions import is_label
from immiscible_diffusion.analysis.hashing import content_of
from immiscible_diffusion.analysis.nce_density import density_for
from immiscible_diffusion.analysis.noise_density import has_closed_form, log_density, take
from immiscible_diffusion.analysis.sample_pairs import draw_noise
from immiscible_diffusion.couplings import (
    KNN,
    Coupling,
    NoiseDistribution,
    as_coupling,
    parse_coupling,
)
from immiscible_diffusion.couplings._validation import valid_positions
from immiscible_diffusion.couplings.calibrated import Calibrated
from immiscible_diffusion.couplings.moments import Moments
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.random import keyed_generator

MOMENTS_DATA = 10_000
LAW_NOISES, LAW_PASSES = 50_000, 50
LARGEST_LABEL = 1000  # means of that many labels are kept
REPORTED = 16  # directions


@dataclass(frozen=True, eq=False)
class Lineup:
    """What couplings need to be made for ``images``.

    Attributes:
        images: all data, their conditions and mask.
        batch_size: that couplings are called on.
        seed: of what is drawn to measure a law.
        by_label: laws are measured label by label: the model is given the label.
    """

    images: Batch
    batch_size: int
    seed: int
    by_label: bool

    def make(self, coupling: str | Coupling) -> Coupling:
        """The coupling that a name spells, tried on a batch.

        Raises:
            ValueError: what is wrong with the name, or why it cannot be analyzed on these data.
        """
        if isinstance(coupling, str):
            made = parse_coupling(coupling, lambda: self.moments, self.law, allow_import=True)
        else:
            made = as_coupling(coupling)
        if self.images.mask is not None and not has_closed_form(made):
            raise ValueError(
                f"{coupling} cannot be analyzed on data with a mask: its density is estimated "
                f"from pairs, and the estimate takes no mask; leave out the coupling or the mask"
            )
        self._try(made, str(coupling))
        return made

    def _try(self, coupling: Coupling, name: str) -> None:
        rows = torch.arange(min(2, len(self.images)))
        size = min(self.batch_size, len(self.images))
        noise = draw_noise(coupling, self.images, rows, seed=self.seed, batch_size=size)
        shape = self.images.data[rows].shape
        if noise.shape != shape or not bool(noise.isfinite().all()):
            raise ValueError(
                f"{name} must give finite noise like the data {tuple(shape)}, got "
                f"{tuple(noise.shape)}{'' if noise.shape != shape else ', not all of it finite'}"
            )
        if has_closed_form(coupling):
            log_density(density_for(coupling, self.images), noise, take(self.images, rows))

    @property
    def labels(self) -> Tensor | None:
        """``[N]`` of the condition ``label``, which laws and means by label go by."""
        labels = (self.images.cond or {}).get("label")
        usable = labels is not None and is_label(labels) and int(labels.max()) < LARGEST_LABEL
        return labels if usable else None

    @cached_property
    def moments(self) -> Moments:
        """Of some ten thousand data, as a training run fits them."""
        return Moments.fit(self._batches(0))

    @property
    def reported(self) -> Moments:
        """With the leading directions alone that the noise is reported along."""
        found = self.moments
        assert found.directions is not None
        assert found.spectrum is not None
        axes, spectrum = found.directions[:REPORTED], found.spectrum[:REPORTED]
        return dataclasses.replace(found, directions=axes, spectrum=spectrum)

    def law(self, coupling: Coupling) -> NoiseDistribution:
        """Of the noise of ``coupling``, as a training run measures it."""
        count = min(len(self.images), MOMENTS_DATA)
        passes = min(LAW_PASSES, -(-LAW_NOISES // count))
        return NoiseDistribution.measure(
            coupling,
            (batch for number in range(passes) for batch in self._batches(number)),
            self.moments,
            by_label=self.by_label and self.labels is not None,
            generator=keyed_generator(self.seed, "law", device=self.images.data.device),
        )

    def _batches(self, number: int) -> Iterator[Any]:
        """A pass over some ten thousand data, with labels where there are any; no cut ones."""
        generator = keyed_generator(self.seed, number, "moments")
        valid = valid_positions(self.images.mask, self.images.data)
        every = torch.arange(len(self.images))
        whole = every if valid is None else every[valid.flatten(1).all(dim=1).cpu()]
        whole = whole if len(whole) > 1 else every
        order = whole[torch.randperm(len(whole), generator=generator)][:MOMENTS_DATA]
        for rows in order.split(self.batch_size):
            data = take(self.images, rows).data
            yield data if self.labels is None else (data, self.labels[rows])


def strength(coupling: Coupling) -> int | None:
    """K of KNN noise selection, calibrated or not; None of other couplings."""
    if isinstance(coupling, Calibrated):
        return strength(coupling.coupling)
    return coupling.k if isinstance(coupling, KNN) else None


def code_of(coupling: Coupling, *, given: bool) -> str:
    """Hash of what ``coupling`` is beside its name; empty of our own made by name.

    Of a user's the source and what it holds; of any that was ``given`` as an object what it holds.
    """
    inner = coupling
    while _ours(inner) and hasattr(inner, "coupling"):
        inner = inner.coupling
    if _ours(inner):
        return content_of(coupling) if given else ""
    return digest(_source_of(inner), content_of(coupling if given else inner))


def _ours(coupling: Coupling) -> bool:
    return type(coupling).__module__.startswith("immiscible_diffusion.")


def _source_of(coupling: Coupling) -> str:
    try:
        return inspect.getsource(inspect.getmodule(type(coupling)) or type(coupling))
    except (OSError, TypeError):  # made in a console: nothing to look at
        return ""
