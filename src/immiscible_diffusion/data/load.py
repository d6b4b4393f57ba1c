"""Where images come from: by name, from local files or from the hub."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.data.images import ImageSet
from immiscible_diffusion.data.mnist import read_idx
from immiscible_diffusion.utils.optional_deps import require_extra

LOCAL = ("digits", "fashion_mnist")  # data that need no path
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
        path: local folder (or parquet file); required for ``folder``, before the hub otherwise.
        split: train or test, where the set has both.
        size: resize the shorter side to this and cut out the center square; as it is by default.
        channels: 1 = gray, 3 = color; as it is by default.
        flip: mirror left and right at random when training.
        labels: read the labels, where there are any.
        limit: the first so many only; of a stream, how many are held to validate and preview.
        in_memory_gib: decode once and hold in memory up to this size; above, decode when needed.
        stream: read shards as they come by (tar, parquet, the hub), for sets larger than the disk;
            a resumed run then goes on with other data.
        buffer: of a stream, samples that the next is drawn from.
        skip_damaged: of a stream, leave out what cannot be read, with a warning.
    """

    name: str = "digits"
    path: str | None = None
    split: str = "train"
    size: int | None = None
    channels: int | None = None
    flip: bool = False
    labels: bool = True
    limit: int | None = None
    in_memory_gib: float = 4.0
    stream: bool = False
    buffer: int = 1000
    skip_damaged: bool = False

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"data.limit must be at least 1, got {self.limit}")
        if self.size is not None and self.size < 1:
            raise ValueError(f"data.size must be at least 1, got {self.size}")
        if self.channels not in (None, 1, 3):
            raise ValueError(f"data.channels must be 1 or 3, got {self.channels}")
        if self.buffer < 1:
            raise ValueError(f"data.buffer must be at least 1, got {self.buffer}")

    def tiny(self) -> "DataConfig":
        """Of a smoke run."""
        return replace(self, limit=min(self.limit or 256, 256))

    def at_hand(self) -> "DataConfig":
        """The same if they need not be fetched, else 32 x 32 color pictures of digits."""
        if self.path or self.name in LOCAL:
            return self
        return DataConfig("digits", size=32, channels=3, flip=self.flip, limit=self.limit)


def load_images(config: DataConfig) -> DataSet:
    """The data set that ``config`` names.

    Raises:
        ValueError: unknown name, missing or broken files, no images, or offline without local
            files; says what was tried and what to do.
    """
    if config.name.startswith("hub:"):
        return _through_datasets(config)
    if config.name not in SOURCES:
        raise ValueError(
            f"unknown data set '{config.name}'; known: {', '.join(SOURCES)}, or hub:ID"
        )
    return SOURCES[config.name](config)


def _digits(config: DataConfig) -> ImageSet:
    if config.split != "train":
        raise ValueError(f"digits has the split train only, got '{config.split}'")
    with require_extra("train", "the data set digits"):
        from sklearn.datasets import load_digits
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).to(torch.uint8)[:, None]
    names = tuple(str(name) for name in bunch.target_names)
    return _prepared(config, images, torch.from_numpy(bunch.target).long(), names, levels=16)


def _fashion_mnist(config: DataConfig) -> DataSet:
    prefix = {"train": "train", "test": "t10k"}.get(config.split)
    if prefix is None:
        raise ValueError(f"fashion_mnist has the splits train and test, got '{config.split}'")
    folders = [Path(config.path)] if config.path else [DEBIAN_FASHION]
    for folder in folders:
        images, labels = (
            _first_of(folder, f"{prefix}-{part}-ubyte") for part in ("images-idx3", "labels-idx1")
        )
        if images and labels:
            data = torch.from_numpy(read_idx(images).copy())[:, None]
            target = torch.from_numpy(read_idx(labels).copy()).long()
            return _prepared(config, data, target, FASHION)
    if config.path:
        raise ValueError(
            f"{config.path} lacks {prefix}-images-idx3-ubyte or {prefix}-labels-idx1-ubyte "
            f"(plain or .gz)"
        )
    return _through_datasets(
        config, hint="or install Debian's package dataset-fashion-mnist, or set data.path"
    )


def _first_of(folder: Path, name: str) -> Path | None:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    return None


def _prepared(
    config: DataConfig, images: Tensor, labels: Tensor, names: tuple[str, ...], levels: int = 255
) -> ImageSet:
    """Bytes ``[N, 1, H, W]`` cut, resized and named as the config asks."""
    images, labels = images[: config.limit], labels[: config.limit]
    if config.size and config.size != images.shape[-1]:
        images = _resized(images.float() * (255 / levels), config.size)
        levels = 255
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


def _resized(images: Tensor, size: int) -> Tensor:
    small = torch.nn.functional.interpolate(
        images, size=(size, size), mode="bilinear", antialias=True
    )
    return small.round().clamp(0, 255).to(torch.uint8)


def _through_datasets(
    config: DataConfig, hint: str = "or set data.path to a local copy"
) -> DataSet:
    from immiscible_diffusion.data.hf_images import load_encoded

    return load_encoded(config, hint)


def _coco(config: DataConfig) -> DataSet:
    from immiscible_diffusion.data.coco import coco_rows
    from immiscible_diffusion.data.hf_images import images_of

    return images_of(coco_rows(config), config)


SOURCES: dict[str, Callable[[DataConfig], Any]] = {
    "digits": _digits,
    "fashion_mnist": _fashion_mnist,
    "cifar10": _through_datasets,
    "imagenet-1k": _through_datasets,
    "folder": _through_datasets,
    "coco": _coco,
}
