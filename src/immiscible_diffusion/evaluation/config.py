"""How generated images are scored."""

from dataclasses import dataclass, replace
from typing import Literal

from immiscible_diffusion.training.task import EvalConfig
from immiscible_diffusion.utils.checks import check_bounds


@dataclass(frozen=True)
class ImageEvalConfig(EvalConfig):
    """When and how images are scored."""

    # feature space: ``classifier``, ``pixels``, or of a pretrained network ``efficientnet``, ``inception`` (FID) or
    # ``dinov2`` (FD-DINOv2); docs/evaluate.md
    features: Literal["classifier", "pixels", "efficientnet", "inception", "dinov2"] = "classifier"
    pixels: bool = False  # also the Frechet distance of the pixels
    samples: int = 10_000  # images generated for every score

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds(self, "eval.", samples=">= 2")

    def tiny(self) -> "ImageEvalConfig":
        """Shrink to a smoke run."""
        return replace(self, samples=256 if self.pixels else 128, sampling_steps=(1, 2), num=2, start=0.5, steps=())
