"""Load images by name: from this machine, from local files or from the hub."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.data.coco import coco_rows
from immiscible_diffusion.data.hf_images import images_from_rows, load_hf_images
from immiscible_diffusion.data.images import ImageSet
from immiscible_diffusion.data.mnist import read_idx
from immiscible_diffusion.utils.optional_deps import require_extra

LOCAL = ("digits", "fashion_mnist")  # data sets that need no path
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


@dataclass(frozen=True)
class DataConfig:
    """Which data set, and how it is prepared.

    Args:
        name: digits, fashion_mnist, cifar10, imagenet-1k, coco, folder, or hub:ID
            for a data set of the hub.
        path: local folder (or parquet file); required for ``folder``, instead of the hub otherwise.
        split: train or test, where the set has both.
        size: resize the shorter side to this and crop the center square; None = no resizing.
        channels: 1 = gray, 3 = color; None = as in the files.
        flip: mirror left and right at random when training.
        labels: read the labels, where there are any.
        max_samples: use only the first N samples; when streaming, N are kept for validation and
            previews.
        in_memory_gib: decode once and hold in memory up to this size; above, decode when needed.
        stream: read shards (tar, parquet, the hub) from start to end, for sets larger than the
            disk; data order is not restored on resume.
        shuffle_buffer: when streaming, the number of samples that the next is drawn from.
        on_error: when streaming, ``raise``, or ``skip`` what cannot be read, with a warning.
    """

    name: str = "digits"
    path: str | None = None
    split: str = "train"
    size: int | None = None
    channels: int | None = None
    flip: bool = False
    labels: bool = True
    max_samples: int | None = None
    in_memory_gib: float = 4.0
    stream: bool = False
    shuffle_buffer: int = 1000
    on_error: Literal["raise", "skip"] = "raise"

    def __post_init__(self) -> None:
        for name in ("max_samples", "size", "shuffle_buffer"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"data.{name} must be at least 1, got {value}")
        if self.channels not in (None, 1, 3):
            raise ValueError(f"data.channels must be 1 or 3, got {self.channels}")
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f"data.on_error must be raise or skip, got {self.on_error!r}")

    def tiny(self) -> "DataConfig":
        """The same, of at most 256 samples, for a smoke run."""
        return replace(self, max_samples=min(self.max_samples or 256, 256))

    def at_hand(self) -> "DataConfig":
        """The same if it needs no download, else 32 x 32 color images of digits."""
        if self.path or self.name in LOCAL:
            return self
        options = {"flip": self.flip, "max_samples": self.max_samples}
        return DataConfig("digits", size=32, channels=3, **options)  # type: ignore[arg-type]


def load_images(config: DataConfig) -> DataSet:
    """The data set that ``config`` names.

    Raises:
        ValueError: unknown name, missing or broken files, no images, or offline without local
            files; says what was tried and what to do.
    """
    if config.name.startswith("hub:"):
        return load_hf_images(config)
    if config.name not in SOURCES:
        raise ValueError(
            f"unknown data set '{config.name}'; known: {', '.join(SOURCES)}, or hub:ID"
        )
    return SOURCES[config.name](config)


def _digits(config: DataConfig) -> DataSet:
    if config.split != "train":
        raise ValueError(f"digits has the split train only, got '{config.split}'")
    with require_extra("train", "the data set digits"):
        from sklearn.datasets import load_digits
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).to(torch.uint8)[:, None]
    names = tuple(str(name) for name in bunch.target_names)
    return _gray_images(config, images, torch.from_numpy(bunch.target).long(), names, levels=16)


def _fashion_mnist(config: DataConfig) -> DataSet:
    prefix = {"train": "train", "test": "t10k"}.get(config.split)
    if prefix is None:
        raise ValueError(f"fashion_mnist has the splits train and test, got '{config.split}'")
    folder = Path(config.path) if config.path else DEBIAN_FASHION
    images, labels = (
        next(filter(Path.is_file, (folder / name, folder / f"{name}.gz")), None)
        for name in (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
    )
    if images and labels:
        data = torch.from_numpy(read_idx(images).copy())[:, None]
        return _gray_images(config, data, torch.from_numpy(read_idx(labels).copy()).long(), FASHION)
    if config.path:
        raise ValueError(
            f"{config.path} lacks {prefix}-images-idx3-ubyte or {prefix}-labels-idx1-ubyte "
            f"(plain or .gz)"
        )
    return load_hf_images(
        config, "or install Debian's package dataset-fashion-mnist, or set data.path"
    )


def _gray_images(
    config: DataConfig, images: Tensor, labels: Tensor, names: tuple[str, ...], levels: int = 255
) -> ImageSet:
    """Bytes ``[N, 1, H, W]`` prepared as the config asks."""
    images, labels = images[: config.max_samples], labels[: config.max_samples]
    if config.size and config.size != images.shape[-1]:
        resized = torch.nn.functional.interpolate(
            images.float() * (255 / levels),
            size=(config.size, config.size),
            mode="bilinear",
            antialias=True,
        )
        images, levels = resized.round().clamp(0, 255).to(torch.uint8), 255
    if config.channels == 3:
        images = images.expand(-1, 3, -1, -1).contiguous()
    return ImageSet(
        images,
        config.name,
        labels if config.labels else None,
        levels,
        class_names=names if config.labels else None,
        flip=config.flip,
    )


SOURCES: dict[str, Callable[[DataConfig], DataSet]] = {
    "digits": _digits,
    "fashion_mnist": _fashion_mnist,
    "cifar10": load_hf_images,
    "imagenet-1k": load_hf_images,
    "folder": load_hf_images,
    "coco": lambda config: images_from_rows(coco_rows(config), config),
}
