"""Streams by name: tar shards, parquet files, or a set of the hub."""

from collections.abc import Sequence
from pathlib import Path

import torch

from immiscible_diffusion.data.captions import Captions, caption_column
from immiscible_diffusion.data.hf_images import Decoder, columns, load_arguments, stay_encoded
from immiscible_diffusion.data.load import DataConfig
from immiscible_diffusion.data.prompts import ClassNamePrompts, Tokenize, load_class_names
from immiscible_diffusion.data.shards import Shards, TableShards, TarShards, is_tar, tar_names
from immiscible_diffusion.data.streaming import OnError, Stream
from immiscible_diffusion.utils.optional_deps import require_extra


def open_stream(
    config: DataConfig,
    captions: Captions | None = None,
    tokenize: Tokenize | None = None,
    *,
    on_error: OnError = "raise",
    buffer: int = 1000,
) -> Stream:
    """A stream of what ``config`` names: tar shards, parquet files, or a set of the hub.

    Args:
        config: ``path`` is a .tar, a folder of them, a pattern with * or {00000..00099}, or an
            address; else what ``load_images`` takes. ``size`` is needed.
        captions: where prompts come from.
        tokenize: texts to tokens.
        on_error: raise, or skip what cannot be read.
        buffer: samples to draw the next from.

    Raises:
        ValueError: no size, no shards, no such column, or the hub out of reach.
    """
    captions = captions or Captions()
    if config.size is None:
        raise ValueError("a stream needs data.size, to which every picture is brought")
    shards, names = _tars(config) if _means_tars(config) else _table(config, captions)
    folder = Path(config.path) if config.path else None
    classes = _classes(captions, names, folder) if config.labels else None
    column = shards.image if isinstance(shards, TableShards) else "image"
    channels = config.channels or 3
    decoder = Decoder(column, "L" if channels == 1 else "RGB", config.size)
    return Stream(
        shards,
        decoder,
        (channels, config.size, config.size),
        config.path or config.name,
        tokenize,
        classes,
        buffer,
        on_error,
        config.flip,
    )


def _classes(
    captions: Captions, names: Sequence[str] | None, folder: Path | None
) -> ClassNamePrompts | None:
    """What labels are called, if that is known."""
    if captions.names:
        lines = Path(captions.names).read_text(encoding="utf-8").splitlines()
        names = [line.strip() for line in lines if line.strip()]
    if not names:
        return None
    names = load_class_names(names, None, folder)
    return ClassNamePrompts(torch.arange(len(names)), names, captions.template, captions.synonyms)


def _means_tars(config: DataConfig) -> bool:
    path = config.path or ""
    return is_tar(path) or (
        Path(path).is_dir() and any(map(is_tar, map(str, Path(path).iterdir())))
    )


def _tars(config: DataConfig) -> tuple[Shards, Sequence[str] | None]:
    return TarShards(tar_names(str(config.path))), None


def _table(config: DataConfig, captions: Captions) -> tuple[Shards, Sequence[str] | None]:
    with require_extra("train", f"the data set {config.name}"):
        import datasets
    arguments = load_arguments(config)
    try:
        rows = datasets.load_dataset(split=config.split, streaming=True, **arguments)
        features = rows.features or next(iter(rows.take(1))).keys()
    except Exception as error:
        raise ValueError(
            f"{config.path or arguments['path']} cannot be streamed ({type(error).__name__}: "
            f"{str(error).partition(chr(10))[0]}); a stream of the hub needs a network all the "
            f"time; or download its shards and set data.path to their folder"
        ) from error
    if rows.features is None:
        raise ValueError(
            f"{config.name} does not tell its columns ({', '.join(features)}); download it"
        )
    rows = stay_encoded(rows)
    image, label = columns(rows, config)
    text = caption_column(rows, captions.column)
    names = getattr(rows.features[label], "names", None) if label else None
    return TableShards(rows, image, text, label, config.path or config.name), names
