"""One encoded picture to bytes: opened, turned upright, brought to 8 bits, resized, cut."""

import io
from typing import Any

import numpy as np
import torch
from torch import Tensor

TURNED = 0x0112  # EXIF's tag of how the camera was held; 5 to 8 are on its side


def opened(cell: dict[str, Any], mode: str) -> Any:
    """A cell of an image column as an upright PIL picture; ValueError names a broken one."""
    from PIL import Image

    try:
        with Image.open(as_file(cell)) as picture:
            return _on_white(_eight_bit(_upright(picture))).convert(mode)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        where = cell.get("path") or "a picture of the data set"
        raise ValueError(f"{where} cannot be read as a picture: {error}") from error


def to_bytes(image: Any) -> Tensor:
    """A PIL picture as ``[C, H, W]`` uint8."""
    data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return data.view(image.height, image.width, -1).permute(2, 0, 1).contiguous()


def as_file(cell: dict[str, Any]) -> Any:
    """What PIL opens: the bytes of a cell of an image column, or its path."""
    return io.BytesIO(cell["bytes"]) if cell.get("bytes") is not None else cell["path"]


def _eight_bit(picture: Any) -> Any:
    """16-bit gray brought to 8 bits: PIL's ``convert`` would clip it at 255."""
    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range; save 8 bits")
    if not picture.mode.startswith("I"):
        return picture
    from PIL import Image

    gray = np.asarray(picture).astype(np.float64).clip(0, 65535) / 257
    return Image.fromarray(gray.round().astype(np.uint8))


def _upright(picture: Any) -> Any:
    """The picture turned as the camera noted in its EXIF data."""
    from PIL import ImageOps

    ImageOps.exif_transpose(picture, in_place=True)
    return picture


def _on_white(picture: Any) -> Any:
    """A transparent picture on white: what lies under its transparent parts is arbitrary."""
    if picture.mode not in ("RGBA", "LA", "PA") and "transparency" not in picture.info:
        return picture
    from PIL import Image

    over = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)


def square(image: Any, size: int) -> Any:
    """The center square after resizing the shorter side to ``size``."""
    from PIL import Image

    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.resize(
        (width, height), Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    )
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def upright_size(cell: dict[str, Any]) -> tuple[int, int]:
    """Height and width of a cell's picture once it is upright, from its header alone."""
    from PIL import Image

    try:
        with Image.open(as_file(cell)) as picture:
            width, height = picture.size
            turned = picture.getexif().get(TURNED, 1) in (5, 6, 7, 8)
            sideways = turned and picture.format != "TIFF"  # whose sides Pillow swaps itself
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        where = cell.get("path") or "a picture of the data set"
        raise ValueError(f"{where} cannot be read as a picture: {error}") from error
    return (width, height) if sideways else (height, width)
