"""What an analysis would take, from a small piece of it: shown before the whole is begun."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from immiscible_diffusion.analysis.coupling_analysis import FIT_COUNT, Subject
from immiscible_diffusion.analysis.miscibility import miscibility
from immiscible_diffusion.analysis.nce_density import fit_density
from immiscible_diffusion.analysis.noise_density import PairDensity, has_closed_form
from immiscible_diffusion.analysis.noise_statistics import measure_noise
from immiscible_diffusion.analysis.noisy_points import BLOCK_PAIRS
from immiscible_diffusion.analysis.sample_pairs import draw_noise

T = TypeVar("T")
FIT_PAIRS = 20_000  # what fit_density takes by default
FIT_SPEED = 1e10  # multiplications a second of a covariance, about
PAGE = 6.0  # seconds that the page takes, and reading the data, about


@dataclass(frozen=True)
class Expected:
    """Seconds that a coupling would take, and of what they are the sum."""

    name: str
    seconds: float
    estimate: bool


def rehearse(subject: Subject) -> Expected:
    """Time one block of probes at one level, a few pairs and a batch, and scale them up.

    Pictures are not counted.
    """
    work, settings = subject.work, subject.work.settings
    exact = has_closed_form(subject.coupling)
    fitting, density = (0.0, subject.density) if exact else _fitting(subject)
    count = min(settings.probes, max(2, BLOCK_PAIRS // len(work.images)))
    points = settings.probes * len(settings.levels)
    mixing = points / count * _block(subject, density, count)
    noise = settings.pairs / count * _pairs(subject, density, count)
    seconds = fitting + mixing * (1 + sum(_share(one.labels is None) for one in work.given))
    if work.labels is not None:
        seconds += noise + _batch(subject) * batches_by_label(subject)
    seconds += noise
    if settings.gaussian_fit:
        seconds += FIT_COUNT * work.images.data[0].numel() ** 2 / FIT_SPEED
    return Expected(subject.name, seconds, not exact)


def _fitting(subject: Subject) -> tuple[float, PairDensity]:
    """Seconds that the estimate of the density takes, and one from few pairs."""
    size = subject.work.settings.batch_size
    few, images = 4 * size, subject.work.images
    seconds, density = timed(
        lambda: fit_density(subject.coupling, images, pairs=few, batch_size=size)
    )
    return seconds * FIT_PAIRS / few, density


def _block(subject: Subject, density: PairDensity, count: int) -> float:
    """Seconds of ``count`` probes at one level."""
    images, settings = subject.work.images, subject.work.settings
    level = settings.levels[len(settings.levels) // 2]
    return timed(
        lambda: miscibility(
            images.data,
            subject.coupling,
            path=settings.path,
            levels=(level,),
            probes=count,
            cond=images.cond,
            mask=images.mask,
            density=density,
        )
    )[0]


def _pairs(subject: Subject, density: PairDensity, count: int) -> float:
    """Seconds of ``count`` pairs whose noise is measured."""
    images = subject.work.images
    return timed(
        lambda: measure_noise(
            images.data,
            subject.coupling,
            moments=subject.work.lineup.reported,
            cond=images.cond,
            mask=images.mask,
            pairs=count,
            density=density,
        )
    )[0]


def batches_by_label(subject: Subject) -> int:
    """Calls of the coupling for the noise of every label by itself.

    Where the rest of a batch may matter a label has but its share of every batch.
    """
    labels, settings = subject.work.labels, subject.work.settings
    if labels is None:
        return 0
    shares = labels.unique(return_counts=True)[1] / len(labels)
    if has_closed_form(subject.coupling):
        shares = shares * 0 + 1
    own = (shares * settings.batch_size).round().clamp_min(1)
    return int((settings.pairs / own).ceil().sum())


def _batch(subject: Subject) -> float:
    """Seconds of one call of the coupling."""
    work, size = subject.work, subject.work.settings.batch_size
    rows = torch.arange(min(size, len(work.images)))
    return timed(lambda: draw_noise(subject.coupling, work.images, rows, seed=0, batch_size=size))[
        0
    ]


def _share(whole: bool) -> float:
    """Of the work without a condition, what is done given one: labels leave fewer images."""
    return 1.0 if whole else 0.4


def timed(make: Callable[[], T]) -> tuple[float, T]:
    """Seconds that ``make`` took, and what it made."""
    start = time.monotonic()
    made = make()
    return time.monotonic() - start, made


def peak_memory() -> float:
    """Bytes that this process has held at most; 0 where the system does not tell."""
    if sys.platform == "win32":
        return 0.0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit
