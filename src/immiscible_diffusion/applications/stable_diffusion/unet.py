"""The U-Net of Stable Diffusion: pretrained, from scratch, for in-painting, or with LoRA."""

import contextlib
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from immiscible_diffusion.applications.stable_diffusion.load_pipeline import missing, silence_hf_logging
from immiscible_diffusion.diffusion.paths import Cond
from immiscible_diffusion.models.base import ModelConfig, Shape, Shapes
from immiscible_diffusion.utils.checks import PositiveFloat, Probability, Size, check_fields
from immiscible_diffusion.utils.hub import split_revision
from immiscible_diffusion.utils.optional_deps import require_extra


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters of frozen weights, ``W + (alpha / rank) B A`` (2106.09685)."""

    rank: Size = 4  # rank of the adapters
    alpha: PositiveFloat | None = None  # scale of the adapters times their rank; by default the rank
    dropout: Probability = 0.0  # dropout of the adapters' input
    # which layers have adapters; by default all attention layers
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")

    def __post_init__(self) -> None:
        check_fields(self, "model.lora.")
        if not self.targets:
            raise ValueError("model.lora.targets must be one layer at least, got none")

    @property
    def scale(self) -> float:
        """Alpha as a number."""
        return float(self.rank if self.alpha is None else self.alpha)


@dataclass(frozen=True)
class StableDiffusionUNet(ModelConfig):
    """diffusers' ``UNet2DConditionModel``, conditioned on text."""

    # a pipeline, a checkpoint of diffusers' training script, the folder of a U-Net, or a name on
    # the hub; by default that of codec.pretrained
    pretrained: str | None = None
    # pretrained weights, or scratch: its configuration with random ones
    init: Literal["pretrained", "scratch"] = "pretrained"
    # unet, or unet_ema: the averaged weights of a checkpoint
    subfolder: Literal["unet", "unet_ema"] = "unet"
    inpainting: bool = False  # widen its input by the mask and the masked image; new weights are 0
    lora: LoRA | None = None  # train adapters only; None = train all weights

    can_checkpoint: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.precondition != "none":
            raise ValueError(f"this U-Net predicts as it was trained to; got model.precondition {self.precondition}")
        if self.lora is not None and self.init == "scratch":
            raise ValueError("adapters of random weights learn little; use model.init pretrained")

    def tiny(self) -> "StableDiffusionUNet":
        """Shrink to a smoke run."""
        return replace(self, gradient_checkpointing=False)

    def build(self, shape: Shape, num_classes: int | None = None, conditions: Shapes | None = None) -> nn.Module:
        """Build the network for latents ``[B, C, h, w]``; ValueError if the U-Net is of others."""
        unet = self._load()
        if self.lora is None:  # the size at which pipelines of diffusers sample by default
            height, width = shape[1:]
            unet.register_to_config(sample_size=height if height == width else (height, width))
        return TextUNet(self, unet, shape[0])

    def _load(self) -> Any:
        if not self.pretrained:
            raise ValueError("model.pretrained is not set; give a pipeline, or as codec.pretrained")
        alone = (Path(self.pretrained) / "config.json").is_file()
        source, revision = split_revision(self.pretrained)
        where: dict[str, Any] = revision if alone else {"subfolder": self.subfolder, **revision}
        with silence_hf_logging():
            from diffusers import UNet2DConditionModel as UNet

            try:
                if self.init == "scratch":
                    return UNet.from_config(UNet.load_config(source, **where))
                return UNet.from_pretrained(source, torch_dtype=torch.float32, **where)
            except (OSError, ValueError) as error:
                part = "U-Net" if alone else f"U-Net {self.subfolder}"
                raise missing(self.pretrained, error, part) from error


class TextUNet(nn.Module):
    """``model(x_t [B, C, h, w], network_time [B], cond) -> [B, C, h, w]``.

    ``cond`` has ``text`` ``[B, L, W]``; ``pooled`` and ``time_ids`` for SDXL; ``inpaint_mask`` and
    ``masked_latents`` for in-painting.
    """

    def __init__(self, config: StableDiffusionUNet, unet: Any, channels: int) -> None:
        super().__init__()
        self.config = config
        inputs = 2 * channels + 1 if config.inpainting else channels
        if config.inpainting and unet.config.in_channels < inputs:
            if config.lora is not None:
                raise ValueError("adapters would not see the mask; start from an in-painting U-Net")
            widen(unet, inputs)
        if (unet.config.in_channels, unet.config.out_channels) != (inputs, channels):
            raise ValueError(
                f"the U-Net takes {unet.config.in_channels} channels and gives {unet.config.out_channels}; latents of "
                f"{channels} channels need {inputs} and {channels}"
                f"{'' if config.inpainting else ' (in-painting: set model.inpainting)'}"
            )
        if config.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        if config.lora is not None:
            add_adapters(unet, config.lora)
        self.unet = unet.train()

    def cast_frozen(self, dtype: torch.dtype) -> None:
        """Cast frozen weights to half precision; trained weights keep theirs."""
        for weight in self.parameters():
            if not weight.requires_grad:
                weight.data = weight.data.to(dtype)

    def forward(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        """Predict the target at ``x`` ``[B, C, h, w]`` and step ``time`` ``[B]``."""
        cond, inpainting = cond or {}, ("inpaint_mask", "masked_latents")
        needed = ["text", *inpainting] if self.config.inpainting else ["text"]
        if any(name not in cond for name in needed):
            raise ValueError(f"this network needs cond with {', '.join(needed)}, got {', '.join(cond) or 'none'}")
        if self.config.inpainting:
            x = torch.cat([x, *(cond[name].to(x.dtype) for name in inpainting)], dim=1)
        added = None
        if "pooled" in cond:
            added = {"text_embeds": cond["pooled"].to(x.dtype), "time_ids": cond["time_ids"]}
        dtype = next(self.unet.conv_in.parameters()).dtype
        half = dtype != torch.float32  # where frozen weights are
        with torch.autocast(x.device.type, dtype) if half else contextlib.nullcontext():
            output = self.unet(x, time, cond["text"].to(x.dtype), added_cond_kwargs=added)
        return output.sample


@torch.no_grad()
def widen(unet: Any, channels: int) -> None:
    """Let ``unet`` take ``channels`` input channels, more than before; new weights are 0."""
    old = unet.conv_in
    new = nn.Conv2d(channels, old.out_channels, old.kernel_size, padding=old.padding)
    new.weight.zero_()
    new.weight[:, : old.in_channels] = old.weight
    if old.bias is not None and new.bias is not None:
        new.bias.copy_(old.bias)
    unet.conv_in = new.to(old.weight)
    unet.register_to_config(in_channels=channels)


def add_adapters(unet: Any, lora: LoRA) -> None:
    """Freeze ``unet`` and add trainable adapters, whose output starts at 0."""
    with require_extra("sd", "LoRA"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from peft import LoraConfig
    options: Any = {"r": lora.rank, "lora_alpha": lora.scale, "lora_dropout": lora.dropout}
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(init_lora_weights="gaussian", target_modules=list(lora.targets), **options))
