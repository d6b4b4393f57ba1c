"""Data sets larger than the disk: shards read from start to end, shuffled in a buffer.

Tables (parquet files, sets of the hub) are streamed by the ``datasets`` library. Its reader of tar
files takes a damaged header for the end of a file and expects the same members of every sample, so
tar shards are read here, where every loss of data is an error that names the shard.
"""

import dataclasses
import glob
import gzip
import json
import re
import tarfile
import warnings
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import torch
from torch import Tensor

from immiscible_diffusion.data.captions import Captioned, Captions, caption_column
from immiscible_diffusion.data.hf_images import columns, keep_encoded, load_arguments
from immiscible_diffusion.data.image_decoding import decode_image
from immiscible_diffusion.data.images import ImageSet, draw_flips, to_batch
from immiscible_diffusion.data.load import DataConfig
from immiscible_diffusion.data.prompts import (
    ClassNamePrompts,
    ListCaptions,
    Tokenize,
    load_class_names,
)
from immiscible_diffusion.data.sampler import check_split
from immiscible_diffusion.utils.background import prefetch_iterator
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.optional_deps import require_extra
from immiscible_diffusion.utils.random import RandomStreams, keyed_generator

NUM_DECODERS = 4
NUM_IN_MEMORY = 1000  # first images of a stream, for validation and previews
IMAGES = ("png", "jpg", "jpeg", "webp", "bmp")
TEXTS = ("txt", "text", "caption")
JSON_TEXTS = ("caption", "text", "prompt")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class ShardError(ValueError):
    """A sample cannot be read; with ``rest_lost``, nor what follows it in its shard."""

    def __init__(self, message: str, *, rest_lost: bool = False) -> None:
        super().__init__(message)
        self.rest_lost = rest_lost


@dataclass(frozen=True)
class Sample:
    """One image of a stream, still encoded: ``bytes`` or ``path``, its captions and its class."""

    cell: dict[str, Any]
    texts: tuple[str, ...] = ()
    label: int | None = None


@dataclass(frozen=True)
class Shards:
    """A set in pieces; ``read(name)`` yields a shard's samples, or errors in their place."""

    names: Sequence[str]
    read: Callable[[int], Iterator[Sample | ShardError]]


