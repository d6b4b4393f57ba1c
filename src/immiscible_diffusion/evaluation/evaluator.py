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
    """Scores of one network with one sampler: JSON values by name.

    ``images`` are a few samples to look at, ``[N, C, H, W]`` in [-1, 1], or None.
    """

    scores: Mapping[str, Any]
    images: Tensor | None = None


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

        ``step`` training steps are behind the model, which is ``final`` after the last one; ``headline`` is whether
        the pipeline takes the recipe's own number of sampling steps. Slow metrics may be left to those. More than
        scores may be kept in ``run_dir``.
        """

    def calibrate(self, metrics: Sequence[str]) -> dict[str, Any]:
        """Score real data against real data, and pure noise: the best and the worst values.

        ValueError if there is no such scale.
        """

    def evaluate_run(self, run: Run, *, seed: int, batch_size: int, metrics: Sequence[str]) -> dict[str, Any]:
        """Return all that ``immiscible evaluate RUN`` says of a run's model; JSON values."""

    def summary(self, runs: Mapping[str, Mapping[int, RunDir]], folder: Path, step: int) -> dict[str, Any]:
        """Return what a comparison's report says of the evaluation besides the curves of scores.

        ``runs`` are run folders by coupling and seed, ``folder`` is that of the comparison, where images may be
        written, ``step`` the last training step.
        """
