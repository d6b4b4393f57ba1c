"""From data in [-1, 1] to the input of a pretrained network: bytes first, as in a file."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


def to_bytes(data: Tensor) -> Tensor:
    """Data [B, 1 or 3, H, W] in [-1, 1] as color images [B, 3, H, W] uint8.

    Rounded as the images that ``sample`` writes: features of images and of their files are equal.
    """
    if data.ndim != 4 or data.shape[1] not in (1, 3):
        raise ValueError(
            f"pretrained features need images [B, 1 or 3, H, W], got {list(data.shape)}; use the features 'pixels'"
        )
    levels = ((data.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return levels.expand(-1, 3, -1, -1)


@dataclass(frozen=True)
class Preprocessing:
    """Bicubic resizing of bytes to a square, as Pillow does it, then ``(byte - mean) / std``."""

    size: int  # side of the square, pixels
    mean: tuple[float, float, float]  # of each color, in bytes
    std: tuple[float, float, float]  # of each color, in bytes
    rounded: bool = False  # round to bytes after resizing, as Pillow does on 8-bit images

    def __call__(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] uint8 as [B, 3, size, size] float32."""
        resized = images.float()
        if self.rounded:  # Pillow rounds between its two passes too, rows first
            resized = _bicubic(resized, (resized.shape[2], self.size)).clamp(0, 255).round()
        resized = _bicubic(resized, (self.size, self.size)).clamp(0, 255)
        if self.rounded:
            resized = resized.round()
        mean, std = (resized.new_tensor(value).view(3, 1, 1) for value in (self.mean, self.std))
        return (resized - mean) / std

    def __str__(self) -> str:
        rounded = ", rounded to bytes" if self.rounded else ""
        mean, std = (" ".join(f"{v:g}" for v in value) for value in (self.mean, self.std))
        return f"bytes in color, {self.size} px bicubic antialiased{rounded}, (x - {mean}) / ({std})"


def _bicubic(images: Tensor, size: tuple[int, int]) -> Tensor:
    return nn.functional.interpolate(images, size=size, mode="bicubic", align_corners=False, antialias=True)


@contextmanager
def in_full_precision(device: torch.device) -> Iterator[None]:
    """No autocast or TF32 inside: features in TF32 would differ from those on a CPU in the third digit."""
    matmul = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with (
            torch.autocast(device.type, enabled=False),
            # All flags that are not named are set to their defaults, and enabled's is False.
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
        ):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = matmul


def weights_digest(network: nn.Module) -> str:
    """Hash of all weights: features of other weights are other features."""
    content = hashlib.blake2b(digest_size=8)
    for name, value in sorted(network.state_dict().items()):
        content.update(name.encode())
        content.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return content.hexdigest()