@dataclass(frozen=True, eq=False)
class Stream:
    """Images with prompts that are read in a shuffled order, and cannot be addressed by index.

    A resumed run continues with other data than it would have seen: exact resume needs a data set
    that can be addressed. Two runs with one seed see the same data from their start.

    Attributes:
        shards: where they come from.
        shape: (C, H, W), to which every image is resized and cropped.
        name: for reports.
        tokenize: texts to ``[B, L]`` int64, or None.
        classes: prompts of the classes, or None.
        shuffle_buffer: number of samples that the next is drawn from.
        on_error: ``raise``, or ``skip`` what cannot be read, with a warning.
        flip: mirror left and right at random.
        skipped: what this process skipped so far.
    """

    shards: Shards
    shape: tuple[int, ...]
    name: str
    tokenize: Tokenize | None = None
    classes: ClassNamePrompts | None = None
    shuffle_buffer: int = 1000
    on_error: Literal["raise", "skip"] = "raise"
    flip: bool = False
    skipped: list[str] = field(default_factory=list)

    def batches(
        self,
        batch_size: int,
        seed: int,
        *,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        gradient_accumulation_steps: int = 1,
        ahead: int = 2,
    ) -> Generator[Batch, None, None]:
        """The micro-batches of one rank from step ``start`` on, without an end.

        A rank reads its part of the shards in a shuffle of the epoch, which also depends on
        ``start``. Arguments as for ``sampler.batches``.

        Raises:
            ValueError: fewer shards than ranks, or the batch does not divide; at ``next``, what
                cannot be read, by name, unless it is skipped.
        """
        check_split(batch_size, world * gradient_accumulation_steps)
        if len(self.shards.names) < world:
            raise ValueError(
                f"{self.name} has {len(self.shards.names)} shards for {world} processes, each of "
                f"which needs one; write more and smaller shards"
            )
        size = batch_size // (world * gradient_accumulation_steps)
        chunks = range(rank, world * gradient_accumulation_steps, world)

        def load() -> Generator[Batch, None, None]:
            shuffled, step = self._shuffled(seed, start, rank, world), start
            with ThreadPoolExecutor(NUM_DECODERS, "decode") as pool:
                decoded = self._decoded(shuffled, size, pool)
                while True:
                    for chunk in chunks:
                        generator = RandomStreams(seed, step, chunk).augment
                        yield self._batch(list(islice(decoded, size)), generator)
                    step += 1

        if not ahead:
            return load()
        return prefetch_iterator(load(), ahead + 1, name="stream", finish=False)

    def first(self, count: int) -> list[tuple[Tensor, Sample]]:
        """Up to ``count`` samples in the order of the shards, with their bytes ``[C, H, W]``."""
        numbers = range(len(self.shards.names))
        samples = (sample for number in numbers for sample in self._read(number))
        with ThreadPoolExecutor(NUM_DECODERS, "decode") as pool:
            return list(self._decoded(islice(samples, count), NUM_DECODERS, pool))

    def texts_of(self, sample: Sample) -> Sequence[str]:
        """Captions of a sample, else prompts of its class; may be empty."""
        if sample.texts or self.classes is None or sample.label is None:
            return sample.texts
        return self.classes.of_class(sample.label)

    def _shuffled(self, seed: int, start: int, rank: int, world: int) -> Iterator[Sample]:
        generator = keyed_generator(seed, start, rank, "buffer")
        buffer: list[Sample] = []
        for sample in self._epochs(seed, start, rank, world):
            if len(buffer) < self.shuffle_buffer:
                buffer.append(sample)
                continue
            index = int(torch.randint(len(buffer), (), generator=generator))
            chosen, buffer[index] = buffer[index], sample
            yield chosen

    def _epochs(self, seed: int, start: int, rank: int, world: int) -> Iterator[Sample]:
        epoch = 0
        while True:
            generator = keyed_generator(seed, start, epoch, "shards")
            order = torch.randperm(len(self.shards.names), generator=generator).tolist()
            count = 0
            for shard in order[rank::world]:
                for sample in self._read(shard):
                    count += 1
                    yield sample
            if not count:
                raise ValueError(f"{self.name}: no sample of this process's shards can be read")
            epoch += 1

    def _read(self, shard: int) -> Iterator[Sample]:
        """The samples of a shard that can be read."""
        for sample in self.shards.read(shard):
            if isinstance(sample, ShardError):
                self._skip(sample)
            else:
                yield sample

    def _decoded(
        self, samples: Iterator[Sample], size: int, pool: ThreadPoolExecutor
    ) -> Iterator[tuple[Tensor, Sample]]:
        """Images with their samples, ``size`` decoded at a time, without those that are broken."""
        while chunk := list(islice(samples, size)):
            for sample, image in zip(chunk, pool.map(self._decode, chunk), strict=True):
                if isinstance(image, ShardError):
                    self._skip(image)
                else:
                    yield image, sample

    def _decode(self, sample: Sample) -> Tensor | ShardError:
        if self.tokenize is not None and not self.texts_of(sample):
            return ShardError(f"{sample.cell.get('path') or self.name} has no caption and no class")
        try:
            return decode_image(sample.cell, "L" if self.shape[0] == 1 else "RGB", self.shape[1])
        except ValueError as error:
            return ShardError(str(error))

    def _skip(self, error: ShardError) -> None:
        if self.on_error == "raise":
            raise ValueError(
                f'{error}; repair or remove it, or set on_error="skip" to continue without it'
            ) from error
        self.skipped.append(str(error))
        rest = ", and the rest of the shard" if error.rest_lost else ""
        warnings.warn(f"skipped ({len(self.skipped)} so far{rest}): {error}", stacklevel=2)

    def _batch(self, decoded: list[tuple[Tensor, Sample]], generator: torch.Generator) -> Batch:
        images, samples = zip(*decoded, strict=True)
        labels = [sample.label for sample in samples]
        known = torch.tensor(labels) if all(label is not None for label in labels) else None
        flips = draw_flips(len(samples), self.flip, generator)
        batch = to_batch(torch.stack(images), known, 255, flips)
        if self.tokenize is None:
            return batch
        choices = [self.texts_of(sample) for sample in samples]
        tokens = self.tokenize(
            [texts[int(torch.rand((), generator=generator) * len(texts))] for texts in choices]
        )
        named = tokens if isinstance(tokens, dict) else {"tokens": tokens}
        return Batch(batch.data, {**(batch.cond or {}), **named})


