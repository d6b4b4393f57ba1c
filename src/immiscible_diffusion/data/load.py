"""Images by name: from this machine, from local files or from the hub."""

import gzip
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.nn.functional import interpolate

from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.data.hf_images import images_from_rows, load_hf_images
from immiscible_diffusion.data.images import ImageSet
from immiscible_diffusion.utils.atomic_files import read_json
from immiscible_diffusion.utils.checks import ImageSize, NonNegativeFloat, NonNegativeInt, PositiveInt, check_fields
from immiscible_diffusion.utils.optional_deps import require_extra

if TYPE_CHECKING:
    import numpy as np

LOCAL = ("digits", "fashion_mnist")  # data sets that need no path
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
COCO_FOLDERS = {"train": ("train2017", "train2014"), "validation": ("val2017", "val2014")}
COCO_DOWNLOAD = (
    "download train2017.zip (or val2017.zip) and annotations_trainval2017.zip from images.cocodataset.org (zips/ and "
    "annotations/), unpack both into one folder, and set data.path to it; a copy on the hub is read as hub:ID"
)


@dataclass(frozen=True)
class DataConfig:
    """Which data set, and how it is prepared."""

    # digits, fashion_mnist, cifar10, imagenet-1k, coco, folder, or hub:ID or hub:ID@REVISION for a set of the hub
    name: str = "digits"
    path: str | None = None  # local folder, or parquet files; required for ``folder``, instead of the hub otherwise
    split: str = "train"  # train or test, where the set has both
    # cut out before resizing: top, left, height, width
    crop: tuple[NonNegativeInt, NonNegativeInt, PositiveInt, PositiveInt] | None = None
    size: ImageSize | None = None  # resize the shorter side to this and crop the center square; None = no resizing
    # how: ``box``, by the mean of pixels (bicubic to enlarge), or ``bilinear``, as torchvision's Resize and CenterCrop
    resize: Literal["box", "bilinear"] = "box"
    channels: Literal[1, 3] | None = None  # 1 = gray, 3 = color; None = as in the files
    flip: bool = False  # mirror left and right at random when training
    labels: bool = True  # read the labels, where there are any
    # use only the first N samples; when streaming, N are kept for validation and previews
    max_samples: PositiveInt | None = None
    # choose them at random, as diffusers' max_train_samples does; None = the first
    max_samples_seed: NonNegativeInt | None = None
    in_memory_gib: NonNegativeFloat = 4.0  # decode once and hold in memory up to this size; above, decode when needed
    # read shards (tar, parquet, the hub, addresses) from start to end, for sets larger than the disk
    stream: bool = False
    shuffle_buffer: PositiveInt = 1000  # when streaming, how many samples are shuffled; twice as many are held
    # when streaming, ``raise``, or ``skip`` what cannot be read, with a warning
    on_error: Literal["raise", "skip"] = "raise"
    # when streaming, how many classes there are, where labels are numbers from 0 without names (.cls, plain columns)
    num_classes: PositiveInt | None = None

    def __post_init__(self) -> None:
        check_fields(self, "data.")
        if self.on_error == "skip" and not self.stream:
            raise ValueError(
                "data.on_error skip leaves out samples of a stream alone; set data.stream, or remove data.on_error"
            )
        if self.num_classes and not self.stream:
            raise ValueError(
                "data.num_classes is for streams, as classes of other data are counted; leave it, or set stream"
            )

    def tiny(self) -> "DataConfig":
        """The same, of at most 256 samples, for a smoke run."""
        return replace(self, max_samples=min(self.max_samples or 256, 256))

    def at_hand(self) -> "DataConfig":
        """The same if it needs no download, else 32 x 32 color images of digits."""
        if self.path or self.name in LOCAL:
            return self
        return DataConfig("digits", size=32, channels=3, flip=self.flip, max_samples=self.max_samples)


def load_images(config: DataConfig) -> DataSet:
    """The data set that ``config`` names.

    Raises:
        ValueError: unknown name, missing or broken files, no images, or offline without local
            files; says what was tried and what to do.
    """
    check_name(config.name)
    return SOURCES.get(config.name, load_hf_images)(config)


def check_name(name: str) -> None:
    """Raise ValueError if no data set is called ``name``."""
    if name not in SOURCES and not name.startswith("hub:"):
        raise ValueError(f"unknown data set '{name}'; known: {', '.join(SOURCES)}, or hub:ID")


def _digits(config: DataConfig) -> DataSet:
    if config.split != "train":
        raise ValueError(f"digits has the split train only, got '{config.split}'")
    if config.path:
        text = f"digits come with scikit-learn: data.path {config.path} is not read; set data.name, or leave it"
        warnings.warn(text, stacklevel=2)  # no error: there are runs whose recipes have it
    with require_extra("train", "the data set digits"):
        from sklearn.datasets import load_digits
    bunch = load_digits()
    return _gray_images(config, bunch.images, bunch.target, bunch.target_names, levels=16)


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
        return _gray_images(config, read_idx(images), read_idx(labels), FASHION)
    if config.path:
        raise ValueError(
            f"{config.path} lacks {prefix}-images-idx3-ubyte or {prefix}-labels-idx1-ubyte (plain or .gz)"
        )
    hint = "go online once, or install Debian's package dataset-fashion-mnist, or set data.path"
    return load_hf_images(config, hint)


