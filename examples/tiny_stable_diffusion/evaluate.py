"""Scores: reconstructions and latents of a VAE, labels of generated images, in-painting."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.evaluation.evaluator import EVAL_SEED
from immiscible_diffusion.metrics.features.classifier import trained_classifier
from immiscible_diffusion.metrics.reference_cache import cache_folder

BATCH = 128


def psnr(squared_error: float) -> float:
    """``10 log10(4 / mse)``, in dB, of images in [-1, 1]."""
    if squared_error < 0:
        raise ValueError(f"a mean squared error must not be negative, got {squared_error}")
    return 10 * math.log10(4 / squared_error) if squared_error else math.inf


@torch.no_grad()
def reconstructions(vae: Any, images: DataSet, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of images and of the decoded modes of their latents, in [-1, 1]."""
    for part in rows.split(BATCH):
        batch = images.batch(part).data
        yield batch, vae.decode(vae.encode(batch).latent_dist.mode()).sample.clamp(-1, 1)


def reconstruction_psnr(vae: Any, images: DataSet, rows: Tensor) -> float:
    """PSNR in dB of the mean squared error over all ``rows``.

    At most the mean of the images' own ratios, which a few easy images can raise.
    """
    total = sum(
        float((output - real).pow(2).flatten(1).mean(1).double().sum())
        for real, output in reconstructions(vae, images, rows)
    )
    return psnr(total / len(rows))


@torch.no_grad()
def latent_statistics(vae: Any, images: DataSet, rows: Tensor) -> dict[str, list[float]]:
    """Statistics of the latents of ``rows``, a number per channel.

    Returns:
        ``mean`` and ``std`` of sampled latents; ``noise``: the standard deviation that the encoder
        adds, as a fraction of ``std``; of the posterior's modes the excess ``kurtosis`` and the
        correlation of horizontal and vertical ``neighbors`` (0 is white).
    """
    posteriors = [vae.encode(images.batch(part).data).latent_dist for part in rows.split(BATCH)]
    modes = torch.cat([posterior.mode() for posterior in posteriors]).double()
    variance = torch.cat([posterior.var for posterior in posteriors]).double()
    noise = variance.mean((0, 2, 3))
    mean = modes.mean((0, 2, 3))
    centered = modes - mean.view(1, -1, 1, 1)
    spread = centered.pow(2).mean((0, 2, 3))
    std = (spread + noise).sqrt()
    products = [
        (z[..., 1:] * z[..., :-1]).mean((0, 2, 3)) if z.shape[-1] > 1 else torch.zeros_like(mean)
        for z in (centered, centered.transpose(-1, -2))
    ]
    return {
        "mean": mean.tolist(),
        "std": std.tolist(),
        "noise": (noise.sqrt() / std).tolist(),
        "kurtosis": (centered.pow(4).mean((0, 2, 3)) / spread.pow(2) - 3).tolist(),
        "neighbors": (sum(products) / (2 * spread)).tolist(),
    }


@dataclass(frozen=True)
class LabelClassifier:
    """A classifier of real images, which never saw the pipeline.

    Attributes:
        network: images ``[B, C, H, W]`` in [-1, 1] to class scores.
        accuracy: on real images held out from its training.
        num_classes: number of classes.
    """

    network: nn.Module
    accuracy: float
    num_classes: int

    @torch.no_grad()
    def correct(self, images: Tensor, labels: Tensor) -> Tensor:
        """Which of ``images`` it assigns to their label, ``[B]`` bool."""
        parts = [self.network(part.clamp(-1, 1)).argmax(1) for part in images.split(BATCH)]
        return torch.cat(parts) == labels

    def accuracy_by_class(self, images: Tensor, labels: Tensor) -> list[float | None]:
        """Its accuracy on each class; None for a class without images."""
        correct = self.correct(images, labels).double()
        parts = [correct[labels == label] for label in range(self.num_classes)]
        return [float(part.mean()) if len(part) else None for part in parts]

    def evaluate_vae(self, vae: Any, images: DataSet, rows: Tensor) -> dict[str, float]:
        """Its accuracy on held-out images, real and reconstructed."""
        labels = torch.cat([(images.batch(part).cond or {})["label"] for part in rows.split(BATCH)])
        pairs = reconstructions(vae, images, rows)
        real, output = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        return {
            "real": float(self.correct(real, labels).double().mean()),
            "reconstructions": float(self.correct(output, labels).double().mean()),
            "images": len(labels),
            "chance": 1 / self.num_classes,
        }


def label_classifier(data: DataSet) -> LabelClassifier:
    """The library's classifier of ``data``, trained once and cached; ValueError without labels."""
    if data.num_classes is None:
        raise ValueError(f"{data.name} has no labels to train a classifier with")
    network, accuracy = trained_classifier(data, seed=EVAL_SEED, device="cpu", cache=cache_folder())
    return LabelClassifier(network, accuracy, data.num_classes)


def center_mask(count: int, side: int, step: int) -> Tensor:
    """A centered square of half the side, 1 where hidden: ``[count, 1, side, side]``.

    ``step`` is the number of pixels per latent, to whose grid the square is aligned.
    """
    width = max(step, side // 2 // step * step)
    start = (side - width) // 2 // step * step
    mask = torch.zeros(count, 1, side, side)
    mask[:, :, start : start + width, start : start + width] = 1
    return mask


def inpainting_psnr(
    inpaint: Callable[[Tensor, Tensor, int], Tensor], images: Tensor, mask: Tensor, draws: int = 16
) -> dict[str, float]:
    """PSNR in dB inside the mask.

    Args:
        inpaint: masked images, mask and the number of the draw to complete images.
        images: ``[B, C, H, W]`` in [-1, 1], held out from training.
        mask: ``[B, 1, H, W]``, 1 where hidden.
        draws: number of independent draws.

    Returns:
        ``mean_of_draws``: of the mean of the draws, which estimates the model's expectation;
        ``one_draw``: of the mean error of single draws (a sharp one loses by half its variance);
        ``image_color`` and ``data_color``: of a fill with the mean color of the image's visible
        part, or of all images; ``draws``.
    """
    if mask.shape != (len(images), 1, *images.shape[2:]):
        expected = [len(images), 1, *images.shape[2:]]
        raise ValueError(f"the mask must be {expected}, got {list(mask.shape)}")

    def error(output: Tensor) -> float:
        inside = (output - images).pow(2).double() * mask
        return float(inside.sum() / (mask.sum() * images.shape[1]))

    visible = 1 - mask
    outputs = [inpaint(images * visible, mask, draw).clamp(-1, 1) for draw in range(draws)]
    color = (images * visible).sum((2, 3), keepdim=True) / visible.sum((2, 3), keepdim=True)
    return {
        "mean_of_draws": psnr(error(torch.stack(outputs).mean(0))),
        "one_draw": psnr(sum(map(error, outputs)) / draws),
        "image_color": psnr(error(color.expand_as(images))),
        "data_color": psnr(error(images.mean((0, 2, 3), keepdim=True).expand_as(images))),
        "draws": draws,
    }
