"""The part of a recipe that belongs to text-to-image diffusion."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch

from immiscible_diffusion.applications.stable_diffusion.codec import LatentCodec
from immiscible_diffusion.applications.stable_diffusion.inpainting import Inpainting
from immiscible_diffusion.applications.stable_diffusion.latent_cache import LatentSet, vae_digest
from immiscible_diffusion.applications.stable_diffusion.load_pipeline import (
    PretrainedPipeline,
    frozen,
    frozen_dtype,
    silence_hf_logging,
)
from immiscible_diffusion.applications.stable_diffusion.unet import StableDiffusionUNet
from immiscible_diffusion.data import DataConfig, DataSet, load_images
from immiscible_diffusion.data.aspect_buckets import Buckets
from immiscible_diffusion.data.captions import Captions
from immiscible_diffusion.diffusion.paths import EDMPath
from immiscible_diffusion.evaluation.config import ImageEvalConfig
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.task import Task, TaskConfig
from immiscible_diffusion.utils.checks import PositiveInt, check_fields


@dataclass(frozen=True)
class StableDiffusionCodec:
    """The frozen VAE, tokenizer and text encoder of a pipeline."""

    # a folder written by save_pretrained, or a name on the hub, or name@revision for a commit of it
    pretrained: str | None = None
    batch_size: PositiveInt = 16  # images in the VAE at a time

    def __post_init__(self) -> None:
        check_fields(self, "codec.")

    def load(
        self,
        device: torch.device | str = "cpu",
        precision: str = "no",
        *,
        passthrough: bool = False,
        inpainting: Inpainting | None = None,
    ) -> LatentCodec:
        """Load the parts, in half precision if ``precision`` is fp16 or bf16.

        With ``passthrough`` for data that are latents already, with the hash of the VAE they must
        be of (before it is cast). ValueError says what to do if the pipeline is absent.
        """
        with silence_hf_logging():
            pipeline = PretrainedPipeline.open(self.pretrained)
            vae = frozen(pipeline.load("vae", torch_dtype=torch.float32))
            vae_hash = vae_digest(vae) if passthrough else None
            texts, dtype = tuple(pipeline.load_texts()), frozen_dtype(precision)
            for text in texts:
                text.encoder.to(device, dtype)
            # SDXL's first VAE overflows in float16, as its configuration says.
            if dtype == torch.float16 and len(texts) > 1:
                dtype = torch.float32 if getattr(vae.config, "force_upcast", False) else dtype
            options = inpainting, passthrough, vae_hash
            zero_uncond = bool(pipeline.index.get("force_zeros_for_empty_prompt", False))
            vae = vae.to(device, dtype)
            return LatentCodec(vae, texts, self.batch_size, *options, zero_uncond=zero_uncond)


@dataclass(frozen=True)
class TextToImage(TaskConfig):
    """Images from text, in the latent space of a VAE."""

    data: DataConfig = field(default_factory=DataConfig)  # the images
    # the pipeline whose VAE and text encoder are used, frozen
    codec: StableDiffusionCodec = field(default_factory=StableDiffusionCodec)
    captions: Captions | None = None  # where prompts come from
    buckets: Buckets | None = None  # sizes by aspect ratio; None = all images are cropped to one square
    latents: str | None = None  # a folder written by immiscible encode, read instead of the images
    inpainting: Inpainting | None = None  # hide a part of every image, which the network paints; None = off
    preview_prompts: tuple[str, ...] = ()  # what previews show; by default the classes, or the first captions
    push_to_hub: str | None = None  # owner/name to publish to after the last step
    eval: ImageEvalConfig = field(default_factory=ImageEvalConfig)  # how and when images are scored

    knows_unconditional: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.latents is not None and self.buckets is not None:
            raise ValueError("cached latents cannot be combined with buckets; leave one of them")
        if self.data.stream and (self.buckets or self.latents):
            raise ValueError("a stream has images of one size; leave buckets and latents")

    def build(self, recipe: Recipe, device: torch.device, dataset: DataSet | None = None) -> Task:
        """Load the frozen networks and the data."""
        from immiscible_diffusion.applications.stable_diffusion.task import TextToImageTask

        return TextToImageTask(recipe, device, dataset)

    def tiny(self) -> "TextToImage":
        """Shrink to a smoke run.

        It still needs a pipeline (``codec.pretrained``): the published ones are not small. Data
        that are not on this machine are replaced by digits.
        """
        codec, data = dataclasses.replace(self.codec, pretrained=None), self.data.tiny().at_hand()
        return dataclasses.replace(self, data=data, codec=codec, buckets=None, eval=self.eval.tiny())

    def parts(self) -> dict[str, Callable[[], Any]]:
        """Return the pipeline and the data."""
        data = partial(LatentSet.open, Path(self.latents)) if self.latents else partial(load_images, self.data)
        return {"pipeline": partial(PretrainedPipeline.open, self.codec.pretrained), "data": data}

    def check(self, recipe: Recipe) -> None:
        """Raise ValueError for a recipe that lacks a part of text-to-image diffusion."""
        model, inpainting = recipe.model, self.inpainting
        if not isinstance(model, StableDiffusionUNet) or isinstance(recipe.path, EDMPath):
            raise ValueError(
                f"TextToImage needs a StableDiffusionUNet and no EDMPath, got "
                f"{type(model).__name__} and {type(recipe.path).__name__}"
            )
        own_scale = model.lora is not None or model.inpainting
        if recipe.scaling.std or (recipe.scaling.factor != 1 and own_scale):
            raise ValueError(
                f"latents are standardized by the VAE, and adapters and in-painting need its own scale; leave "
                f"scaling.std, and leave scaling.factor 1 for these, got {recipe.scaling}"
            )
        if model.inpainting != (inpainting is not None) or not recipe.conditional:
            raise ValueError(
                "a text-to-image network is conditional, and model.inpainting goes with task.inpainting; got "
                f"conditional={recipe.conditional}, model.inpainting={model.inpainting} and inpainting={inpainting}"
            )
        masked = inpainting is not None and inpainting.pair_masked_region
        if masked and recipe.sampler.init_noise == "matched":
            raise ValueError(
                "noise paired in the masked region has another distribution for every mask; use "
                "sampler.init_noise normal, or drop inpainting.pair_masked_region"
            )


def task_of(recipe: Recipe) -> TextToImage:
    """Return the task of a text-to-image recipe."""
    assert isinstance(recipe.task, TextToImage)
    return recipe.task


def unet_of(recipe: Recipe) -> StableDiffusionUNet:
    """Return the network of a text-to-image recipe; by default that of the codec's pipeline."""
    model = recipe.model
    assert isinstance(model, StableDiffusionUNet)
    if model.pretrained is not None:
        return model
    return dataclasses.replace(model, pretrained=task_of(recipe).codec.pretrained)
