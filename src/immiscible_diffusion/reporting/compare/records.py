"""What one training of a comparison measured: its quality, losses and pictures."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from immiscible_diffusion.metrics.evaluate import METRICS
from immiscible_diffusion.reporting.decode import OPTIONAL


@dataclass(frozen=True)
class SampleMetrics:
    """Quality of the samples at one training step and one sampling budget; None = not measured.

    ``value`` is the figure that the comparison is about, lower is better: the Frechet distance of
    images, or ``action_error``, the mean squared error of a policy's actions, with ``score`` and
    ``success``, the shares in [0, 1] of its episodes.
    """

    step: int
    budget: int
    nfe: int | None = None
    frechet: float | None = None
    kid: float | None = None
    kid_error: float | None = None
    precision: float | None = None
    recall: float | None = None
    density: float | None = None
    coverage: float | None = None
    memorisation: float | None = None
    action_error: float | None = field(default=None, metadata=OPTIONAL)
    score: float | None = field(default=None, metadata=OPTIONAL)
    success: float | None = field(default=None, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        if self.step < 1 or self.budget < 1:
            raise ValueError(
                f"quality at step {self.step}, budget {self.budget}: expected both >= 1 "
                "(an untrained network has no place on a logarithmic axis of steps)"
            )
        for name in (*METRICS, "kid_error", "action_error", "score", "success"):
            value = getattr(self, name)
            low = 0 if name in ("frechet", "action_error") else -math.inf
            if value is not None and not (low <= value and math.isfinite(value)):
                raise ValueError(
                    f"{name} is {value} at step {self.step}, budget {self.budget}; expected a "
                    "finite number, a Frechet distance or error >= 0, or None where not measured"
                )

    @property
    def value(self) -> float | None:
        """The figure that the comparison is about; None if it was not measured."""
        return self.action_error if self.frechet is None else self.frechet


@dataclass(frozen=True)
class LossPoint:
    """A mean loss at one training step; None where it was not finite."""

    step: int
    loss: float | None

    def __post_init__(self) -> None:
        if self.loss is not None and not math.isfinite(self.loss):
            raise ValueError(f"loss is {self.loss} at step {self.step}; expected finite or None")


@dataclass(frozen=True)
class ExcessPoint:
    """Loss of the averaged weights by noise level at one step, not weighted, on fresh paired noise.

    ``excess`` is the loss less that of the optimal denoiser on the same noisy images, ``error`` its
    standard error, ``mean`` its mean over t.
    """

    step: int
    loss: tuple[float, ...]
    excess: tuple[float, ...]
    error: tuple[float, ...]
    mean: float
    mean_error: float


@dataclass(frozen=True)
class Trial:
    """One training run: a coupling and a seed.

    ``validation`` is the loss on fixed independent noise and times, ``training`` the loss on the
    paired noise; ``grids`` maps a step, as text, to a PNG path relative to results.json, made from
    the same start noise for every coupling, ``strip`` a PNG of images on their way from noise to
    data. ``pairing_ms`` is what pairing takes per step, in whatever thread; ``pairing_share``
    [0, 1] the share of the step that waits for it.
    """

    coupling: str
    seed: int
    quality: tuple[SampleMetrics, ...] = ()
    seconds_per_step: float | None = None
    pairing_share: float | None = None
    pairing_ms: float | None = None
    validation: tuple[LossPoint, ...] = ()
    training: tuple[LossPoint, ...] = ()
    grids: Mapping[str, str] | None = None
    finished: bool = False
    excess: tuple[ExcessPoint, ...] = field(default=(), metadata=OPTIONAL)
    strip: str | None = field(default=None, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        where = f"cell {self.coupling!r}, seed {self.seed}"
        refuse_repeats(f"{where}: quality", [(q.step, q.budget) for q in self.quality])
        if self.seconds_per_step is not None and self.seconds_per_step <= 0:
            raise ValueError(f"{where}: seconds_per_step is {self.seconds_per_step}; expected > 0")
        if self.pairing_share is not None and not 0 <= self.pairing_share <= 1:
            raise ValueError(f"{where}: pairing_share is {self.pairing_share}; expected 0 to 1")
        for step, path in (self.grids or {}).items():
            if not step.isdigit():
                raise ValueError(f"{where}: grid key is {step!r}; expected a training step")
            _refuse_outside(f"{where}: grid", path)
        if self.strip is not None:
            _refuse_outside(f"{where}: strip", self.strip)


def refuse_repeats(what: str, keys: list[Any]) -> None:
    """ValueError if one of ``keys`` is there twice."""
    repeated = sorted({key for key in keys if keys.count(key) > 1})
    if repeated:
        raise ValueError(f"{what} has {repeated[0]!r} more than once; expected each once")


def _refuse_outside(what: str, path: str) -> None:
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError(
            f"{what} path is {path!r}; expected a path inside the folder of results.json, "
            "relative to it"
        )
