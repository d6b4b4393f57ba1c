"""Images in parquet files, folders or on the hub, through the ``datasets`` library."""

import glob
import math
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from immiscible_diffusion.data.image_decoding import decode_image, opened_image
from immiscible_diffusion.data.images import ImageSet, LazyImageSet
from immiscible_diffusion.data.shard_files import SHARDS, TARS, shard_files
from immiscible_diffusion.utils.hub import split_revision
from immiscible_diffusion.utils.optional_deps import require_extra

if TYPE_CHECKING:
    from immiscible_diffusion.data.load import DataConfig

HUB = {
    "cifar10": "uoft-cs/cifar10@0b2714987fa478483af9968de7c934580d0bb9a2",
    "fashion_mnist": "zalandoresearch/fashion_mnist",
    "imagenet-1k": "ILSVRC/imagenet-1k@49e2ee26f3810fb5a7536bbf732a7b07389a47b5",
}
HINT = "go online once, or set data.path to a local copy"
DECODE_CHUNK = 256
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
GRAY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L")


def load_hf_images(config: "DataConfig", hint: str = HINT) -> ImageSet | LazyImageSet:
    """The set of ``config``: decoded into memory if it fits, else decoded when needed."""
    return images_from_rows(open_rows(config, hint), config)


def images_from_rows(rows: Any, config: "DataConfig") -> ImageSet | LazyImageSet:
    """The images of ``rows``, which ``open_rows`` returned."""
    image_column, label_column = columns(rows, config)
    labels = names = None
    if label_column:  # of the whole split, read as a column: by row takes longer than the images
        labels = rows[label_column][:]
        if any(label is None or label < 0 for label in labels):
            raise ValueError(
                f"column '{label_column}' has rows without a label (empty or negative); set data.labels false"
            )
        names = tuple(getattr(rows.features[label_column], "names", None) or map(str, range(max(labels) + 1)))
    if config.max_samples is not None:
        rows = rows.select(range(min(config.max_samples, len(rows))))
    mode = _mode(rows, image_column, config)
    decode = partial(decode_image, mode=mode, size=config.size, crop=config.crop, resize=config.resize)
    shape = tuple(decode(rows[0][image_column]).shape)
    decode = partial(_check_shape, decode, shape)
    with opened_image(rows[0][image_column]) as image:
        # CIFAR-10 is lossless as published: figures made of a JPEG copy must say so.
        recoded = config.name == "cifar10" and image.format == "JPEG"
    name, note = config.name.removeprefix("hub:"), "JPEG re-encoded" if recoded else ""
    common: dict[str, Any] = {"note": note, "class_names": names, "flip": config.flip}
    if len(rows) * math.prod(shape) > config.in_memory_gib * 2**30:
        return LazyImageSet(rows, image_column, decode, shape, name, label=label_column, **common)
    with require_extra("train", "the progress bar"):
        from tqdm import tqdm
    images = torch.empty((len(rows), *shape), dtype=torch.uint8)
    chunks = rows.with_format("arrow").iter(batch_size=DECODE_CHUNK)  # 3x faster than by row
    cells = (cell for chunk in chunks for cell in chunk[image_column].to_pylist())
    for row, cell in enumerate(tqdm(cells, "decoding", len(rows), leave=False, disable=not sys.stderr.isatty())):
        images[row] = decode(cell)
    target = None if labels is None else torch.tensor(labels[: len(rows)])
    return ImageSet(images, name, target, **common)


def open_rows(config: "DataConfig", hint: str, streamed: dict[str, Any] | None = None) -> Any:
    """The split as a ``datasets.Dataset`` (of ``streamed`` arguments: an iterable one) of encoded images.

    The ``hint`` says what to do where the hub is out of reach.
    """
    with require_extra("train", f"the data set {config.name}"):
        import datasets
    arguments = streamed or load_arguments(config)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        rows: Any = datasets.load_dataset(split=config.split, streaming=streamed is not None, **arguments)
    except Exception as error:
        if "data_files" in arguments:
            raise ValueError(f"{config.path} cannot be read as images: {error}") from error
        raise ValueError(
            f"the data set {arguments['path']} cannot be loaded from the hub "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0]}); {hint}"
        ) from error
    if rows.features is None:
        raise ValueError(f"{config.name} does not declare its columns; download it")
    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Image) or name in ("img", "image"):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    if not streamed and len(rows) == 0:
        raise ValueError(f"{config.path or config.name} has no images in the split {config.split}")
    if not streamed and config.max_samples is not None and config.max_samples_seed is not None:
        rows = rows.shuffle(seed=config.max_samples_seed)  # all that follows takes the first so many
    return rows