@dataclass(frozen=True, eq=False)
class StreamedImages(Captioned):
    """The first images of a stream, in memory, and the stream, from which training reads.

    Whatever is addressed by index uses the first images: validation, previews, moments, the
    distribution of the noise, and evaluation.
    """

    stream: Stream | None = None

    def batches(self, batch_size: int, seed: int, **options: int) -> Generator[Batch, None, None]:
        """The micro-batches of the stream; arguments as for ``Stream.batches``."""
        assert self.stream is not None
        return self.stream.batches(batch_size, seed, **options)

    def tokenized(self, tokenize: Tokenize) -> "StreamedImages":
        """The same with a tokenizer, in the stream too."""
        assert self.stream is not None
        stream = dataclasses.replace(self.stream, tokenize=tokenize)
        return dataclasses.replace(self, tokenize=tokenize, stream=stream)


def load_stream(
    config: DataConfig, captions: Captions | None = None, tokenize: Tokenize | None = None
) -> StreamedImages:
    """The stream that ``config`` names, with its first ``config.max_samples`` (1,000) images.

    Args:
        config: as for ``open_stream``.
        captions: where prompts come from.
        tokenize: texts to tokens.

    Raises:
        ValueError: what ``open_stream`` raises, or no image can be read.
    """
    stream = open_stream(config, captions, tokenize)
    first = stream.first(config.max_samples or NUM_IN_MEMORY)
    if not first:
        raise ValueError(f"{stream.name}: no image can be read")
    images, samples = zip(*first, strict=True)
    labels = [sample.label for sample in samples]
    labeled = stream.classes is not None and all(label is not None for label in labels)
    dataset = ImageSet(
        torch.stack(images),
        stream.name,
        torch.tensor(labels) if labeled else None,
        class_names=tuple(stream.classes.names) if labeled and stream.classes else None,
        note=f"a stream, of which the first {len(images):,} images are in memory",
    )
    prompts = ListCaptions([list(stream.texts_of(sample)) for sample in samples])
    return StreamedImages(dataset, prompts, tokenize, stream)


def open_stream(
    config: DataConfig, captions: Captions | None = None, tokenize: Tokenize | None = None
) -> Stream:
    """A stream of what ``config`` names: tar shards, parquet files, or a set of the hub.

    Args:
        config: ``path`` is a .tar, a folder of them, a pattern with * or {00000..00099}, or an
            address; else what ``load_images`` takes. ``size`` is needed.
        captions: where prompts come from.
        tokenize: texts to tokens.

    Raises:
        ValueError: no size, no shards, no such column, or the hub out of reach.
    """
    captions = captions or Captions()
    if config.size is None:
        raise ValueError("a stream needs data.size, to which every image is resized")
    path, names = Path(config.path or ""), None
    folder_of_tars = path.is_dir() and any(is_tar(file.name) for file in path.iterdir())
    if config.path and (is_tar(config.path) or folder_of_tars):
        files = tar_names(config.path)
        shards = Shards(files, lambda number: read_tar(files[number]))
    else:
        shards, names = _table(config, captions)
    if captions.names:
        lines = Path(captions.names).read_text(encoding="utf-8").splitlines()
        names = [line.strip() for line in lines if line.strip()]
    classes = None
    if config.labels and names:
        names = load_class_names(names, None, Path(config.path) if config.path else None)
        numbers = torch.arange(len(names))
        classes = ClassNamePrompts(numbers, names, captions.template, captions.synonyms)
    return Stream(
        shards,
        (config.channels or 3, config.size, config.size),
        config.path or config.name,
        tokenize,
        classes,
        config.shuffle_buffer,
        config.on_error,
        config.flip,
    )


# -- tables -------------------------------------------------------------------------------------


def _table(config: DataConfig, captions: Captions) -> tuple[Shards, Sequence[str] | None]:
    """The shards of a streamed table, and the names of its classes."""
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
            f"{config.name} does not declare its columns ({', '.join(features)}); download it"
        )
    rows = keep_encoded(rows)
    image, label = columns(rows, config)
    text = caption_column(rows, captions.column)
    class_names = getattr(rows.features[label], "names", None) if label else None
    name = config.path or config.name
    names = [f"{name}, shard {number}" for number in range(rows.num_shards)]

    def read(number: int) -> Iterator[Sample | ShardError]:
        try:
            for row in rows.shard(rows.num_shards, number):
                texts = row[text] if text else ()
                texts = (texts,) if isinstance(texts, str) else tuple(texts or ())
                yield Sample(row[image], texts, row[label] if label else None)
        except Exception as error:  # noqa: BLE001  every reader has its own
            yield ShardError(f"{names[number]} cannot be read to its end: {error}", rest_lost=True)

    return Shards(names, read), class_names


# -- tar files ----------------------------------------------------------------------------------


def is_tar(name: str) -> bool:
    """Whether a file is named as a tar shard."""
    return name.endswith((".tar", ".tar.gz", ".tgz"))


