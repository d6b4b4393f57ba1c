"""Trains and judges the cells of a probe."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor, nn

from immiscible_diffusion.couplings import (
    Coupling,
    Independent,
    NoiseDistribution,
    Shuffled,
    parse_coupling,
)
from immiscible_diffusion.couplings.moments import Moments
from immiscible_diffusion.diffusion.samplers import start_noise
from immiscible_diffusion.experiments.pilot.features import Features
from immiscible_diffusion.experiments.pilot.network import Network
from immiscible_diffusion.experiments.pilot.prepared import Prepared, is_label
from immiscible_diffusion.experiments.pilot.records import Point, Trial
from immiscible_diffusion.experiments.pilot.training import sample, train
from immiscible_diffusion.experiments.pilot.verdict import BASELINE, MATCHED, SHUFFLED
from immiscible_diffusion.metrics import FeatureStatistics, frechet_distance
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.random import RandomStreams

LAW_NOISES = 20_000
KEPT = 32  # samples shown
Watch = Callable[[int], None]
"""Called after every step with the steps done in this cell; may raise to stop."""
Show = Callable[[str, int, Tensor], None]
"""Called with arm, sampling steps and the first samples ``[n, *shape]``."""


@dataclass(frozen=True, eq=False)
class Ground:
    """What the trainings of one seed share.

    Attributes:
        train: rows to train on.
        held: rows held out; sample i is told the conditions of held row i.
        coupling: that is asked about.
        law: of its noise, and of its control's; None where sampling starts from N(0, I) anyway.
        real: features of what is held out.
        start: noise that sampling starts from.
    """

    train: Tensor
    held: Tensor
    coupling: Coupling
    law: NoiseDistribution | None
    real: FeatureStatistics
    start: Tensor


@dataclass(frozen=True, eq=False)
class Bench:
    """Runs single cells.

    Args:
        prepared: the data.
        coupling: name of the coupling that is asked about.
        sampling_steps: numbers of Euler steps to judge at.
        network: that is trained.
        device: where.
        matched: sample from the law of the noise too, where it differs.
    """

    prepared: Prepared
    coupling: str
    sampling_steps: tuple[int, ...]
    network: Network
    device: torch.device
    matched: bool = True

    @property
    def couplings(self) -> tuple[str, ...]:
        """Those that are trained: none, the one asked about, and its control."""
        return (BASELINE, self.coupling, SHUFFLED + self.coupling)

    @cached_property
    def features(self) -> Features:
        """What samples are judged by."""
        return Features.of(self.prepared)

    def ground(self, seed: int) -> Ground:
        """What the trainings of ``seed`` share; made when first asked for."""
        return _ground(self, seed)

    def arms(self, coupling: str, seed: int) -> Iterator[tuple[str, Tensor]]:
        """The arms of one training, each with what its samples start from."""
        ground = self.ground(seed)
        yield coupling, ground.start
        if ground.law is not None and coupling != BASELINE:
            key = self.prepared.label_key
            labels = None if key is None else (self.prepared.batch.cond or {})[key][ground.held]
            yield MATCHED + coupling, ground.law.color(ground.start, labels)

    def cell(
        self,
        coupling: str,
        seed: int,
        steps: int,
        at: tuple[int, ...],
        watch: Watch,
        show: Show | None = None,
    ) -> Trial:
        """Train with ``coupling`` for ``steps``, judging after the steps ``at``."""
        began = time.monotonic()
        points: list[Point] = []

        def after_step(step: int, current: Callable[[], nn.Module]) -> None:
            if step in at:
                points.extend(self.judged(coupling, seed, step, current(), show))
            watch(step)

        ground = self.ground(seed)
        chosen = self.made(coupling, ground)
        train(
            self.prepared,
            ground.train,
            chosen,
            self.network,
            seed=seed,
            steps=steps,
            device=self.device,
            after_step=after_step,
        )
        return Trial(coupling, seed, time.monotonic() - began, tuple(points))

    def made(self, name: str, ground: Ground) -> Coupling:
        """The coupling of that name."""
        if name == BASELINE:
            return Independent()
        return Shuffled(ground.coupling) if name.startswith(SHUFFLED) else ground.coupling

    def judged(
        self, coupling: str, seed: int, step: int, model: nn.Module, show: Show | None = None
    ) -> Iterator[Point]:
        """Distances of what ``model`` makes, for every arm and budget."""
        for arm, start in self.arms(coupling, seed):
            for budget in self.sampling_steps:
                made = self.samples(model, seed, start, budget)
                if show is not None:
                    show(arm, budget, made[:KEPT])
                yield Point(arm, step, budget, self.distance(made, seed))

    def samples(self, model: nn.Module, seed: int, start: Tensor, budget: int) -> Tensor:
        """Samples from ``start`` ``[n, *shape]``, told the first conditions held out."""
        rows = self.ground(seed).held[: len(start)]
        told = self.prepared.told(self.prepared.take(rows))
        return sample(model, start, told, budget, device=self.device)

    def distance(self, made: Tensor, seed: int) -> float:
        """Distance of samples (or noise) ``[held, *shape]`` to what is held out."""
        ground = self.ground(seed)
        if not bool(made.isfinite().all()):
            raise ValueError("samples are not finite; check the data, or --normalize")
        found = FeatureStatistics.of(self.features(made, ground.held))
        return frechet_distance(found, ground.real, allow_few=True)


@lru_cache(maxsize=1)
def _ground(bench: Bench, seed: int) -> Ground:
    prepared = bench.prepared
    train_rows, held = prepared.split(seed)
    batch = prepared.take(train_rows)
    labels = _labels(prepared, batch)
    moments = Moments.fit(batch.data if labels is None else [(batch.data, labels)])

    def law(inner: Coupling) -> NoiseDistribution:
        return _law(bench, seed, train_rows, inner, moments)

    moved = moments.to(bench.device)
    coupling = parse_coupling(
        bench.coupling, moved, lambda inner: law(inner).to(bench.device), allow_import=True
    )
    differs = bench.matched and not coupling.preserves_marginal and batch.mask is None
    start = start_noise(seed, range(len(held)), prepared.shape)
    real = prepared.take(held)
    if real.mask is not None:
        start = start * real.mask
    return Ground(
        train_rows,
        held,
        coupling,
        law(coupling) if differs else None,
        FeatureStatistics.of(bench.features(real.data, held)),
        start,
    )


def _law(
    bench: Bench, seed: int, rows: Tensor, coupling: Coupling, moments: Moments
) -> NoiseDistribution:
    """The law of the noise on the data of one seed, in batches of training's size."""
    prepared, size = bench.prepared, min(bench.network.batch_size, len(rows))
    passes = max(1, -(-LAW_NOISES // len(rows)))

    def batches() -> Iterator[Tensor | tuple[Tensor, Tensor]]:
        for epoch in range(passes):
            order = torch.randperm(len(rows), generator=RandomStreams(seed, epoch).order)
            for part in order[:LAW_NOISES].split(size):
                batch = prepared.take(rows[part])
                labels = _labels(prepared, batch)
                data = batch.data.to(bench.device)
                yield data if labels is None else (data, labels.to(bench.device))

    return NoiseDistribution.measure(
        coupling,
        batches(),
        moments,
        by_label=prepared.label_key is not None,
        label_key=prepared.label_key or "label",
        generator=RandomStreams(seed, device=bench.device).noise,
    )


def _labels(prepared: Prepared, batch: Batch) -> Tensor | None:
    """Labels for moments: those the network is told, or those a coupling may use."""
    labels = (batch.cond or {}).get(prepared.label_key or "label")
    return labels if labels is not None and is_label(labels) else None
