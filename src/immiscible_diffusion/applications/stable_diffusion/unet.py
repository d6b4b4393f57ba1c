"""The U-Net of Stable Diffusion: as trained, from scratch, widened to paint, or with adapters."""

import contextlib
import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from immiscible_diffusion.applications.stable_diffusion.silence import quiet
from immiscible_diffusion.diffusion.paths import Cond
from immiscible_diffusion.models.base import ModelConfig, Shape, Shapes
from immiscible_diffusion.utils.optional_deps import require_extra


@dataclass(frozen=True)
class LoRA:
    """Adapters of low rank beside frozen weights (2106.09685).

    Args:
        rank: of the adapters.
        alpha: what they add is multiplied by ``alpha / rank``; by default alpha = rank.
        dropout: of what goes into them.
        targets: which layers have them: by default all attention.
    """

    rank: int = 4
    alpha: float | None = None
    dropout: float = 0.0
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.targets or not 0 <= self.dropout < 1:
            raise ValueError(
                f"expected lora.rank >= 1, some targets and 0 <= dropout < 1, got {self.rank}, "
                f"{self.targets} and {self.dropout}"
            )

    @property
    def scale(self) -> float:
        """Alpha."""
        return float(self.rank if self.alpha is None else self.alpha)


@dataclass(frozen=True)
class StableDiffusionUNet(ModelConfig):
    """diffusers' ``UNet2DConditionModel``, told by text.

    Args:
        pretrained: whose U-Net: a pipeline, a checkpoint of diffusers' training script, the folder
            of a U-Net, or a name on the hub; by default that of ``codec.pretrained``.
        init: ``pretrained``, or ``scratch``: its configuration with random weights.
        subfolder: which weights: ``unet``, or ``unet_ema``, the averaged ones of a checkpoint.
        painting: widened to see hole and what is around it; new weights are 0.
        gradient_checkpointing: compute activations twice instead of keeping them.
        lora: train adapters alone; None = train all weights.
    """

    pretrained: str | None = None
    init: Literal["pretrained", "scratch"] = "pretrained"
    subfolder: Literal["unet", "unet_ema"] = "unet"
    painting: bool = False
    gradient_checkpointing: bool = False
    lora: LoRA | None = None

    def __post_init__(self) -> None:
        if self.init not in ("pretrained", "scratch"):
            raise ValueError(f"model.init must be pretrained or scratch, got {self.init!r}")
        if self.lora is not None and self.init == "scratch":
            raise ValueError("adapters on random weights learn little; use init pretrained")

    def tiny(self) -> "StableDiffusionUNet":
        """Of a smoke run."""
        return replace(self, gradient_checkpointing=False)

    def build(
        self, shape: Shape, num_classes: int | None = None, conditions: Shapes | None = None
    ) -> nn.Module:
        """The network for latents ``[B, C, h, w]``; it does not see labels.

        Raises:
            ValueError: the U-Net is not there, or is of other latents.
        """
        unet = load_unet(self.pretrained, self.subfolder, scratch=self.init == "scratch")
        if self.lora is None:  # the size that pipelines of diffusers sample at if none is asked for
            high, wide = shape[1:]
            unet.register_to_config(sample_size=high if high == wide else (high, wide))
        return TextUNet(self, unet, shape[0])


