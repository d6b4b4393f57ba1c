"""Text-to-image diffusion on the latents of a Stable Diffusion pipeline."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from immiscible_diffusion.applications.images.task import ImageTask
from immiscible_diffusion.applications.stable_diffusion.config import task_of, unet_of
from immiscible_diffusion.applications.stable_diffusion.export import check_before, publish, push
from immiscible_diffusion.applications.stable_diffusion.latent_cache import describe_transform, load_latents
from immiscible_diffusion.applications.stable_diffusion.load_pipeline import frozen_dtype
from immiscible_diffusion.applications.stable_diffusion.scores import FewShotEvaluator
from immiscible_diffusion.applications.stable_diffusion.unet import TextUNet
from immiscible_diffusion.couplings import Coupling, MaskedCoupling
from immiscible_diffusion.data import DataSet, load_images
from immiscible_diffusion.data.captions import Captioned, Captions, load_captioned
from immiscible_diffusion.data.prompts import ClassNamePrompts
from immiscible_diffusion.data.streaming import load_stream
from immiscible_diffusion.diffusion.paths import Cond
from immiscible_diffusion.evaluation.config import ImageEvalConfig
from immiscible_diffusion.evaluation.evaluator import Evaluator
from immiscible_diffusion.models.condition_dropout import drop_labels, drop_text
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.training.task import EvalConfig
from immiscible_diffusion.training.validation import validation_config
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.random import RandomStreams, keyed_generator

IMAGES_PER_PROMPT = 4


class TextToImageTask(ImageTask):
    """Latents with the text that describes them."""

    def __init__(self, recipe: Recipe, device: torch.device, dataset: DataSet | None = None) -> None:
        self.config = config = task_of(recipe)
        self.codec = config.codec.load(
            device, recipe.mixed_precision, passthrough=config.latents is not None, inpainting=config.inpainting
        )
        self.max_batch_size = self.codec.max_batch_size
        if config.preview_prompts:
            self.preview_columns = len(config.preview_prompts)
            self.num_preview_images = IMAGES_PER_PROMPT * self.preview_columns
        super().__init__(recipe, device, None if dataset is None else self._with_tokens(dataset))

    # -- data -------------------------------------------------------------------------------------

    def load_data(self, split: str) -> DataSet:
        """Load the images of ``split``, or the cached latents, with their tokens."""
        data, captions = self.config.data, self.config.captions or Captions()
        data, tokenize = data if split == "train" else validation_config(data), self.codec.tokenize
        if data.stream:
            return load_stream(data, captions, tokenize)
        if self.config.latents is None:
            return load_captioned(data, captions, tokenize, self.config.buckets)
        # Images that samples are scored against are the recipe's: latents of another size would go unnoticed.
        expected = {
            "vae": self.codec.vae_hash,
            "transform": describe_transform(data, int(self.codec.vae.config.in_channels)),
        }
        folder = Path(self.config.latents)
        return load_latents(folder, captions, tokenize, flip=data.flip, **expected)

    def _with_tokens(self, dataset: DataSet) -> Captioned:
        if isinstance(dataset, Captioned):
            return dataset if dataset.tokenize else dataset.tokenized(self.codec.tokenize)
        captions = self.config.captions or Captions()
        return Captioned(dataset, captions.of_classes(dataset, None), self.codec.tokenize)

    def reference_images(self) -> DataSet:
        """Return the real images as squares of one size, also where latents are trained on."""
        if self.config.buckets is None and not self.dataset.is_encoded:
            return self.dataset
        data = self.config.data
        return load_stream(data) if data.stream else load_images(data)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape ``(C, h, w)`` of the latents."""
        return self.codec.shape(self.dataset.shape)

    def _encode(self, batch: Batch, generator: torch.Generator | None) -> Batch:
        return self.codec.encode(batch, generator)

    def _decode(self, data: Tensor) -> Tensor:
        return self.codec.decode(data)

    # -- network ----------------------------------------------------------------------------------

    def _build_model(self) -> nn.Module:
        codec, model = self.codec, unet_of(self.recipe).build(self.shape)
        assert isinstance(model, TextUNet)
        if (width := model.unet.config.cross_attention_dim) != codec.text_width:
            raise ValueError(
                f"the U-Net attends to text states of width {width}, and those of the codec have "
                f"{codec.text_width}; give a U-Net and a codec of one pipeline"
            )
        model.cast_frozen(frozen_dtype(self.recipe.mixed_precision))
        return model

    # -- conditions -------------------------------------------------------------------------------

    def drop_conditions(self, cond: Cond | None, rng: RandomStreams) -> Cond | None:
        """Replace prompts by the empty one at random for classifier-free guidance."""
        if cond is None or not self.recipe.cond_drop_prob:
            return cond
        return drop_text(cond, self.codec.empty_prompt, self.recipe.cond_drop_prob, rng.labels)

    def conditions(self, indices: Sequence[int], prompts: Sequence[str] = ()) -> Cond | None:
        """Return the conditions of samples: sample i depends on i alone.

        Sample i is of prompt ``i mod len(prompts)`` where prompts are given (in previews those of
        the recipe), else of class i, else of the caption of image i. In-painting gets image i with
        its caption or class, and a mask seeded by i.
        """
        size, codec = (self.shape[1], self.shape[2]), self.codec
        height, width = (side * codec.downsample_factor for side in size)
        cond = codec.encode_prompts(self._texts(indices, prompts), (height, width))
        classes = self.dataset.num_classes
        if codec.inpainting is None:
            if classes and not prompts:
                cond |= {"label": torch.tensor([i % classes for i in indices], device=self.device)}
            return cond
        batch = self.dataset.batch(self._rows(indices))
        if classes and not prompts:
            cond |= {"label": (batch.cond or {})["label"].to(self.device)}
        generators = [keyed_generator(i, "hole") for i in indices]
        masks = torch.cat([codec.inpainting.sample_masks(1, size, g) for g in generators])
        return cond | codec.mask_images(batch.data, masks)

    def _texts(self, indices: Sequence[int], prompts: Sequence[str]) -> list[str]:
        if prompts:
            return [prompts[i % len(prompts)] for i in indices]
        assert isinstance(self.dataset, Captioned)
        classes, named = self.dataset.num_classes, self.dataset.prompts
        if classes and isinstance(named, ClassNamePrompts) and self.codec.inpainting is None:
            return [named.of_class(i % classes)[0] for i in indices]
        return self.dataset.texts(self._rows(indices))

    def _rows(self, indices: Sequence[int]) -> Tensor:
        rows = self.dataset.common_rows()
        return rows[torch.tensor([i % len(rows) for i in indices])]

    def unconditional(self, cond: Cond) -> Cond:
        """Return the conditions of the empty prompt (zeros for SDXL)."""
        if "text" in cond:
            return drop_text(cond, self.codec.uncond_embedding, 1.0)
        return drop_labels(cond, self.dataset.num_classes or 0, 1.0)

    def coupling(self, coupling: Coupling) -> Coupling:
        """Pair in the masked region alone, where the recipe asks for it."""
        inpainting = self.config.inpainting
        masked = inpainting is not None and inpainting.pair_masked_region
        return MaskedCoupling(coupling) if masked else coupling

    # -- evaluation and files ---------------------------------------------------------------------

    def evaluator(self, config: EvalConfig | None = None, max_real: int | None = None) -> Evaluator:
        """Return what scores images: adapters, tuned on few images, by few-shot metrics."""
        config = config or self.config.eval
        if unet_of(self.recipe).lora is None:
            return super().evaluator(config, max_real)
        assert isinstance(config, ImageEvalConfig)
        few = self.reference_images() if self.dataset.is_encoded else self.dataset
        return FewShotEvaluator.of(few, config, self.device)

    def preview(self, pipeline: Any, model: nn.Module) -> Tensor:
        """Return images of the preview prompts."""
        prompts = self.config.preview_prompts
        conditions = partial(self.conditions, prompts=prompts)
        pipeline = dataclasses.replace(pipeline, conditions=conditions)
        return super().preview(pipeline, model)

    def check_before_training(self) -> None:
        """Raise ValueError for what could not be published, before hours are spent."""
        check_before(self.recipe)

    def export(
        self, run_dir: RunDir, model: nn.Module, averaged: nn.Module, average: dict[str, Any], step: int
    ) -> None:
        """Write weights in the layout of diffusers."""
        publish(self.recipe, run_dir, self.codec, model, averaged, average, step)

    def publish(self, run_dir: RunDir) -> None:
        """Push the run to the hub, if the recipe asks for it."""
        if self.config.push_to_hub:
            push(run_dir.root, self.config.push_to_hub)
