"""Images of published pipelines, sampled by diffusers itself."""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.metrics.features.preprocess import weights_digest
from immiscible_diffusion.utils.optional_deps import require_extra
from immiscible_diffusion.utils.random import key, keyed_generator

WEIGHTS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2")


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


def load_pipeline(source: str, device: torch.device, dtype: torch.dtype) -> Any:
    """A text-to-image pipeline by its folder or hub name, quiet and without a safety checker.

    Raises:
        ValueError: it is not there: says what to download.
    """
    with require_extra("train", "sampling a pipeline"):
        from diffusers import DiffusionPipeline
    try:
        with warnings.catch_warnings():
            # torch_dtype is an older name of dtype, which older releases do not know.
            warnings.simplefilter("ignore", FutureWarning)
            pipeline = DiffusionPipeline.from_pretrained(source, torch_dtype=dtype)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"there is no pipeline at {source} ({reason}); download it where there is a network "
            f"(`hf download {source} --local-dir FOLDER`), and give that folder"
        ) from error
    if getattr(pipeline, "safety_checker", None) is not None:
        pipeline.safety_checker = None  # it would black out images, which no metric should see
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def sample_pipeline(
    pipeline: Any, prompts: Sequence[str], seed: int, indices: Sequence[int], **settings: Any
) -> Tensor:
    """The images ``indices`` of a text-to-image pipeline, ``[b, 3, H, W]`` in [-1, 1].

    Image i is of prompt i mod their number, from noise keyed by (seed, i). ``settings`` are passed
    on, such as ``num_inference_steps`` and ``guidance_scale``.
    """
    images: Tensor = pipeline(
        prompt=[prompts[index % len(prompts)] for index in indices],
        generator=[keyed_generator(seed, index, "sample") for index in indices],
        output_type="pt",
        **settings,
    ).images
    return images.float() * 2 - 1


def pipeline_digests(pipeline: Any) -> dict[str, str]:
    """Hashes of all that decides the images of a pipeline: its networks and its scheduler."""
    parts = {name: getattr(pipeline, name, None) for name in WEIGHTS}
    digests = {name: weights_digest(part) for name, part in parts.items() if part is not None}
    scheduler = "\n".join(f"{k}={v}" for k, v in sorted(pipeline.scheduler.config.items()))
    return {**digests, "scheduler": hashlib.sha256(scheduler.encode()).hexdigest()[:16]}
