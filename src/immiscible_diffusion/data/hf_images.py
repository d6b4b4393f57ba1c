"""Encoded pictures (parquet, folders, the hub) through the ``datasets`` library."""

import glob
import re
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.data.image_decoding import as_file, opened, square, to_bytes
from immiscible_diffusion.data.images import ImageSet, LazyImageSet
from immiscible_diffusion.utils.optional_deps import require_extra

if TYPE_CHECKING:
    from immiscible_diffusion.data.load import DataConfig

HUB = {
    "cifar10": "uoft-cs/cifar10",
    "fashion_mnist": "zalandoresearch/fashion_mnist",
    "imagenet-1k": "ILSVRC/imagenet-1k",
}
DECODE_PIECE = 256
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
JPEG = b"\xff\xd8"
JPEG_NOTE = "JPEG re-encoded"
GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L")


@dataclass(frozen=True)
class Decoder:
    """Rows to bytes ``[C, H, W]``: decoded, converted, resized and cut to a square."""

    column: str
    mode: str
    size: int | None

    def __call__(self, row: dict[str, Any]) -> Tensor:
        """Decode one row; ValueError names a picture that is broken."""
        with require_extra("train", "reading pictures"):
            import PIL  # noqa: F401
        cell = row[self.column]
        image = opened(cell, self.mode)
        return to_bytes(square(image, self.size) if self.size else image)


def load_encoded(config: "DataConfig", hint: str) -> DataSet:
    """The set of ``config``: decoded into memory if it fits, else decoded when needed."""
    return images_of(open_rows(config, hint), config)


def images_of(rows: Any, config: "DataConfig") -> DataSet:
    """The images of ``rows``, as ``open_rows`` gives them."""
    image_column, label_column = columns(rows, config)
    labels = _labels(rows, label_column) if label_column else None
    names = _class_names(rows, label_column, labels) if label_column and labels else None
    if config.limit is not None:
        rows = rows.select(range(min(config.limit, len(rows))))
    decoder = Decoder(image_column, _mode(rows, image_column, config), config.size)
    first = decoder(rows[0])
    common: dict[str, Any] = {
        "name": config.name.removeprefix("hub:"),
        "note": _note(config, rows[0][image_column]),
        "class_names": names,
        "flip": config.flip,
    }
    if len(rows) * first.numel() > config.in_memory_gib * 2**30:
        shape = tuple(first.shape)
        decode = partial(_of_shape, decoder, shape)
        return LazyImageSet(rows, decode, shape, label=label_column, **common)
    images = _decode_all(rows, decoder, first)
    target = None if labels is None else torch.tensor(labels[: len(rows)])
    return ImageSet(images, labels=target, **common)


def open_rows(config: "DataConfig", hint: str) -> Any:
    """The split as a ``datasets.Dataset`` whose pictures stay encoded; not empty."""
    with require_extra("train", f"the data set {config.name}"):
        import datasets
    arguments = load_arguments(config)
    quiet = not sys.stderr.isatty()
    if quiet:
        datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(split=config.split, **arguments)
    except Exception as error:
        if "data_dir" in arguments or "data_files" in arguments:
            raise ValueError(f"{config.path} cannot be read as images: {error}") from error
        raise ValueError(
            f"the data set {arguments['path']} cannot be had from the hub "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0]}); go online once, {hint}"
        ) from error
    rows = stay_encoded(rows)
    if len(rows) == 0:
        raise ValueError(f"{config.path or config.name} has no images in the split {config.split}")
    return rows


def stay_encoded(rows: Any) -> Any:
    """``rows`` whose pictures are not decoded."""
    import datasets

    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Image) or name in ("img", "image"):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows


def load_arguments(config: "DataConfig") -> dict[str, Any]:
    """How ``datasets.load_dataset`` finds the set."""
    if config.path is None:
        if config.name == "folder":
            raise ValueError("the data set 'folder' needs data.path, the folder of images")
        return {"path": HUB.get(config.name, config.name.removeprefix("hub:"))}
    path = Path(config.path)
    if not path.exists():
        raise ValueError(f"data.path {path} does not exist")
    if path.is_file() and path.suffix != ".parquet":
        raise ValueError(f"data.path {path} is neither a folder nor a .parquet file")
    parquet = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    if parquet:
        files = [glob.escape(str(file)) for file in parquet if _of_split(file, path, config.split)]
        if not files:
            raise ValueError(
                f"{path}: no parquet file there has '{config.split}' in its name or folder"
            )
        return {"path": "parquet", "data_files": {config.split: files}}
    split = path / config.split
    if not split.is_dir() and config.split != "train":
        raise ValueError(f"{path} has no folder '{config.split}'")
    folder = split if split.is_dir() else path
    if not any(_is_picture(file) for file in folder.rglob("*")):
        raise ValueError(f"{folder} has no images")
    classes = any(_is_picture(file) for file in folder.glob("*/*"))
    loose = any(_is_picture(file) for file in folder.iterdir())
    return {
        "path": "imagefolder",
        "data_files": {config.split: f"{glob.escape(str(folder))}/**"},
        "drop_labels": not config.labels or not classes or loose,
    }


