"""What an analysis would take, from a small piece of it: shown before the whole is started."""

import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from immiscible_diffusion.analysis.density_estimation import FIT_PAIRS, fit_density
from immiscible_diffusion.analysis.miscibility import BLOCK_PAIRS, miscibility
from immiscible_diffusion.analysis.noise_density import has_closed_form
from immiscible_diffusion.analysis.noise_statistics import FIT_COUNT, measure_noise
from immiscible_diffusion.analysis.run import CouplingAnalysis
from immiscible_diffusion.analysis.sample_pairs import draw_noise

T = TypeVar("T")
FIT_SPEED = 1e10  # multiplications a second of a covariance, about
LABELED = 0.4  # of the work without a condition, what is done given labels: fewer candidates
PAGE = 6.0  # seconds that the page takes, and reading the data, about


def estimate_seconds(analysis: CouplingAnalysis) -> float:
    """Time one block of points at one level, a few pairs and a batch, and scale them up."""
    setup, coupling = analysis.setup, analysis.coupling
    config, images, size = setup.config, setup.images, setup.config.batch_size
    seconds = 0.0
    if has_closed_form(coupling):
        density = analysis.density
    else:
        few = 4 * size
        fit, density = timed(lambda: fit_density(coupling, images, pairs=few, batch_size=size))
        seconds += fit * FIT_PAIRS / few
    options: dict[str, Any] = {"cond": images.cond, "mask": images.mask, "density": density}
    count = min(config.probes, max(2, BLOCK_PAIRS // len(images)))
    levels = config.levels[len(config.levels) // 2 :][:1]
    points: dict[str, Any] = {"path": config.path, "levels": levels, "probes": count}
    block, _ = timed(lambda: miscibility(images.data, coupling, **points, **options))
    shares = [1.0 if one.labels is None else LABELED for one in setup.conditions]
    seconds += block * config.probes * len(config.levels) / count * (1 + sum(shares))
    options |= {"moments": setup.builder.leading_moments, "pairs": count}
    noise = timed(lambda: measure_noise(images.data, coupling, **options))[0] * config.pairs / count
    seconds += noise
    if setup.labels is not None:
        rows = torch.arange(min(size, len(images)))
        batch, _ = timed(lambda: draw_noise(coupling, images, rows, seed=0, batch_size=size))
        seconds += noise + batch * batches_by_label(analysis)
    if config.gaussian_fit:
        seconds += FIT_COUNT * images.data[0].numel() ** 2 / FIT_SPEED
    return seconds


def batches_by_label(analysis: CouplingAnalysis) -> int:
    """Calls of the coupling for the noise of every label by itself.

    Where the rest of a batch may matter a label has only its share of every batch.
    """
    labels, config = analysis.setup.labels, analysis.setup.config
    if labels is None:
        return 0
    shares = labels.unique(return_counts=True)[1] / len(labels)
    if has_closed_form(analysis.coupling):
        shares = torch.ones_like(shares)
    own = (shares * config.batch_size).round().clamp_min(1)
    return int((config.pairs / own).ceil().sum())


def timed(make: Callable[[], T]) -> tuple[float, T]:
    """Seconds that ``make`` took, and its result."""
    start = time.monotonic()
    result = make()
    return time.monotonic() - start, result


def peak_memory() -> float:
    """Most bytes that this process has held; 0 where the system does not say."""
    if sys.platform == "win32":
        return 0.0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit
