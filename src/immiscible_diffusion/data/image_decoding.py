"""Decode one encoded image to bytes: upright, on white, of 8 bits, resized and cropped."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.utils.optional_deps import require_extra

ORIENTATION = 0x0112  # EXIF's tag of how the camera was held; 5 to 8 are on its side
Size = tuple[int, int]
"""Height and width in pixels."""


@contextmanager
def opened_image(cell: dict[str, Any]) -> Iterator[Any]:
    """A cell of an image column, ``bytes`` or ``path``, as PIL opens it; ValueError names a broken one."""
    with require_extra("train", "reading images"):
        from PIL import Image
    content = cell.get("bytes")
    try:
        with Image.open(cell["path"] if content is None else io.BytesIO(content)) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        name = cell.get("path") or "an image of the data set"
        raise ValueError(f"{name} cannot be read as an image: {error}; repair or remove it") from error


def open_image(cell: dict[str, Any], mode: str) -> Any:
    """A cell of an image column as an upright PIL image on white, of PIL's ``mode`` RGB or L."""
    with opened_image(cell) as image:
        from PIL import ImageOps

        ImageOps.exif_transpose(image, in_place=True)
        return _on_white(_eight_bit(image)).convert(mode)


def decode_image(
    cell: dict[str, Any], mode: str, size: int | None = None, crop: Sequence[int] | None = None, resize: str = "box"
) -> Tensor:
    """A cell of an image column as ``[C, H, W]`` uint8; resized and cropped to a center square.

    ``crop`` is cut out before: top, left, height and width; ``resize`` is ``box`` or ``bilinear``.
    """
    image = open_image(cell, mode)
    if crop is not None:
        top, left, height, width = crop
        if top + height > image.height or left + width > image.width:
            raise ValueError(f"data.crop {tuple(crop)} reaches out of an image of {image.height} x {image.width}")
        image = image.crop((left, top, left + width, top + height))
    if size is not None:
        image = ResizeCrop.of((image.height, image.width), (size, size), resize)(image, (size, size))
    return to_bytes(image)


def image_size(cell: dict[str, Any]) -> Size:
    """Size of a cell's image once it is upright, from its header alone."""
    with opened_image(cell) as image:
        width, height = image.size
        turned = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
        sideways = turned and image.format != "TIFF"  # whose sides Pillow swaps itself
    return (width, height) if sideways else (height, width)


def to_bytes(image: Any) -> Tensor:
    """A PIL image as ``[C, H, W]`` uint8."""
    data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return data.view(image.height, image.width, -1).permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class ResizeCrop:
    """How an image is fitted to a size: resized so that it covers it, then cropped."""

    resized: Size  # height and width after resizing
    top: int  # rows cropped above
    left: int  # columns cropped on the left
    kind: str = "box"  # how it is resized

    @classmethod
    def of(cls, size: Size, target: Size, kind: str = "box") -> "ResizeCrop":
        """The center crop to ``target`` of an image of ``size``; ``bilinear`` has torchvision's roundings."""
        scale = max(target[0] / size[0], target[1] / size[1])
        if kind == "bilinear":
            height, width = (max(b, int(b * s / min(size))) for s, b in zip(size, target, strict=True))
            return cls((height, width), round((height - target[0]) / 2), round((width - target[1]) / 2), kind)
        height, width = (max(b, round(s * scale)) for s, b in zip(size, target, strict=True))
        return cls((height, width), (height - target[0]) // 2, (width - target[1]) // 2)

    def __call__(self, image: Any, target: Size) -> Any:
        """A PIL image resized (``box``: by the mean of pixels if smaller, else bicubic) and cropped."""
        from PIL import Image

        height, width = self.resized
        smaller = height < image.height or width < image.width
        kind = Image.Resampling.BOX if smaller else Image.Resampling.BICUBIC
        kind = Image.Resampling.BILINEAR if self.kind == "bilinear" else kind
        box = (self.left, self.top, self.left + target[1], self.top + target[0])
        return image.resize((width, height), kind).crop(box)


def _eight_bit(image: Any) -> Any:
    """16-bit gray as 8 bits: PIL's ``convert`` would clip it at 255."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range; save 8 bits")
    if not image.mode.startswith("I"):
        return image
    import numpy as np
    from PIL import Image

    gray = np.asarray(image).astype(np.float64).clip(0, 65535) / 257
    return Image.fromarray(gray.round().astype(np.uint8))


def _on_white(image: Any) -> Any:
    """A transparent image on white: the colors of its transparent parts are arbitrary."""
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return image
    from PIL import Image

    colors = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", colors.size, "white"), colors)