def tar_names(path: str) -> list[str]:
    """The shards that ``path`` names: a file, a folder, a pattern with * or {00000..00099}.

    Raises:
        ValueError: there are none.
    """
    if match := _RANGE.search(path):
        first, last, width = int(match[1]), int(match[2]), len(match[1])
        numbers = (f"{number:0{width}d}" for number in range(first, last + 1))
        return [name for n in numbers for name in tar_names(_RANGE.sub(n, path, count=1))]
    if "://" in path:
        return [path]
    if Path(path).is_dir():
        names = [str(file) for file in Path(path).rglob("*") if is_tar(file.name)]
    else:
        names = [name for name in glob.glob(path) if is_tar(name)]  # noqa: PTH207
    if not names:
        raise ValueError(f"there are no tar shards at {path}")
    return sorted(names)


def read_tar(name: str) -> Iterator[Sample | ShardError]:
    """The samples of a tar shard in webdataset's layout: consecutive members of one stem.

    ``.png``, ``.jpg``, ``.webp``: the image; ``.txt``: its caption; ``.cls``: its class;
    ``.json``: an object with ``caption`` (or ``text``, ``prompt``) and ``label``. ``name`` is a
    file, or an address that fsspec opens (https://, s3://).
    """
    try:
        for key, members in _members(name):
            yield _to_sample(f"{key} in {name}", members)
    except (tarfile.TarError, OSError, EOFError, zlib.error, ShardError) as error:
        yield ShardError(f"{name} cannot be read to its end: {error}", rest_lost=True)


class _Tail:
    """A file that is read once, of which the last bytes can be read again."""

    def __init__(self, file: Any) -> None:
        self.file, self.position, self.last = file, 0, b""

    def read(self, size: int) -> bytes:
        content: bytes = self.file.read(size)
        self.position += len(content)
        self.last = (self.last + content)[-4 * tarfile.RECORDSIZE :]
        return content

    def block(self, offset: int) -> bytes:
        """The tar block at ``offset``, which was read a moment ago."""
        start = offset - (self.position - len(self.last))
        return self.last[start : start + tarfile.BLOCKSIZE] if start >= 0 else b""


def _open(name: str) -> Any:
    file: Any
    if "://" not in name:
        file = Path(name).open("rb")  # noqa: SIM115
    else:
        with require_extra("train", "reading shards over a network"):
            import fsspec
        file = fsspec.open(name, "rb").open()
    return gzip.GzipFile(fileobj=file) if name.endswith(("gz", "tgz")) else file


def _members(name: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Consecutive members of one stem together, by extension."""
    stem, members = "", dict[str, bytes]()
    with _open(name) as file:
        tail = _Tail(file)
        with tarfile.open(fileobj=tail, mode="r|") as tar:  # type: ignore[call-overload]
            for info in tar:
                if not info.isfile():
                    continue
                path = PurePosixPath(info.name)
                first, _, extension = path.name.partition(".")
                this = str(path.with_name(first)) if first else str(path)
                if this != stem and members:
                    yield stem, members
                    members = {}
                stem = this
                content = tar.extractfile(info)
                members[extension.lower()] = content.read() if content else b""
            # tarfile takes a damaged header for the end, which is marked by a block of zeros.
            if tail.block(tar.offset) != bytes(tarfile.BLOCKSIZE):
                raise ShardError(f"cut short or damaged at byte {tar.offset}")
    if members:
        yield stem, members


def _to_sample(where: str, members: dict[str, bytes]) -> Sample | ShardError:
    image = next((members[extension] for extension in IMAGES if extension in members), None)
    if image is None:
        return ShardError(f"{where} has no image (it has {', '.join(members)})")
    try:
        texts = tuple(" ".join(members[name].decode().split()) for name in TEXTS if name in members)
        label = int(members["cls"]) if "cls" in members else None
        record = json.loads(members.get("json", b"{}"))
        texts = texts or next((_texts(record[k]) for k in JSON_TEXTS if record.get(k)), ())
        label = record.get("label") if label is None else label
        if label is not None and type(label) is not int:
            raise ValueError(f"the label {label!r} is no integer")
    except (ValueError, AttributeError, TypeError) as error:
        return ShardError(f"{where} has a caption or class that cannot be read: {error}")
    return Sample({"bytes": image, "path": where}, texts, label)


def _texts(value: Any) -> tuple[str, ...]:
    """A caption, or several."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"a caption is a text or a list of texts, got {value!r}")
    return tuple(texts)
