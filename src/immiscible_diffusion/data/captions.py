"""Images with prompts: captions of a table or of text files, or the names of their classes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from immiscible_diffusion.data.aspect_buckets import Buckets
from immiscible_diffusion.data.base import DataSet, forward
from immiscible_diffusion.data.hf_images import HINT, columns, images_from_rows, open_rows
from immiscible_diffusion.data.load import DataConfig, check_name, coco_rows, load_images
from immiscible_diffusion.data.prompts import (
    ClassNamePrompts,
    Prompts,
    StoredCaptions,
    Synonyms,
    Tokenize,
    check_template,
    load_class_names,
    sample_prompts,
)
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.checks import check_fields

CAPTION_COLUMNS = ("text", "caption", "captions", "prompt", "sentences")
IMAGENET_HINT = (
    "go online once, for which its terms must be accepted at "
    "huggingface.co/datasets/ILSVRC/imagenet-1k and `hf auth login` be run; or set data.path to a "
    "folder with its parquet files, or with train/n01440764/*.JPEG and LOC_synset_mapping.txt"
)


class NoCaptionsError(ValueError):
    """A data set has neither captions nor classes."""


@dataclass(frozen=True)
class Captions:
    """Where the prompts come from."""

    # column of the captions; by default one of the usual names (text, caption, captions, prompt,
    # sentences), else text files beside the images, else the class names
    column: str | None = None
    template: str = "{label}"  # prompt for a class name, with {label} in place of the name
    # which synonyms of a class name such as "tench, Tinca tinca": first, one at random each time, or all as written
    synonyms: Synonyms = "first"
    names: str | None = None  # a file of class names, one a line, if those of the data set are ids
    extension: str = ".txt"  # extension of text files beside the images

    def __post_init__(self) -> None:
        check_template(self.template)
        if not self.extension.startswith("."):
            raise ValueError(f"extension must begin with a dot, got '{self.extension}'")
        check_fields(self)

    def of_classes(self, images: DataSet, folder: str | None) -> ClassNamePrompts:
        """Prompts of the class names of ``images``; NoCaptionsError if there are none."""
        if images.labels is None or images.class_names is None:
            raise NoCaptionsError(
                f"the data set {images.name} has neither captions nor labels with class names; give a Captioned"
            )
        names = load_class_names(images.class_names, self.names, Path(folder) if folder else None)
        return ClassNamePrompts(images.labels, names, self.template, self.synonyms)


def add_tokens(batch: Batch, tokenize: Tokenize, texts: Sequence[str]) -> Batch:
    """``batch`` with the tokens of its ``texts``, one for each sample, among the conditions."""
    tokens = tokenize(texts)
    named = tokens if isinstance(tokens, dict) else {"tokens": tokens}
    return replace(batch, cond={**(batch.cond or {}), **named})


@dataclass(frozen=True, eq=False)
class Captioned(DataSet):
    """Images (or their latents), each with a prompt."""

    images: DataSet  # with or without labels
    prompts: Prompts  # of each image
    tokenize: Tokenize | None = None  # texts to ``[B, L]`` int64; without it, batches carry no tokens

    name = forward("images.name")
    note = forward("images.note")
    shape = forward("images.shape")
    num_classes = forward("images.num_classes")
    labels = forward("images.labels")
    is_encoded = forward("images.is_encoded")
    digest = forward("images.digest")
    common_rows = forward("images.common_rows")
    sampler = forward("images.sampler")

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes, as they stand in prompts that are made of them."""
        return tuple(self.prompts.names) if isinstance(self.prompts, ClassNamePrompts) else self.images.class_names

    def __len__(self) -> int:
        return len(self.images)

    def texts(self, indices: torch.Tensor, generator: torch.Generator | None = None) -> list[str]:
        """The prompts at ``indices`` ``[B]``; one of several captions iff a generator is given."""
        return sample_prompts(self.prompts, indices, generator)

    @property
    def index_count(self) -> int:
        """That of the images."""
        return self.images.index_count

    def indexed(self, index: torch.Tensor) -> Batch:
        """The images, without tokens."""
        return self.images.indexed(index)

    def batch(self, indices: torch.Tensor, generator: torch.Generator | None = None) -> Batch:
        """The images, with ``cond["tokens"]`` ``[B, L]`` int64 of their prompts."""
        batch = self.images.batch(indices, generator)
        if self.tokenize is None:
            return batch
        return add_tokens(batch, self.tokenize, self.texts(indices, generator))

    def tokenized(self, tokenize: Tokenize) -> "Captioned":
        """The same with a tokenizer."""
        return replace(self, tokenize=tokenize)


