"""Encoded pictures (parquet, folders, the hub) through the ``datasets`` library."""

import io
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from immiscible_diffusion.data.batch import DataSet
from immiscible_diffusion.data.images import ImageSet, LazyImageSet
from immiscible_diffusion.extra import needs_extra

if TYPE_CHECKING:
    from immiscible_diffusion.data.sources import DataConfig

HUB = {"cifar10": "uoft-cs/cifar10", "fashion_mnist": "zalandoresearch/fashion_mnist"}
DECODE_PIECE = 256
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
JPEG = b"\xff\xd8"
JPEG_NOTE = "JPEG re-encoded"
GREY_MODES = ("1", "L", "I;16", "I")


@dataclass(frozen=True)
class Decoder:
    """Rows to bytes ``[C, H, W]``: decoded, converted, resized and cut to a square."""

    column: str
    mode: str
    size: int | None

    def __call__(self, row: dict[str, Any]) -> Tensor:
        """Decode one row; ValueError names a picture that is broken."""
        with needs_extra("train", "reading pictures"):
            from PIL import Image, UnidentifiedImageError
        cell = row[self.column]
        try:
            with Image.open(_file(cell)) as picture:
                image = picture.convert(self.mode)
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            where = cell.get("path") or "a picture of the data set"
            raise ValueError(f"{where} cannot be read as a picture: {error}") from error
        if self.size:
            image = _square(image, self.size)
        data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        return data.view(image.height, image.width, -1).permute(2, 0, 1).contiguous()


def _file(cell: dict[str, Any]) -> Any:
    return io.BytesIO(cell["bytes"]) if cell.get("bytes") is not None else cell["path"]


def _square(image: Any, size: int) -> Any:
    """The centre square after resizing the shorter side to ``size``."""
    from PIL import Image

    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.resize(
        (width, height), Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    )
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def load_encoded(config: "DataConfig", hint: str) -> DataSet:
    """The set of ``config``: decoded into memory if it fits, else decoded when needed."""
    rows = _rows(config, hint)
    if config.limit is not None:
        rows = rows.select(range(min(config.limit, len(rows))))
    if len(rows) == 0:
        raise ValueError(f"{config.path or config.name} has no images in the split {config.split}")
    image_column, label_column = _columns(rows, config)
    decoder = Decoder(image_column, _mode(rows, image_column, config), config.size)
    first = decoder(rows[0])
    names = _class_names(rows, label_column) if label_column else None
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
    labels = torch.tensor(rows[label_column]) if label_column else None
    return ImageSet(images, labels=labels, **common)


def _rows(config: "DataConfig", hint: str) -> Any:
    """The split as a ``datasets.Dataset`` whose pictures stay encoded."""
    with needs_extra("train", f"the data set {config.name}"):
        import datasets
    arguments = _arguments(config)
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
            f"({type(error).__name__}); go online once, {hint}"
        ) from error
    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Image) or name in ("img", "image"):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows


def _arguments(config: "DataConfig") -> dict[str, Any]:
    """How ``datasets.load_dataset`` finds the set."""
    if config.path is None:
        if config.name == "folder":
            raise ValueError("the data set 'folder' needs data.path, the folder of images")
        return {"path": HUB.get(config.name, config.name.removeprefix("hub:"))}
    path = Path(config.path)
    if not path.exists():
        raise ValueError(f"data.path {path} does not exist")
    parquet = [path] if path.suffix == ".parquet" else sorted(path.rglob("*.parquet"))
    if parquet:
        files = [str(file) for file in parquet if config.split in file.name or path == file]
        if not files:
            raise ValueError(f"{path} has parquet files but none with '{config.split}' in its name")
        return {"path": "parquet", "data_files": {config.split: files}}
    split = path / config.split
    if not split.is_dir() and config.split != "train":
        raise ValueError(f"{path} has no folder '{config.split}'")
    folder = split if split.is_dir() else path
    if not any(_is_picture(file) for file in folder.rglob("*")):
        raise ValueError(f"{folder} has no images")
    labelled = config.labels and any(_is_picture(file) for file in folder.glob("*/*"))
    return {
        "path": "imagefolder",
        "data_files": {config.split: f"{folder}/**"},
        "drop_labels": not labelled,
    }


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in (
        ".png",
        ".jpg",
        ".jpeg",
        ".webp",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
    )


def _columns(rows: Any, config: "DataConfig") -> tuple[str, str | None]:
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
        if isinstance(kind, datasets.ClassLabel) or (name == "label" and kind.dtype == "int64")
    ]
    return images[0], labels[0] if config.labels and labels else None


def _class_names(rows: Any, column: str) -> tuple[str, ...]:
    """Names of the classes; numbers where the column is of plain integers."""
    names = getattr(rows.features[column], "names", None)
    return tuple(names or map(str, range(max(rows[column]) + 1)))


def _mode(rows: Any, column: str, config: "DataConfig") -> str:
    """PIL's mode: as asked for, else grey if the first hundred pictures all are."""
    if config.channels is not None:
        return "L" if config.channels == 1 else "RGB"
    from PIL import Image, UnidentifiedImageError

    for row in rows.select(range(min(100, len(rows)))):
        try:
            with Image.open(_file(row[column])) as picture:
                if picture.mode not in GREY_MODES:
                    return "RGB"
        except (UnidentifiedImageError, OSError):
            continue  # the decoder says which one, and why
    return "L"


def _note(config: "DataConfig", cell: dict[str, Any]) -> str:
    """CIFAR-10 is lossless as published: a copy in JPEG must say so."""
    if config.name != "cifar10":
        return ""
    with (
        Path(cell["path"]).open("rb")
        if cell.get("bytes") is None
        else io.BytesIO(cell["bytes"]) as file
    ):
        return JPEG_NOTE if file.read(2) == JPEG else ""


def _decode_all(rows: Any, decoder: Decoder, first: Tensor) -> Tensor:
    """All pictures ``[N, C, H, W]``, with a progress bar on a terminal."""
    with needs_extra("train", "the progress bar"):
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
