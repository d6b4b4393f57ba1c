"""The diffusion transformer, from diffusers."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from immiscible_diffusion.diffusion.paths import Cond
from immiscible_diffusion.models.base import ModelConfig, Shape, Shapes, check_images, label_of
from immiscible_diffusion.utils.checks import Probability, Size
from immiscible_diffusion.utils.optional_deps import require_extra


@dataclass(frozen=True)
class DiT(ModelConfig):
    """diffusers' ``DiTTransformer2DModel`` (2212.09748) for square images or latents."""

    heads: Size = 6  # heads of the attention; the width is ``heads * head_channels``
    head_channels: Size = 64  # channels per head
    depth: Size = 12  # blocks
    patch: Size = 2  # pixels a side of a token
    dropout: Probability = 0.0  # inside the blocks

    can_checkpoint: ClassVar[bool] = True

    def tiny(self) -> "DiT":
        """Shrink to a smoke run."""
        return replace(self, heads=2, head_channels=8, depth=2)

    def build(self, shape: Shape, num_classes: int | None = None, conditions: Shapes | None = None) -> nn.Module:
        """Return a fresh network for images ``[B, C, S, S]`` whose size the patches divide."""
        check_images(self, shape, self.patch, "model.patch", conditions)
        return ConditionalDiT(self, shape, num_classes)


class ConditionalDiT(nn.Module):
    """``model(x_t [B, C, S, S], network_time [B], cond) -> [B, C, S, S]``."""

    def __init__(self, config: DiT, shape: Shape, num_classes: int | None) -> None:
        super().__init__()
        with require_extra("train", "the DiT"):
            from diffusers import DiTTransformer2DModel
        self.conditional = num_classes is not None
        self.dit = DiTTransformer2DModel(
            num_attention_heads=config.heads,
            attention_head_dim=config.head_channels,
            in_channels=shape[0],
            out_channels=shape[0],
            num_layers=config.depth,
            dropout=config.dropout,
            norm_num_groups=1,
            sample_size=shape[1],
            patch_size=config.patch,
            num_embeds_ada_norm=num_classes or 1,
        )
        if config.gradient_checkpointing:
            self.dit.enable_gradient_checkpointing()
        norms = [block.norm1 for block in self.dit.transformer_blocks]
        for norm in norms:  # the trainer drops labels, from its own keyed stream
            norm.emb.class_embedder.dropout_prob = 0.0
        for layer in (*(norm.linear for norm in norms), self.dit.proj_out_1, self.dit.proj_out_2):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        """Predict the target at ``x`` ``[B, C, S, S]`` and ``time`` ``[B]``."""
        label = label_of(cond) if self.conditional else torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return self.dit(x, timestep=time, class_labels=label).sample
