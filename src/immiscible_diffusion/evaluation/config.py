"""How generated images are scored."""

from dataclasses import dataclass, replace
from typing import Literal

from immiscible_diffusion.training.task import EvalConfig


@dataclass(frozen=True)
class ImageEvalConfig(EvalConfig):
    """When and how images are scored.

    Args:
        sampling_steps: numbers of steps of the recipe's sampler.
        num: how many training steps, spaced evenly in their logarithm.
        start: the first of them, as a fraction of all steps.
        steps: the training steps themselves, instead of ``num`` and ``start``.
        features: feature space: ``classifier``, ``pixels``, or of a pretrained network
            ``efficientnet``, ``inception`` (FID) or ``dinov2`` (FD-DINOv2); docs/evaluate.md.
        samples: images generated for every score.
    """

    features: Literal["classifier", "pixels", "efficientnet", "inception", "dinov2"] = "classifier"
    samples: int = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 2:
            raise ValueError(f"eval.samples must be at least 2, got {self.samples}")

    def tiny(self) -> "ImageEvalConfig":
        """Shrink to a smoke run."""
        return replace(self, samples=128, sampling_steps=(1, 2), num=2, start=0.5, steps=())
