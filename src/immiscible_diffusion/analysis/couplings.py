"""Couplings built for a data set, and tried on it before anything long starts."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.analysis.conditions import is_label
from immiscible_diffusion.analysis.density_estimation import density_for
from immiscible_diffusion.analysis.noise_density import has_closed_form, log_density, take
from immiscible_diffusion.analysis.sample_pairs import draw_noise
from immiscible_diffusion.couplings import KNN, Coupling, NoiseDistribution, as_coupling, parse_coupling
from immiscible_diffusion.couplings._validation import valid_positions
from immiscible_diffusion.couplings.moments import Moments
from immiscible_diffusion.couplings.semidiscrete_plan import SemidiscretePlan, plan_of
from immiscible_diffusion.couplings.wrappers import Calibrated
from immiscible_diffusion.utils.batch import Batch, Cond
from immiscible_diffusion.utils.random import keyed_generator

MOMENTS_SAMPLES = 10_000
DISTRIBUTION_NOISES, DISTRIBUTION_PASSES = 50_000, 50
LARGEST_LABEL = 1000  # means of that many labels are kept
REPORTED_DIRECTIONS = 16


@dataclass(frozen=True, eq=False)
class CouplingBuilder:
    """Builds couplings for ``images``, with moments and noise distributions fitted to them."""

    images: Batch  # all data, their conditions and mask
    batch_size: int  # that couplings are called on
    seed: int  # of what is drawn to measure a noise distribution
    by_label: bool  # noise distributions are measured label by label: the model is given the label

    def build(self, coupling: str | Coupling, *, allow_import: bool = True) -> Coupling:
        """The coupling of that name, or the coupling itself, tried on a batch.

        ``allow_import`` is for a name that the user gave, see ``parse_coupling``.

        Raises:
            ValueError: what is wrong with the name, or why it cannot be analyzed on these data.
        """
        name = str(coupling)
        if isinstance(coupling, str):
            given = (lambda: self.moments, self.measure, self.plan)
            coupling = parse_coupling(coupling, *given, epoch=1, allow_import=allow_import)
        coupling = as_coupling(coupling)
        closed_form = has_closed_form(coupling)
        if self.images.mask is not None and not closed_form:
            raise ValueError(
                f"{name} cannot be analyzed on data with a mask, which the estimate of its density "
                f"does not take; leave out the coupling or the mask"
            )
        rows = torch.arange(min(2, len(self.images)))
        size = min(self.batch_size, len(self.images))
        noise = draw_noise(coupling, self.images, rows, seed=self.seed, batch_size=size)
        shape = self.images.data[rows].shape
        if noise.shape != shape or not bool(noise.isfinite().all()):
            got = f"{tuple(noise.shape)}{'' if noise.shape != shape else ', not all of it finite'}"
            raise ValueError(f"{name} must give finite noise {tuple(shape)}, got {got}")
        if closed_form:
            log_density(density_for(coupling, self.images), noise, take(self.images, rows))
        return coupling

    @property
    def labels(self) -> Tensor | None:
        """``[N]`` of the condition ``label``, for means and noise distributions by label."""
        labels = (self.images.cond or {}).get("label")
        usable = labels is not None and is_label(labels) and int(labels.max()) < LARGEST_LABEL
        return labels if usable else None

    @cached_property
    def moments(self) -> Moments:
        """Of some ten thousand samples, as a training run fits them."""
        return Moments.fit(self._batches(0))

    @property
    def leading_moments(self) -> Moments:
        """With only the leading directions, along which the noise is reported."""
        count, axes, spectrum = REPORTED_DIRECTIONS, self.moments.directions, self.moments.spectrum
        assert axes is not None
        assert spectrum is not None
        return dataclasses.replace(self.moments, directions=axes[:count], spectrum=spectrum[:count])

    def plan(self, within: bool, **options: Any) -> SemidiscretePlan:
        """Of all samples, within each label if asked for."""
        data = take(self.images, slice(0, None)).data
        return plan_of(data, self.labels, self.moments, within, seed=self.seed, **options)

    def measure(self, coupling: Coupling) -> NoiseDistribution:
        """The noise distribution of ``coupling``, as a training run measures it."""
        count = min(len(self.images), MOMENTS_SAMPLES)
        passes = min(DISTRIBUTION_PASSES, -(-DISTRIBUTION_NOISES // count))
        return NoiseDistribution.measure(
            coupling,
            (batch for number in range(passes) for batch in self._batches(number)),
            self.moments,
            by_label=self.by_label and self.labels is not None,
            generator=keyed_generator(self.seed, "law", device=self.images.data.device),
        )

    def _batches(self, number: int) -> Iterator[tuple[Tensor, Cond]]:
        """A pass over some ten thousand samples that no mask cuts, with labels if there are any, and index."""
        generator = keyed_generator(self.seed, number, "moments")
        rows = torch.arange(len(self.images))
        valid = valid_positions(self.images.mask, self.images.data)
        if valid is not None and int((uncut := valid.flatten(1).all(dim=1).cpu()).sum()) > 1:
            rows = rows[uncut]
        order = rows[torch.randperm(len(rows), generator=generator)][:MOMENTS_SAMPLES]
        for chunk in order.split(self.batch_size):
            labels = {} if self.labels is None else {"label": self.labels[chunk]}
            yield take(self.images, chunk).data, {"index": chunk, **labels}


def candidates_of(coupling: Coupling) -> int | None:
    """K of KNN noise selection, calibrated or not; None of other couplings."""
    if isinstance(coupling, Calibrated):
        return candidates_of(coupling.coupling)
    return coupling.k if isinstance(coupling, KNN) else None