def load_captioned(
    config: DataConfig,
    captions: Captions | None = None,
    tokenize: Tokenize | None = None,
    buckets: Buckets | None = None,
) -> Captioned:
    """The images that ``config`` names with their prompts; without ``buckets``, all of one size.

    Raises:
        ValueError: what ``load_images`` raises; no such column; an image without a text file; ``NoCaptionsError``.
    """
    if config.path is None:  # with which any name is good, as there are runs of such
        check_name(config.name)
    captions = captions or Captions()
    if config.name in ("digits", "fashion_mnist"):
        if buckets is not None:
            raise ValueError(f"{config.name} has images of one size, which need no buckets")
        images = load_images(config)
        return Captioned(images, captions.of_classes(images, config.path), tokenize)
    hint = IMAGENET_HINT if config.name == "imagenet-1k" else HINT
    rows = coco_rows(config) if config.name == "coco" else open_rows(config, hint)
    images = images_from_rows(rows, config) if buckets is None else buckets.images(rows, config)
    return Captioned(images, _prompts(rows, images, captions, config), tokenize)


def _prompts(rows: Any, images: DataSet, captions: Captions, config: DataConfig) -> Prompts:
    """The prompts of ``rows``: from a column, text files or the classes, whichever there are."""
    if column := caption_column(rows, captions.column):
        return _column_captions(rows, column, len(images))
    if files := _text_files(rows, columns(rows, config)[0], captions.extension, len(images)):
        return StoredCaptions(lambda row: [" ".join(files[row].read_text(encoding="utf-8").split())])
    if images.num_classes is None:
        raise NoCaptionsError(
            f"{config.path or config.name} has no prompts for its images: no column of captions "
            f"(columns: {', '.join(rows.features)}), no {captions.extension} files beside them and "
            f"no classes; name the column, or write a metadata.jsonl with lines like "
            f'{{"file_name": "a.png", "text": "..."}}'
        )
    return captions.of_classes(images, config.path)


def caption_column(rows: Any, name: str | None) -> str | None:
    """``name``, a column of texts (else ValueError), or by default the first with a usual name; None without one."""

    def element(kind: Any) -> Any:  # the type of a column, or of the elements of its lists
        return kind[0] if isinstance(kind, list) and kind else getattr(kind, "feature", kind)

    texts = [column for column, kind in rows.features.items() if _is_text(element(kind))]
    if name is None:
        return next((column for column in CAPTION_COLUMNS if column in texts), None)
    if name not in texts:
        state = "holds no texts" if name in rows.features else "is not there"
        raise ValueError(
            f"the caption column '{name}' {state}; columns: {', '.join(rows.features)}; of texts: "
            f"{', '.join(texts) or 'none'}"
        )
    return name


def _is_text(kind: Any) -> bool:
    return getattr(kind, "dtype", None) in ("string", "large_string")


def _column_captions(rows: Any, column: str, count: int) -> StoredCaptions:
    texts = rows.select_columns(column).select(range(count))
    cells = texts.with_format("arrow")[:][column]
    empty = cells.null_count
    if not _is_text(texts.features[column]):  # lists of captions
        empty = sum(not cell or None in cell for cell in cells.to_pylist())
    if empty:
        raise ValueError(
            f"column '{column}' has {empty} of {count} rows without a caption; leave them out, or write an empty text"
        )

    def choices(row: int) -> Sequence[str]:
        value = texts[row][column]
        return [value] if isinstance(value, str) else value

    return StoredCaptions(choices)


def _text_files(rows: Any, column: str, extension: str, count: int) -> list[Path]:
    """The text files beside the images: one for each, or none at all."""
    cells = rows.select_columns(column).select(range(count)).with_format("arrow")[:][column]
    files: list[Path] = []
    for chunk in cells.chunks:  # without reading the bytes of images
        paths, embedded = chunk.field("path").to_pylist(), chunk.field("bytes").is_valid()
        if None in paths or any(embedded.to_pylist()):
            return []
        files += [Path(path).with_suffix(extension) for path in paths]
    absent = [file for file in files if not file.is_file()]
    if len(absent) == len(files):
        return []
    if absent:
        raise ValueError(
            f"{len(absent)} of {count} images have no caption, such as {absent[0]}; write one (the file may be empty)"
        )
    return files
