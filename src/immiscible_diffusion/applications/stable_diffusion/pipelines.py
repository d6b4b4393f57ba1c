"""Images of a public checkpoint, made by diffusers' own pipeline: they calibrate the judge."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.utils.optional_deps import require_extra
from immiscible_diffusion.utils.random import key


def load_checkpoint(name: str, shape: tuple[int, ...], device: torch.device | str) -> Any:
    """The pipeline of an unconditional DDPM, sampled by DDIM, from the hub or a local folder.

    Args:
        name: on the hub, such as ``google/ddpm-cifar10-32``, or a folder.
        shape: (C, H, W) of the data it is judged against.
        device: where it runs.

    Raises:
        MissingDependencyError: diffusers is not installed.
        ValueError: it is not there, is no such pipeline, or makes images of another shape.
    """
    with require_extra("train", "a public checkpoint"):
        from diffusers import DDIMPipeline
    try:
        pipeline = DDIMPipeline.from_pretrained(name, use_safetensors=True)
        size, channels = pipeline.unet.config["sample_size"], pipeline.unet.config["in_channels"]
    except (OSError, ValueError, KeyError, AttributeError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{name} cannot be loaded as an unconditional diffusion model ({reason}); give the "
            "name of one on the hub where there is a network, or the folder of a copy"
        ) from error
    made = (channels, *(size if isinstance(size, (tuple, list)) else (size, size)))
    if made != tuple(shape):
        raise ValueError(f"{name} makes images of {made}; the data of the run are {tuple(shape)}")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def checkpoint_images(
    pipeline: Any, count: int, *, steps: int, seed: int, batch_size: int
) -> Iterator[Tensor]:
    """Batches [b, C, H, W] in [-1, 1] of ``count`` images; image i follows (seed, i)."""
    for start in range(0, count, batch_size):
        rows = range(start, min(start + batch_size, count))
        generators = [torch.Generator().manual_seed(key(seed, "checkpoint", row)) for row in rows]
        made = pipeline(
            batch_size=len(rows),
            generator=generators,
            num_inference_steps=steps,
            eta=0.0,
            output_type="np",
        )
        yield torch.from_numpy(made.images).permute(0, 3, 1, 2) * 2 - 1