def _of_split(file: Path, root: Path, split: str) -> bool:
    """Whether a parquet file is of ``split``, by the words of its name and folders.

    A file given by itself is what was asked for as train, but a test split it must be by name:
    else training rows would pass for held-out ones.
    """
    if file == root and split == "train":
        return True
    inside = file.name if file == root else str(file.relative_to(root))
    return re.search(rf"(?<![a-z]){re.escape(split.lower())}", inside.lower()) is not None


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES


def columns(rows: Any, config: "DataConfig") -> tuple[str, str | None]:
    """Names of the image column, and of the label column if labels are wanted and there."""
    import datasets

    images = [name for name, kind in rows.features.items() if isinstance(kind, datasets.Image)]
    if not images:
        raise ValueError(
            f"{config.path or config.name} has no column of images; columns: "
            f"{', '.join(rows.features)}"
        )
    labels = [
        name
        for name, kind in rows.features.items()
        if isinstance(kind, datasets.ClassLabel) or (name == "label" and _is_integer(kind))
    ]
    return images[0], labels[0] if config.labels and labels else None


def _is_integer(kind: Any) -> bool:
    return str(getattr(kind, "dtype", None)).startswith(("int", "uint"))


def _labels(rows: Any, column: str) -> list[int]:
    """The labels of all rows, read at once: row by row takes longer than the pictures."""
    labels: list[int] = rows[column][:]
    if any(label is None or label < 0 for label in labels):
        raise ValueError(
            f"column '{column}' has rows without a label (empty or negative); set data.labels false"
        )
    return labels


def _class_names(rows: Any, column: str, labels: list[int]) -> tuple[str, ...]:
    """Names of the classes of the whole split; numbers where the column is of plain integers."""
    names = getattr(rows.features[column], "names", None)
    return tuple(names or map(str, range(max(labels) + 1)))


def _mode(rows: Any, column: str, config: "DataConfig") -> str:
    """PIL's mode: as asked for, else gray if the first hundred pictures all are."""
    if config.channels is not None:
        return "L" if config.channels == 1 else "RGB"
    from PIL import Image

    for row in rows.select(range(min(100, len(rows)))):
        try:
            with Image.open(as_file(row[column])) as picture:
                if picture.mode not in GREY_MODES:
                    return "RGB"
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            continue  # the decoder says which one, and why
    return "L"


def _note(config: "DataConfig", cell: dict[str, Any]) -> str:
    """CIFAR-10 is lossless as published: a copy in JPEG must say so."""
    if config.name != "cifar10":
        return ""
    head = cell["bytes"][:2] if cell.get("bytes") is not None else _first_bytes(Path(cell["path"]))
    return JPEG_NOTE if head == JPEG else ""


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(2)


def _decode_all(rows: Any, decoder: Decoder, first: Tensor) -> Tensor:
    """All pictures ``[N, C, H, W]``, with a progress bar on a terminal."""
    with require_extra("train", "the progress bar"):
        from rich.console import Console
        from rich.progress import track
    images = torch.empty((len(rows), *first.shape), dtype=torch.uint8)
    shape = tuple(first.shape)
    pieces = rows.with_format("arrow").iter(batch_size=DECODE_PIECE)  # 3x faster than by row
    for number, piece in track(
        enumerate(pieces),
        description="decoding",
        total=-(-len(rows) // DECODE_PIECE),
        transient=True,
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    ):
        for offset, cell in enumerate(piece[decoder.column].to_pylist()):
            image = _of_shape(decoder, shape, {decoder.column: cell})
            images[number * DECODE_PIECE + offset] = image
    return images


def _of_shape(decoder: Decoder, shape: tuple[int, ...], row: dict[str, Any]) -> Tensor:
    image = decoder(row)
    if image.shape != shape:
        raise ValueError(
            f"images differ in size: {shape} and {tuple(image.shape)}; set data.size to bring them "
            f"to one"
        )
    return image
