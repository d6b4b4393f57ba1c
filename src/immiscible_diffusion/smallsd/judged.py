"""Whether pictures show what was asked for: a classifier that never saw the pipeline."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.data.load import DataConfig, load_images
from immiscible_diffusion.evaluation.images import EVAL_SEED
from immiscible_diffusion.metrics.features.classifier import trained_classifier
from immiscible_diffusion.metrics.reference_cache import cache_folder
from immiscible_diffusion.smallsd.latents import BATCH, reconstructions


@dataclass(frozen=True)
class LabelJudge:
    """A classifier of real pictures.

    Attributes:
        network: pictures ``[B, C, H, W]`` in [-1, 1] to class scores.
        accuracy: on real pictures held out from its training.
        data: what it was trained on.
    """

    network: nn.Module
    accuracy: float
    data: DataSet

    @torch.no_grad()
    def right(self, pictures: Tensor, labels: Tensor) -> Tensor:
        """Which of ``pictures`` it gives their label, ``[B]`` bool."""
        parts = [self.network(part.clamp(-1, 1)).argmax(1) for part in pictures.split(BATCH)]
        return torch.cat(parts) == labels

    def by_class(self, pictures: Tensor, labels: Tensor) -> list[float | None]:
        """Its accuracy on each class; None where there is no picture."""
        right, count = self.right(pictures, labels), self.data.num_classes or 0
        found = [right[labels == label].double() for label in range(count)]
        return [float(part.mean()) if len(part) else None for part in found]

    def on_reconstructions(self, vae: Any, held: DataSet, rows: Tensor) -> dict[str, Any]:
        """Its accuracy on held-out pictures, real and after the VAE."""
        batches = [held.batch(part) for part in rows.split(BATCH)]
        labels = torch.cat([batch.cond["label"] for batch in batches if batch.cond])
        real = torch.cat([batch.data for batch in batches])
        made = torch.cat([pair[1] for pair in reconstructions(vae, held, rows)])
        return {
            "real": float(self.right(real, labels).double().mean()),
            "reconstructions": float(self.right(made, labels).double().mean()),
            "pictures": len(labels),
            "chance": 1 / max(1, self.data.num_classes or 1),
        }


def judge_of(config: DataConfig) -> LabelJudge:
    """The library's classifier of the data that ``config`` names; see ``judge_on``."""
    return judge_on(load_images(dataclasses.replace(config, flip=False)))


def judge_on(data: DataSet) -> LabelJudge:
    """The library's classifier of ``data``, trained once on real pictures and cached.

    Raises:
        ValueError: the data set has no labels.
    """
    if data.num_classes is None:
        raise ValueError(f"{data.name} is without labels; a classifier cannot judge it")
    network, accuracy = trained_classifier(data, seed=EVAL_SEED, device="cpu", cache=cache_folder())
    return LabelJudge(network, accuracy, data)
