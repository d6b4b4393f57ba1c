"""The U-Net of pixel-space diffusion, from diffusers."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from immiscible_diffusion.diffusion.paths import Cond
from immiscible_diffusion.models.base import ModelConfig, Shape, Shapes, check_images, label_of
from immiscible_diffusion.utils.checks import Probability, Size
from immiscible_diffusion.utils.optional_deps import require_extra


@dataclass(frozen=True)
class UNet(ModelConfig):
    """diffusers' ``UNet2DModel`` for square images."""

    channels: Size = 128  # channels of the first level
    # factors of ``channels``, one per level; each level but the last halves the size
    multipliers: tuple[Size, ...] = (1, 2, 2, 2)
    blocks: Size = 2  # residual blocks per level
    attention: tuple[Size, ...] = (16,)  # sizes (pixels a side) at which there is self-attention
    head_channels: Size = 64  # channels per attention head
    groups: Size = 32  # number of groups of the group norms; must divide every level's channels
    dropout: Probability = 0.1  # inside the residual blocks
    # initial weights: ``torch``, those of its layers, with a last layer of zeros; ``zero``, also zeros at the end of
    # every residual and attention block (guided-diffusion, torchcfm); ``xavier``, besides Xavier's (ddpm-torch)
    init: Literal["torch", "zero", "xavier"] = "torch"

    can_checkpoint: ClassVar[bool] = True

    def tiny(self) -> "UNet":
        """Shrink to a smoke run."""
        return replace(self, channels=8, blocks=1, groups=4, head_channels=4, dropout=0.0)

    def build(self, shape: Shape, num_classes: int | None = None, conditions: Shapes | None = None) -> nn.Module:
        """Return a fresh network for images ``[B, C, S, S]`` whose size the levels can halve."""
        halvings = 2 ** (len(self.multipliers) - 1)
        check_images(self, shape, halvings, "fewer model.multipliers", conditions)
        if any(self.channels * factor % self.groups for factor in self.multipliers):
            raise ValueError(
                f"model.groups {self.groups} must divide the channels of every level: "
                f"{[self.channels * factor for factor in self.multipliers]}"
            )
        return ConditionalUNet(self, shape, num_classes)


class ConditionalUNet(nn.Module):
    """``model(x_t [B, C, S, S], network_time [B], cond) -> [B, C, S, S]``."""

    def __init__(self, config: UNet, shape: Shape, num_classes: int | None) -> None:
        super().__init__()
        with require_extra("train", "the U-Net"):
            from diffusers import UNet2DModel
        levels = len(config.multipliers)
        attends = [shape[1] // 2**level in config.attention for level in range(levels)]
        self.conditional = num_classes is not None
        self.unet = UNet2DModel(
            sample_size=shape[1],
            in_channels=shape[0],
            out_channels=shape[0],
            layers_per_block=config.blocks,
            block_out_channels=tuple(config.channels * factor for factor in config.multipliers),
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
            attention_head_dim=config.head_channels,
            norm_num_groups=config.groups,
            dropout=config.dropout,
            num_class_embeds=num_classes,
        )
        if config.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        _initialize(self.unet, config.init)

    def forward(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        """Predict the target at ``x`` ``[B, C, S, S]`` and ``time`` ``[B]``."""
        label = label_of(cond) if self.conditional else None
        return self.unet(x, time, class_labels=label).sample


def _initialize(unet: Any, kind: str) -> None:
    from diffusers.models.attention_processor import Attention
    from diffusers.models.resnet import ResnetBlock2D

    zeros = [unet.conv_out]
    if kind != "torch":
        zeros += [module.conv2 for module in unet.modules() if isinstance(module, ResnetBlock2D)]
        zeros += [module.to_out[0] for module in unet.modules() if isinstance(module, Attention)]
    for layer in unet.modules() if kind == "xavier" else ():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for layer in zeros:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
