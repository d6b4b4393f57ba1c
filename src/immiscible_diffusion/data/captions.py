"""Pictures with prompts: written captions, or the names of their classes."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.data.aspect_buckets import (
    BucketedImages,
    bucket_sizes,
    bucketed,
)
from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.data.coco import coco_rows
from immiscible_diffusion.data.hf_images import columns, images_of, open_rows
from immiscible_diffusion.data.images import all_labels
from immiscible_diffusion.data.load import DataConfig, load_images
from immiscible_diffusion.data.prompts import (
    ClassNamePrompts,
    ColumnCaptions,
    Prompts,
    SidecarCaptions,
    Synonyms,
    Tokenize,
    check_template,
    load_class_names,
    sample_prompts,
)
from immiscible_diffusion.data.sampler import Sampler
from immiscible_diffusion.utils.batch import Batch

USUAL = ("text", "caption", "captions", "prompt", "sentences")
HINTS = {
    "imagenet-1k": (
        "for which its terms must be accepted at huggingface.co/datasets/ILSVRC/imagenet-1k and "
        "`hf auth login` be run; or set data.path to a folder with its parquet files, or with "
        "train/n01440764/*.JPEG and LOC_synset_mapping.txt"
    ),
}


@dataclass(frozen=True)
class Captions:
    """Where the prompts come from.

    Args:
        column: of the captions; by default one of the usual names (text, caption, captions,
            prompt, sentences), else text files beside the pictures, else the class names.
        template: for class names, with {label} where the name goes.
        synonyms: of a class name such as "tench, Tinca tinca": the first, one at random each time,
            or all as written.
        names: a file of class names, one a line, where the data set has none that can be said.
        extension: of text files beside the pictures.
    """

    column: str | None = None
    template: str = "{label}"
    synonyms: Synonyms = "first"
    names: str | None = None
    extension: str = ".txt"

    def __post_init__(self) -> None:
        check_template(self.template)
        if not self.extension.startswith("."):
            raise ValueError(f"extension must begin with a dot, got '{self.extension}'")
        if self.synonyms not in ("first", "random", "all"):
            raise ValueError(f"synonyms must be first, random or all, got '{self.synonyms}'")


@dataclass(frozen=True)
class Buckets:
    """Aspect-ratio buckets: shapes of about one area, so that little of a picture is cut off.

    Args:
        size: side of the square; no bucket has more pixels.
        step: sides are multiples of it: at least what VAE and U-Net shrink by together.
        smallest: the shortest side; by default half of ``size``.
        time_ids: tell SDXL of the original size and the cut, ``cond["time_ids"]``.
    """

    size: int = 1024
    step: int = 64
    smallest: int | None = None
    time_ids: bool = False

    def of(self, rows: Any, config: DataConfig) -> BucketedImages:
        """The pictures of ``rows``, in these buckets."""
        shapes = bucket_sizes(self.size, self.step, self.smallest)
        return bucketed(rows, config, shapes, time_ids=self.time_ids)


@dataclass(frozen=True, eq=False)
class Captioned(DataSet):
    """Pictures (or their latents), each with a prompt.

    Attributes:
        images: the pictures, with or without labels.
        prompts: of each.
        tokenize: texts to ``[B, L]`` int64; without it, batches carry no tokens.
    """

    images: DataSet
    prompts: Prompts
    tokenize: Tokenize | None = None

    @property
    def name(self) -> str:
        """Name for reports."""
        return self.images.name

    @property
    def note(self) -> str:
        """What every figure made on it must say."""
        return self.images.note

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one picture."""
        return self.images.shape

    @property
    def num_classes(self) -> int | None:
        """Number of classes, None without labels."""
        return self.images.num_classes

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes, as they can be said where prompts are made of them."""
        if isinstance(self.prompts, ClassNamePrompts):
            return tuple(self.prompts.names)
        return self.images.class_names

    @property
    def labels(self) -> Tensor | None:
        """Labels ``[N]`` of the pictures, or None."""
        return self.images.labels

    @property
    def is_encoded(self) -> bool:
        """Whether they are latents already, which a codec passes on as they are."""
        return self.images.is_encoded

    @property
    def encoded(self) -> bool:  # until training asks for is_encoded
        """``is_encoded``."""
        return self.is_encoded

    @property
    def digest(self) -> str | None:
        """Hash of the pictures."""
        return self.images.digest

    def __len__(self) -> int:
        return len(self.images)

    def common_rows(self) -> Tensor:
        """Of the pictures."""
        return self.images.common_rows()

    def sampler(self, batch_size: int, seed: int) -> Sampler:
        """The order that the pictures ask for."""
        return self.images.sampler(batch_size, seed)

    def texts(self, indices: Tensor, generator: torch.Generator | None = None) -> list[str]:
        """The prompts at ``indices`` ``[B]``; of several captions one is drawn, else the first."""
        return sample_prompts(self.prompts, indices, generator)

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """The pictures, with ``cond["tokens"]`` ``[B, L]`` int64 of their prompts."""
        batch = self.images.batch(indices, generator)
        if self.tokenize is None:
            return batch
        tokens = self.tokenize(self.texts(indices, generator))
        named = tokens if isinstance(tokens, dict) else {"tokens": tokens}
        return dataclasses.replace(batch, cond={**(batch.cond or {}), **named})

    def tokenized(self, tokenize: Tokenize) -> "Captioned":
        """The same with a tokenizer."""
        return dataclasses.replace(self, tokenize=tokenize)


def load_captioned(
    config: DataConfig,
    captions: Captions | None = None,
    tokenize: Tokenize | None = None,
    buckets: Buckets | None = None,
) -> Captioned:
    """The pictures that ``config`` names with their prompts.

    Args:
        config: as for pictures alone; also ``imagenet-1k``, and ``coco``, whose path is the folder
            with COCO's own files.
        captions: where prompts come from.
        tokenize: texts to tokens.
        buckets: aspect-ratio buckets; without, every picture is cut to a square.

    Raises:
        ValueError: what ``load_images`` raises; no such column (the error names those there are);
            a picture without a text file; nothing that could be said.
    """
    captions = captions or Captions()
    if config.name in ("digits", "fashion_mnist"):
        if buckets is not None:
            raise ValueError(f"{config.name} has pictures of one size, which need no buckets")
        images = load_images(config)
        return Captioned(images, _of_classes(images, captions, config), tokenize)
    hint = HINTS.get(config.name, "or set data.path to a local copy")
    rows = coco_rows(config) if config.name == "coco" else open_rows(config, hint)
    images = images_of(rows, config) if buckets is None else buckets.of(rows, config)
    return Captioned(images, prompts_of(rows, images, captions, config), tokenize)


def prompts_of(rows: Any, images: DataSet, captions: Captions, config: DataConfig) -> Prompts:
    """The prompts of ``rows``, from the column, the files or the classes that there are."""
    column = caption_column(rows, captions.column)
    if column is not None:
        return _written(rows, column, len(images))
    if files := _beside(rows, columns(rows, config)[0], captions.extension, len(images)):
        return SidecarCaptions(files)
    if images.num_classes is None:
        raise ValueError(
            f"{config.path or config.name} has nothing to say of its pictures: no column of "
            f"captions (columns: {', '.join(rows.features)}), no {captions.extension} files beside "
            f"them and no classes; name the column, or write a metadata.jsonl with lines like "
            f'{{"file_name": "a.png", "text": "..."}}'
        )
    return _of_classes(images, captions, config)


def caption_column(rows: Any, wanted: str | None) -> str | None:
    """The column of captions: that asked for, or one of a usual name; None where there is none.

    Raises:
        ValueError: the one asked for is not there, or not of texts; says which there are.
    """
    texts = [name for name, kind in rows.features.items() if _is_text(kind)]
    if wanted is None:
        return next((name for name in USUAL if name in texts), None)
    if wanted not in texts:
        state = "holds no texts" if wanted in rows.features else "is not there"
        raise ValueError(
            f"the caption column '{wanted}' {state}; columns: {', '.join(rows.features)}; of "
            f"texts: {', '.join(texts) or 'none'}"
        )
    return wanted


def _is_text(kind: Any) -> bool:
    inner = kind[0] if isinstance(kind, list) and kind else getattr(kind, "feature", kind)
    return _is_plain(inner)


def _is_plain(kind: Any) -> bool:
    return getattr(kind, "dtype", None) in ("string", "large_string")


def _written(rows: Any, column: str, count: int) -> ColumnCaptions:
    texts = rows.select_columns(column).select(range(count))
    cells = texts.with_format("arrow")[:][column]
    empty = cells.null_count
    if not _is_plain(texts.features[column]):  # lists of captions, of which one is drawn
        empty = sum(not cell or None in cell for cell in cells.to_pylist())
    if empty:
        raise ValueError(
            f"column '{column}' has {empty} of {count} rows without a caption; leave them out, or "
            f"write an empty text"
        )
    return ColumnCaptions(texts, column)


def _beside(rows: Any, column: str, extension: str, count: int) -> list[Path]:
    """The text files beside the pictures: one for each, or none at all."""
    cells = rows.select_columns(column).select(range(count)).with_format("arrow")[:][column]
    paths = [cell["path"] if cell["bytes"] is None else None for cell in _cells(cells)]
    if any(path is None for path in paths):
        return []
    files = [Path(str(path)).with_suffix(extension) for path in paths]
    there = [file.is_file() for file in files]
    if not any(there):
        return []
    if not all(there):
        raise ValueError(
            f"{there.count(False)} of {count} pictures have no caption, such as "
            f"{files[there.index(False)]}; write one, empty if nothing is to be said"
        )
    return files


def _cells(column: Any) -> Any:
    """Cells with the bytes of a picture left where they are: only whether there are some."""
    for chunk in column.chunks:
        paths, inside = chunk.field("path").to_pylist(), chunk.field("bytes").is_valid()
        for path, has in zip(paths, inside.to_pylist(), strict=True):
            yield {"path": path, "bytes": has or None}


def _of_classes(images: Any, captions: Captions, config: DataConfig) -> ClassNamePrompts:
    if images.num_classes is None:
        raise ValueError(f"{images.name} is without labels, so there are no class names to say")
    folder = Path(config.path) if config.path else None
    names = load_class_names(images.class_names, captions.names, folder)
    return ClassNamePrompts(all_labels(images), names, captions.template, captions.synonyms)