class TextUNet(nn.Module):
    """``model(x_t [B, C, h, w], network_time [B], cond) -> [B, C, h, w]``.

    ``cond`` has ``text`` ``[B, L, W]``; ``pooled`` and ``time_ids`` for SDXL; ``hole`` and
    ``masked`` for painting.
    """

    def __init__(self, config: StableDiffusionUNet, unet: Any, channels: int) -> None:
        super().__init__()
        self.config = config
        if config.painting:
            if config.lora is not None and unet.config.in_channels != 2 * channels + 1:
                raise ValueError(
                    "adapters leave the new channels of a painter at 0, so it would not see the "
                    "hole; start from a U-Net that paints"
                )
            widen(unet, 2 * channels + 1)
        wanted = 2 * channels + 1 if config.painting else channels
        if (unet.config.in_channels, unet.config.out_channels) != (wanted, channels):
            raise ValueError(
                f"the U-Net takes {unet.config.in_channels} channels and gives "
                f"{unet.config.out_channels}; latents of {channels} channels need {wanted} and "
                f"{channels}" + ("" if config.painting else "; one that paints: model.painting")
            )
        if config.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        if config.lora is not None:
            add_adapters(unet, config.lora)
        self.unet = unet.train()

    @property
    def text_width(self) -> int:
        """Of the text states that it attends to."""
        return int(self.unet.config.cross_attention_dim)

    def cast_frozen(self, dtype: torch.dtype) -> None:
        """Frozen weights to half precision; those that are trained stay as they are."""
        for weight in self.parameters():
            if not weight.requires_grad:
                weight.data = weight.data.to(dtype)

    def forward(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        """Predict the target at ``x`` ``[B, C, h, w]`` and step ``time`` ``[B]``."""
        needed = ["text", *(("hole", "masked") if self.config.painting else ())]
        if cond is None or any(name not in cond for name in needed):
            raise ValueError(
                f"this network needs cond with {', '.join(needed)}, got {_names(cond)}"
            )
        if self.config.painting:
            x = torch.cat([x, cond["hole"].to(x.dtype), cond["masked"].to(x.dtype)], dim=1)
        added = None
        if "pooled" in cond:
            added = {"text_embeds": cond["pooled"].to(x.dtype), "time_ids": cond["time_ids"]}
        with self._precision(x.device.type):
            said = self.unet(x, time, cond["text"].to(x.dtype), added_cond_kwargs=added)
        return said.sample

    def _precision(self, device: str) -> AbstractContextManager[Any]:
        """Autocast where frozen weights are in half precision."""
        dtype = next(self.unet.conv_in.parameters()).dtype
        if dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(device, dtype=dtype)


def _names(cond: Cond | None) -> str:
    return ", ".join(cond) if cond else "none"


def load_unet(pretrained: str | None, subfolder: str = "unet", *, scratch: bool = False) -> Any:
    """The U-Net of a pipeline or of a folder of its own; ValueError if it is not there."""
    if not pretrained:
        raise ValueError(
            "model.pretrained says whose U-Net to take and is not set; give a pipeline, as "
            "codec.pretrained or here"
        )
    with quiet():
        from diffusers import UNet2DConditionModel
    own = (Path(pretrained) / "config.json").is_file()
    where: dict[str, Any] = {} if own else {"subfolder": subfolder}
    try:
        with quiet():
            if scratch:
                config = UNet2DConditionModel.load_config(pretrained, **where)
                return UNet2DConditionModel.from_config(config)
            return UNet2DConditionModel.from_pretrained(
                pretrained, torch_dtype=torch.float32, **where
            )
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"no U-Net in {pretrained}/{where.get('subfolder', '')} ({reason}); fetch it where "
            f"there is a network (`hf download {pretrained} --local-dir FOLDER`), and give FOLDER"
        ) from error


@torch.no_grad()
def widen(unet: Any, channels: int) -> None:
    """Let ``unet`` take ``channels`` at its first layer; what it makes of the old ones stays."""
    old = unet.conv_in
    if old.in_channels == channels:
        return
    if old.in_channels > channels:
        raise ValueError(f"a U-Net of {old.in_channels} channels cannot be widened to {channels}")
    new = nn.Conv2d(channels, old.out_channels, old.kernel_size, padding=old.padding)
    new.weight.zero_()
    new.weight[:, : old.in_channels] = old.weight
    if old.bias is not None and new.bias is not None:
        new.bias.copy_(old.bias)
    unet.conv_in = new.to(old.weight)
    unet.register_to_config(in_channels=channels)


def add_adapters(unet: Any, lora: LoRA) -> None:
    """Freeze ``unet`` and give it adapters that are trained; they start at 0."""
    with require_extra("sd", "LoRA"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from peft import LoraConfig
    unet.requires_grad_(False)
    unet.add_adapter(
        LoraConfig(
            r=lora.rank,
            lora_alpha=lora.scale,  # type: ignore[arg-type]
            lora_dropout=lora.dropout,
            init_lora_weights="gaussian",
            target_modules=list(lora.targets),
        )
    )
