"""What scores samples; applications implement it and ``compare`` and ``evaluate`` call it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from immiscible_diffusion.diffusion.pipeline import SamplingPipeline
from immiscible_diffusion.training.builders import Run
from immiscible_diffusion.training.run_dir import RunDir

EVAL_SEED = 0
"""Reference data, features and fixed episodes are the same for every seed of a comparison."""


@dataclass(frozen=True)
class EvalResult:
    """Scores of one network with one sampler."""

    scores: Mapping[str, Any]  # by name; JSON values
    images: Tensor | None = None  # a few samples to look at, ``[N, C, H, W]`` in [-1, 1], or None


class Evaluator(Protocol):
    """Scores samples of a network."""

    def check(self) -> str:
        """Say what scores samples; raise, before hours are spent, if something is missing."""

    def __call__(
        self,
        pipeline: SamplingPipeline,
        model: nn.Module,
        *,
        seed: int,
        step: int,
        final: bool = True,
        headline: bool = True,
        run_dir: RunDir | None = None,
    ) -> EvalResult:
        """Score what ``pipeline`` samples with the averaged ``model``, from noise of ``seed``.

        The ``seed`` is of the noise that sampling starts from, ``step`` the training steps behind the model. Slow
        metrics are computed if ``final`` (after the last step) and ``headline`` (at the recipe's own number of
        sampling steps). More than scores may be kept in ``run_dir``.
        """

    def calibrate(self, metrics: Sequence[str]) -> dict[str, Any]:
        """Score real data against real data, and pure noise: the best and worst values; ValueError if not possible."""
        raise ValueError("calibrate is for images scored by a Frechet distance; leave it out")

    def evaluate_run(self, run: Run, *, seed: int, batch_size: int, metrics: Sequence[str]) -> dict[str, Any]:
        """Return all that ``immiscible evaluate RUN`` says of a run's model; JSON values."""

    def summary(self, runs: Mapping[str, Mapping[int, RunDir]], folder: Path, step: int) -> dict[str, Any]:
        """Return what a comparison's report says of the evaluation besides the curves of scores.

        ``runs`` are run folders by coupling and seed, ``folder`` is that of the comparison, where images may be
        written, ``step`` the last training step.
        """
