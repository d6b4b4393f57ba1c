"""Accuracy on the labels asked for, PSNR of in-painting, and a sheet to look at."""

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from examples.tiny_stable_diffusion.evaluate import LabelClassifier, center_mask, inpainting_psnr
from immiscible_diffusion.data.folder_of_samples import SampleFolder
from immiscible_diffusion.utils.images import image_grid

SAMPLING_STEPS = 20


def label_accuracy(classifier: LabelClassifier, folder: Path) -> dict[str, Any]:
    """The classifier's accuracy on the images of ``folder``, and by class."""
    images = SampleFolder(folder)
    numbers = torch.tensor([place.number for place in images.places])
    labels = numbers % classifier.num_classes
    samples = torch.cat(list(images.in_batches()))
    right = classifier.correct(samples, labels).double()
    return {
        "accuracy": float(right.mean()),
        "error": float(right.std() / len(right) ** 0.5),
        "by_class": classifier.accuracy_by_class(samples, labels),
        "images": len(samples),
    }


def labeled_grid(arguments: argparse.Namespace, names: tuple[str, ...], runs: Sequence[str]) -> None:
    """The first images of every class and run, with names: labels.png."""
    import matplotlib.pyplot as plt

    runs = [run for run in runs if (arguments.out / f"images-{run}").is_dir()]
    figure, axes = plt.subplots(len(names), len(runs), figsize=(3.4 * len(runs), 0.42 * len(names)))
    for column, run in enumerate(runs):
        samples = torch.cat(list(SampleFolder(arguments.out / f"images-{run}").in_batches()))
        for label, name in enumerate(names):
            one = axes[label][column]
            one.imshow(image_grid(samples[label :: len(names)][:8], 8))
            one.set(xticks=[], yticks=[], title=run if label == 0 else "")
            if column == 0:
                one.set_ylabel(name, rotation=0, ha="right", va="center")
    figure.tight_layout(pad=0.3)
    figure.savefig(arguments.out / "labels.png", dpi=150)
    plt.close(figure)


def inpainting_scores(arguments: argparse.Namespace, held: Any, count: int = 64) -> dict[str, float]:
    """In-painting by diffusers' own pipeline from the run folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import StableDiffusionInpaintPipeline
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(arguments.out / "inpaint")
    pipeline.set_progress_bar_config(disable=True)
    batch = held.batch(torch.arange(max(4, round(count * min(1, arguments.scale * 4)))))
    words = [held.class_names[label] for label in batch.cond["label"].tolist()]
    mask = center_mask(len(batch), batch.data.shape[-1], pipeline.vae_scale_factor)

    def inpaint(images: torch.Tensor, masks: torch.Tensor, draw: int) -> torch.Tensor:
        samples = pipeline(
            words[: len(images)],
            image=images / 2 + 0.5,
            mask_image=masks,
            height=images.shape[2],
            width=images.shape[3],
            num_inference_steps=SAMPLING_STEPS,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(draw),
            output_type="pt",
        ).images
        return samples.float() * 2 - 1

    with torch.no_grad():
        scores = inpainting_psnr(inpaint, batch.data, mask)
        shown = torch.cat([batch.data[:8], (batch.data * (1 - mask))[:8]])
        drawn = [inpaint(batch.data[:8] * (1 - mask[:8]), mask[:8], draw) for draw in (0, 1)]
    image_grid(torch.cat([shown, *drawn]), 8).save(arguments.out / "inpainting.png")
    return scores