def _gray_images(
    config: DataConfig, arrays: "np.ndarray", classes: "np.ndarray", names: Sequence[str], levels: int = 255
) -> ImageSet:
    """Bytes ``[N, H, W]`` prepared as the config asks."""
    if config.crop is not None or config.resize != "box":
        raise ValueError(f"{config.name} is resized by averaging and not cropped; leave data.crop and data.resize")
    rows = chosen_rows(config, len(arrays))
    images = torch.tensor(arrays[rows]).to(torch.uint8)[:, None]
    if config.size and config.size != images.shape[-1]:
        size = (config.size, config.size)
        if (gib := 4 * len(images) * config.size**2 / 2**30) > config.in_memory_gib:
            raise ValueError(
                f"data.size {config.size}: {len(images):,} images take {gib:.1f} GiB to resize, and "
                f"data.in_memory_gib is {config.in_memory_gib:g}; choose a smaller size, or fewer data.max_samples"
            )
        resized = interpolate(images.float() * (255 / levels), size, mode="bilinear", antialias=True)
        images, levels = resized.round().clamp(0, 255).to(torch.uint8), 255
    if config.channels == 3:
        images = images.expand(-1, 3, -1, -1).contiguous()
    if not config.labels:
        return ImageSet(images, config.name, levels=levels, flip=config.flip)
    labels = torch.tensor(classes[rows[rows < len(classes)]]).long()  # too few of them are an error of the set
    return ImageSet(images, config.name, labels, levels, class_names=tuple(map(str, names)), flip=config.flip)


def chosen_rows(config: DataConfig, count: int) -> "np.ndarray":
    """The rows of ``count`` that ``max_samples`` leaves: the first, or shuffled as ``datasets`` does."""
    import numpy as np  # the core is imported where there is none

    rows = np.arange(count)
    if config.max_samples is not None and config.max_samples_seed is not None:
        rows = np.random.default_rng(config.max_samples_seed).permutation(count)
    return rows[: config.max_samples]


def read_idx(path: Path) -> "np.ndarray":
    """The array of bytes in ``path``; ValueError if it is no idx file of bytes, or of another length than it says."""
    import numpy as np  # the core is imported where there is none

    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as idx: {error}") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an idx file of unsigned bytes")
    head = 4 + 4 * content[3]  # the last byte of the magic number is the rank
    if len(content) < head:
        raise ValueError(f"{path} is cut short in its header")
    shape, values = np.frombuffer(content[4:head], ">u4"), np.frombuffer(content[head:], np.uint8)
    if len(values) != shape.prod(dtype=object):
        raise ValueError(f"{path} holds {len(values)} bytes after its header, which says {tuple(shape.tolist())}")
    return values.reshape(shape)


def coco_rows(config: DataConfig) -> Any:
    """The images of a split with all their captions (column ``captions``, lists of texts).

    ValueError if the files are not there (it says what to download), or are not COCO's.
    """
    if config.path is None:
        raise ValueError(f"the data set coco needs data.path: {COCO_DOWNLOAD}")
    root = Path(config.path)
    split = "validation" if config.split in ("val", "test") else config.split
    for name in COCO_FOLDERS.get(split, ()):
        file = root / "annotations" / f"captions_{name}.json"
        if file.is_file() and (root / name).is_dir():
            return _coco_rows(root / name, file, config)
    folders = " or ".join(COCO_FOLDERS.get(split, (f"split '{config.split}'",)))
    raise ValueError(f"{root} has no {folders} with its annotations/captions_*.json: {COCO_DOWNLOAD}")


def _coco_rows(folder: Path, file: Path, config: DataConfig) -> Any:
    with require_extra("train", "the data set coco"):
        import datasets
    content = read_json(file)
    try:
        names = {image["id"]: image["file_name"] for image in content["images"]}
        captions: dict[int, list[str]] = {}
        for annotation in content["annotations"]:
            captions.setdefault(annotation["image_id"], []).append(annotation["caption"].strip())
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not a file of COCO's captions ({error!r})") from error
    ids = [image for image in sorted(names) if image in captions]
    ids = [ids[row] for row in chosen_rows(config, len(ids))]
    if not ids:
        raise ValueError(f"{file} has no captions")
    paths = [{"path": str(folder / names[image]), "bytes": None} for image in ids]
    rows = datasets.Dataset.from_dict({"image": paths, "captions": [captions[image] for image in ids]})
    return rows.cast_column("image", datasets.Image(decode=False))


SOURCES: dict[str, Callable[[DataConfig], DataSet]] = {
    "digits": _digits,
    "fashion_mnist": _fashion_mnist,
    "cifar10": load_hf_images,
    "imagenet-1k": load_hf_images,
    "folder": load_hf_images,
    "coco": lambda config: images_from_rows(coco_rows(config), config),
}
