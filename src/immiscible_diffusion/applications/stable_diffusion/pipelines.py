"""Images of published pipelines, sampled by diffusers itself."""

import hashlib
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.applications.stable_diffusion.load_pipeline import missing
from immiscible_diffusion.metrics.features.preprocess import weights_digest
from immiscible_diffusion.utils.optional_deps import require_extra
from immiscible_diffusion.utils.random import keyed_generator

WEIGHTS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2")


def load_pipeline(source: str, device: torch.device, dtype: torch.dtype, *, text: bool) -> Any:
    """Load a pipeline by its folder or hub name, quiet and without a safety checker.

    It is a text-to-image pipeline with ``text``; else an unconditional diffusion model, such as
    google/ddpm-cifar10-32, which is sampled by DDIM.

    Raises:
        ValueError: it is not there (says what to download), or of the other kind.
    """
    with require_extra("train", "sampling a pipeline"):
        from diffusers import DDIMPipeline, DiffusionPipeline
    try:
        with warnings.catch_warnings():
            # torch_dtype is an older name of dtype, which older releases do not know.
            warnings.simplefilter("ignore", FutureWarning)
            pipeline = DiffusionPipeline.from_pretrained(source, torch_dtype=dtype)
    except (OSError, ValueError) as error:
        raise missing(source, error) from error
    if hasattr(pipeline, "tokenizer") != text:
        raise ValueError(
            f"{source} is a {type(pipeline).__name__}; a text-to-image pipeline needs --classes "
            f"FILE, --prompts FILE or --prompt TEXT, and others take none"
        )
    if not text:
        pipeline = DDIMPipeline(pipeline.unet, pipeline.scheduler)
    elif getattr(pipeline, "safety_checker", None) is not None:
        pipeline.safety_checker = None  # it would black out images, which no metric should see
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def sample_pipeline(
    pipeline: Any, prompts: Sequence[str], seed: int, indices: Sequence[int], **settings: Any
) -> Tensor:
    """Sample the images ``indices`` of a pipeline, ``[b, C, H, W]`` in [-1, 1].

    Image i starts from noise keyed by (seed, i), and is of prompt i mod their number if there are
    any. ``settings`` are passed on, such as ``num_inference_steps`` and ``guidance_scale``.
    """
    if prompts:
        settings["prompt"] = [prompts[index % len(prompts)] for index in indices]
    else:
        settings["batch_size"] = len(indices)
    generators = [keyed_generator(seed, index, "sample") for index in indices]
    images = pipeline(generator=generators, output_type="np", **settings).images
    return torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1


def pipeline_digests(pipeline: Any) -> dict[str, str]:
    """Hash all that decides the images of a pipeline: its networks and its scheduler."""
    parts = {name: getattr(pipeline, name, None) for name in WEIGHTS}
    digests = {name: weights_digest(part) for name, part in parts.items() if part is not None}
    scheduler = "\n".join(f"{k}={v}" for k, v in sorted(pipeline.scheduler.config.items()))
    return {**digests, "scheduler": hashlib.sha256(scheduler.encode()).hexdigest()[:16]}