def load_arguments(config: "DataConfig") -> dict[str, Any]:
    """Arguments with which ``datasets.load_dataset`` finds the set."""
    if config.path is None:
        if config.name == "folder":
            raise ValueError("the data set 'folder' needs data.path, the folder of images")
        source, revision = split_revision(HUB.get(config.name, config.name.removeprefix("hub:")))
        return {"path": source, **revision}
    path, files = Path(config.path), shard_files(config.path)
    tars = [file for file in files if file.endswith(TARS)]
    if tars and (config.stream or not path.is_dir()):
        if not config.stream:
            raise ValueError(f"data.path {config.path} has tar shards, which are read with data.stream")
        if len(tars) < len(files):
            raise ValueError(f"data.path {config.path} has tar and parquet files; name those of one kind by a pattern")
        return {"path": "webdataset", "data_files": {config.split: tars}}
    if parquet := {file: place for file, place in files.items() if file not in tars}:
        if "://" not in config.path and not all(file.endswith(".parquet") for file in parquet):
            raise ValueError(f"data.path {path} is neither a folder nor a .parquet file")
        tables = [_literal(file) for file, place in parquet.items() if _in_split(file, place, config.split)]
        if not tables:
            raise ValueError(f"{path}: no parquet file there has '{config.split}' in its name or folder")
        return {"path": "parquet", "data_files": {config.split: tables}}
    if "://" in config.path:
        raise ValueError(f"data.path {config.path} has no files that end in {', '.join(SHARDS)}")
    folder = path / config.split
    if not folder.is_dir():
        if config.split != "train":
            raise ValueError(f"{path} has no folder '{config.split}'")
        folder = path
    if not any(map(_is_image, folder.rglob("*"))):
        tar = "; tar shards are read with data.stream" if next(folder.rglob("*.tar*"), None) else ""
        raise ValueError(f"{folder} has no images{tar}")
    classes = any(map(_is_image, folder.glob("*/*"))) and not any(map(_is_image, folder.iterdir()))
    files = {config.split: f"{glob.escape(str(folder))}/**"}
    return {"path": "imagefolder", "data_files": files, "drop_labels": not (config.labels and classes)}


def columns(rows: Any, config: "DataConfig") -> tuple[str, str | None]:
    """Names of the image column, and of the label column if there is one and labels are used."""
    import datasets

    images = [name for name, kind in rows.features.items() if isinstance(kind, datasets.Image)]
    if not images:
        raise ValueError(f"{config.path or config.name} has no column of images; columns: {', '.join(rows.features)}")

    def is_label(name: str, kind: Any) -> bool:
        whole = str(getattr(kind, "dtype", None)).startswith(("int", "uint"))
        return isinstance(kind, datasets.ClassLabel) or (name == "label" and whole)

    labels = (name for name, kind in rows.features.items() if is_label(name, kind))
    return images[0], next(labels, None) if config.labels else None


def _literal(file: str) -> str:
    """``file`` as a pattern for itself alone; of a web address no sign but * stands for others."""
    return file if file.startswith("http") else glob.escape(file)


def _in_split(file: str, place: str, split: str) -> bool:
    """Whether a parquet file at ``place`` in a folder belongs to ``split``, by the words of its name and folders.

    Files named without a folder are train; for a test split the name must say so, else training data would pass.
    """
    if not place and split == "train":
        return True
    inside = place or file.rpartition("/")[2]
    return re.search(rf"(?<![a-z]){re.escape(split.lower())}", inside.lower()) is not None


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS


def _mode(rows: Any, column: str, config: "DataConfig") -> str:
    """PIL's mode: by ``config.channels``, else gray if the first hundred images all are."""
    if config.channels is not None:
        return "L" if config.channels == 1 else "RGB"
    for row in rows.select(range(min(100, len(rows)))):
        with suppress(ValueError), opened_image(row[column]) as image:  # decoding names a broken one
            if image.mode not in GRAY_MODES:
                return "RGB"
    return "L"


def _check_shape(decode: Callable[[Any], Tensor], shape: tuple[int, ...], cell: dict[str, Any]) -> Tensor:
    image = decode(cell)
    if image.shape != shape:
        raise ValueError(
            f"images differ in size: {shape} and {tuple(image.shape)}; set data.size to resize them to one"
        )
    return image
