"""Image tensors as PIL images."""

from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.utils.optional_deps import require_extra


def image_grid(images: Tensor, columns: int | None = None) -> Any:
    """Arrange ``images`` ``[B, C, H, W]`` in [-1, 1] as a PIL image, row by row, 1 pixel apart."""
    with require_extra("train", "writing images"):
        from PIL import Image
    count, channels, height, width = images.shape
    columns = columns or max(1, round(count**0.5))
    rows = -(-count // columns)
    levels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8)
    size = (channels, rows * (height + 1) - 1, columns * (width + 1) - 1)
    grid = torch.full(size, 255, dtype=torch.uint8)
    for index, image in enumerate(levels):
        top, left = index // columns * (height + 1), index % columns * (width + 1)
        grid[:, top : top + height, left : left + width] = image
    array = grid.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if channels == 1 else array[..., :3])
