"""How generated images are scored."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from immiscible_diffusion.training.task import EvalConfig


@dataclass(frozen=True)
class ImageEvalConfig(EvalConfig):
    """When and how images are scored."""

    # feature space: ``classifier``, ``pixels``, or of a pretrained network ``efficientnet``, ``inception`` (FID) or
    # ``dinov2`` (FD-DINOv2); docs/evaluate.md
    features: Literal["classifier", "pixels", "efficientnet", "inception", "dinov2"] = "classifier"
    pixels: bool = False  # also the Frechet distance of the pixels
    samples: Annotated[int, ">= 2"] = 10_000  # images generated for every score
    # statistics of real data to compare with instead of the data set: .npz with ``mu`` and ``sigma``, as clean-fid and
    # pytorch-fid keep them; the Frechet distance alone can be had so
    reference: str | None = None

    def tiny(self) -> "ImageEvalConfig":
        """Shrink to a smoke run."""
        return replace(self, samples=256 if self.pixels else 128, sampling_steps=(1, 2), num=2, start=0.5, steps=())
