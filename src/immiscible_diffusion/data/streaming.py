"""Data sets larger than the disk: shards read from start to end, shuffled in a buffer.

Tables (parquet files, sets of the hub) are streamed by the ``datasets`` library. Its reader of tar
files takes a damaged header for the end of a file and expects the same members of every sample, so
tar shards are read here, where every loss of data is an error that names the shard.
"""

import json
import tarfile
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import count, groupby, islice
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import torch
from torch import Tensor

from immiscible_diffusion.data.captions import Captioned, Captions, add_tokens, caption_column
from immiscible_diffusion.data.hf_images import columns, load_arguments, open_rows
from immiscible_diffusion.data.image_decoding import decode_image
from immiscible_diffusion.data.images import ImageSet, draw_flips, to_batch
from immiscible_diffusion.data.load import DataConfig
from immiscible_diffusion.data.prompts import ClassNamePrompts, ListCaptions, Tokenize, load_class_names, read_names
from immiscible_diffusion.data.sampler import check_split
from immiscible_diffusion.utils.background import prefetch_iterator
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.optional_deps import require_extra
from immiscible_diffusion.utils.random import RandomStreams, keyed_generator

T = TypeVar("T")
Place = tuple[int, int, int, int]  # epoch; shard and row at which a block of the shuffle begins; samples taken of it
PlaceKey = tuple[int, int, int, int, int, int]  # seed, rank, world, samples taken; shards and checksum of their names
NUM_DECODERS = 4
PLACES_KEPT = 100  # of the last micro-batches; those that wait for a step are fewer
NUM_IN_MEMORY = 1000  # first images of a stream, for validation and previews
IMAGES = ("png", "jpg", "jpeg", "webp", "bmp")
TEXTS = ("txt", "text", "caption")
JSON_TEXTS = ("caption", "text", "prompt")


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
    place: Place = (0, 0, 0, 0)  # where it was read; once shuffled, where the stream resumes after it


Shard = Callable[[], Iterator[Sample | ShardError]]


@dataclass(frozen=True, eq=False)
class Stream:
    """Images with prompts that are read in a shuffled order, and cannot be addressed by index.

    The order is a function of the seed and the number of ranks; each reads every sample of its shards once an epoch.
    """

    config: DataConfig  # name, size, channels, flip, shuffle buffer, and what to do with errors
    shards: Sequence[Shard]  # each yields its samples when called, or errors in their place
    tokenize: Tokenize | None = None  # texts to ``[B, L]`` int64, or None
    classes: ClassNamePrompts | None = None  # prompts of the classes, or None
    shard_names: Sequence[str] = ()  # one per shard, by which a resumed stream knows them
    skipped: list[str] = field(default_factory=list)  # what this process skipped so far
    # by seed, rank, world, the number of samples that were taken, and the shards: where the stream resumes
    places: dict[PlaceKey, Place] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name for reports."""
        return self.config.path or self.config.name

    @cached_property
    def _shard_set(self) -> tuple[int, int]:
        """How many shards, and a checksum of their names without folders, which may have another path when resumed."""
        return len(self.shards), zlib.crc32("\n".join(name.rpartition("/")[2] for name in self.shard_names).encode())

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
        num_workers: int = 0,
    ) -> Generator[Batch, None, None]:
        """The micro-batches of one rank from step ``start`` on; options as of ``sampler.batches``.

        A rank reads its part of the shards, which are shuffled every epoch; ``num_workers`` threads decode, by default
        4. After ``load_state_dict`` reading begins near ``start``, else at the first sample, and nothing is decoded
        before ``start``. Of another number of ranks, or of other shards, the state is an epoch, which is left.

        Raises:
            ValueError: fewer shards than ranks, or the batch does not divide; at ``next``, what cannot be read.
        """
        parts = world * gradient_accumulation_steps
        check_split(batch_size, parts)
        if len(self.shards) < world:
            raise ValueError(
                f"{self.name} has {len(self.shards)} shards for {world} processes, each of which "
                f"needs one; write more and smaller shards"
            )
        size = batch_size // parts

        def load() -> Generator[Batch, None, None]:
            taken = start * batch_size // world
            samples = self._samples_after(seed, rank, world, taken)
            with ThreadPoolExecutor(num_workers or NUM_DECODERS, "decode") as pool:
                decoded = self._decoded(samples, size, pool)
                for step in count(start):
                    for chunk in range(rank, parts, world):
                        rows = list(islice(decoded, size))
                        taken += size
                        key = (seed, rank, world, taken, *self._shard_set)
                        self.places[key] = rows[-1][1].place
                        while len(self.places) > PLACES_KEPT:
                            del self.places[next(iter(self.places))]
                        yield self._batch(rows, RandomStreams(seed, step, chunk).augment)

        return prefetch_iterator(load(), ahead + 1, name="stream", finish=False) if ahead else load()

    def first(self, count: int) -> list[tuple[Tensor, Sample]]:
        """Up to ``count`` samples in the order of the shards, with their bytes ``[C, H, W]``."""
        samples = self._intact(self._read(range(len(self.shards))))
        with ThreadPoolExecutor(NUM_DECODERS, "decode") as pool:
            return list(self._decoded(islice(samples, count), NUM_DECODERS, pool))

    def texts_of(self, sample: Sample) -> Sequence[str]:
        """Captions of a sample, else prompts of its class; may be empty."""
        if sample.texts or self.classes is None or sample.label is None:
            return sample.texts
        return self.classes.of_class(sample.label)

    def state_dict(self) -> dict[PlaceKey, Place]:
        """Return where the stream resumes after each of the last batches."""
        return dict(self.places)

    def load_state_dict(self, state: dict[PlaceKey, Place]) -> None:
        """Let ``batches`` begin where a stream with this state would have gone on; of several ranks load every one."""
        # keys of before have no shards: they are taken for those of now
        self.places.update({(*key, *self._shard_set)[:6]: place for key, place in state.items()})

    def _samples_after(self, seed: int, rank: int, world: int, taken: int) -> Iterator[Sample]:
        """The shuffled samples of a rank without the first ``taken``."""
        place, now = self.places.get((seed, rank, world, taken, *self._shard_set)), (world, *self._shard_set)
        before = {(key[2], *key[4:]) for key in self.places if key[0] == seed}
        if taken and before and now not in before:
            place = (1 + max(self.places.values())[0], 0, 0, 0)
            texts = [
                f"{ranks} process{'es' * (ranks > 1)} from {count} shards (names: {names:08x})"
                for ranks, count, names in (*before, now)
            ]
            warnings.warn(f"{self.name} begins a new epoch: read by {', now by '.join(texts)}", stacklevel=2)
            self.places.clear()
        return islice(self._shuffled(seed, rank, world, place or (0, 0, 0, 0)), 0 if place else taken, None)

    def _shuffled(self, seed: int, rank: int, world: int, place: Place) -> Iterator[Sample]:
        """The samples of all epochs from ``place`` on, block by block; the next one is read as one is taken from."""
        first, shard, row, taken = place
        for epoch in count(first):
            order = torch.randperm(len(self.shards), generator=keyed_generator(seed, epoch, "shards")).tolist()
            source = self._intact(self._read(order[rank::world], epoch, shard, row))
            block = list(islice(source, self.config.shuffle_buffer))
            if not block:
                raise ValueError(f"{self.name}: no sample of this process's shards can be read")
            while block:
                begin = block[0].place[:3]
                generator = keyed_generator(seed, rank, *begin, "block")
                following = list(islice(source, taken))
                for number in torch.randperm(len(block), generator=generator)[taken:].tolist():
                    following += islice(source, 1)
                    taken += 1
                    yield replace(block[number], place=(*begin, taken))
                block, taken = following, 0
            shard = row = 0

    def _read(
        self, numbers: Sequence[int], epoch: int = 0, shard: int = 0, row: int = 0
    ) -> Iterator[Sample | ShardError]:
        """What the shards ``numbers`` hold, from a row of one of them on."""
        for position in range(shard, len(numbers)):
            for index, item in islice(enumerate(self.shards[numbers[position]]()), row, None):
                yield item if isinstance(item, ShardError) else replace(item, place=(epoch, position, index, 0))
            row = 0

    def _decoded(
        self, samples: Iterator[Sample], ahead: int, pool: ThreadPoolExecutor
    ) -> Iterator[tuple[Tensor, Sample]]:
        """Intact images with their samples, of which ``ahead`` are read and decoded before they are asked for."""

        def in_order() -> Iterator[tuple[Tensor, Sample] | ShardError]:
            pending = deque(pool.submit(self._decode, sample) for sample in islice(samples, ahead))
            while pending:
                decoded = pending.popleft().result()
                pending.extend(pool.submit(self._decode, sample) for sample in islice(samples, 1))
                yield decoded

        return self._intact(in_order())

    def _decode(self, sample: Sample) -> tuple[Tensor, Sample] | ShardError:
        if self.tokenize is not None and not self.texts_of(sample):
            return ShardError(f"{sample.cell.get('path') or self.name} has no caption and no class")
        mode = "L" if self.config.channels == 1 else "RGB"
        try:
            config = self.config
            return decode_image(sample.cell, mode, config.size, config.crop, config.resize), sample
        except ValueError as error:
            return ShardError(str(error))

    def _intact(self, items: Iterable[T | ShardError]) -> Iterator[T]:
        """``items`` without the errors, which are raised, or skipped with a warning."""
        for item in items:
            if not isinstance(item, ShardError):
                yield item
                continue
            if self.config.on_error == "raise":
                raise ValueError(f"{item}; --data.on_error skip leaves it out") from item
            self.skipped.append(str(item))
            rest = ", and the rest of the shard" if item.rest_lost else ""
            warnings.warn(f"skipped ({len(self.skipped)} so far{rest}): {item}", stacklevel=2)

    def _batch(self, decoded: list[tuple[Tensor, Sample]], generator: torch.Generator) -> Batch:
        images, samples = zip(*decoded, strict=True)
        flips = draw_flips(len(samples), self.config.flip, generator)
        batch = to_batch(torch.stack(images), _labels(samples), 255, flips)
        if self.tokenize is None:
            return batch
        texts = [all_[int(torch.rand((), generator=generator) * len(all_))] for all_ in map(self.texts_of, samples)]
        return add_tokens(batch, self.tokenize, texts)


def _labels(samples: Sequence[Sample]) -> Tensor | None:
    """``[B]`` int64, or None if not all samples have one."""
    labels = [sample.label for sample in samples]
    return None if None in labels else torch.tensor(labels)


@dataclass(frozen=True, eq=False)
class StreamedImages(Captioned):
    """The first images of a stream, in memory, and the ``stream``, from which training reads.

    All but training uses the first ones: previews, moments, the noise distribution, evaluation.
    """

    stream: Stream = field(kw_only=True)

    def batches(self, batch_size: int, seed: int, **options: int) -> Generator[Batch, None, None]:
        """The micro-batches of the stream; arguments as for ``Stream.batches``."""
        return self.stream.batches(batch_size, seed, **options)

    def state_dict(self) -> dict[Any, Any]:
        """That of the stream."""
        return self.stream.state_dict()

    def load_state_dict(self, state: dict[Any, Any]) -> None:
        """Load that of the stream."""
        self.stream.load_state_dict(state)

    def tokenized(self, tokenize: Tokenize) -> "StreamedImages":
        """The same with a tokenizer, in the stream too."""
        return replace(self, tokenize=tokenize, stream=replace(self.stream, tokenize=tokenize))


def load_stream(
    config: DataConfig, captions: Captions | None = None, tokenize: Tokenize | None = None
) -> StreamedImages:
    """The stream that ``config`` names, with its first ``config.max_samples`` (1,000) images; ValueError for none."""
    stream = open_stream(config, captions, tokenize)
    first = stream.first(config.max_samples or NUM_IN_MEMORY)
    if not first:
        raise ValueError(f"{stream.name}: no image can be read")
    images, samples = zip(*first, strict=True)
    labels = _labels(samples) if stream.classes else None
    names = tuple(stream.classes.names) if stream.classes and labels is not None else None
    note = f"a stream, of which the first {len(images):,} images are in memory"
    dataset = ImageSet(torch.stack(images), stream.name, labels, class_names=names, note=note)
    prompts = ListCaptions([list(stream.texts_of(sample)) for sample in samples])
    return StreamedImages(dataset, prompts, tokenize, stream=stream)


def open_stream(config: DataConfig, captions: Captions | None = None, tokenize: Tokenize | None = None) -> Stream:
    """A stream of what ``config`` names: tar shards, parquet files, or a set of the hub.

    Its ``path`` is one of ``shard_files``, else what ``load_images`` takes. ValueError for no size, no shards, no such
    column, or the hub out of reach.
    """
    captions = captions or Captions()
    if config.size is None:
        raise ValueError("a stream needs data.size, to which every image is resized")
    path, names = Path(config.path) if config.path else None, None
    arguments = load_arguments(replace(config, stream=True))
    shards: dict[str, Shard]
    if arguments["path"] == "webdataset":
        shards = {name: partial(read_tar, name) for name in arguments["data_files"][config.split]}
    else:
        shards, names = _table(config, captions, arguments)
    if captions.names:
        names = read_names(Path(captions.names))
    classes = None
    if config.labels and names:
        names = load_class_names(names, None, path)
        classes = ClassNamePrompts(torch.arange(len(names)), names, captions.template, captions.synonyms)
    return Stream(config, list(shards.values()), tokenize, classes, list(shards))


def _table(
    config: DataConfig, captions: Captions, arguments: dict[str, Any]
) -> tuple[dict[str, Shard], Sequence[str] | None]:
    """The shards of a streamed table by their names, and the names of its classes."""
    hint = "a stream of the hub needs a network all the time; or download it and set data.path"
    rows = open_rows(config, hint, arguments)
    image, label = columns(rows, config)
    text = caption_column(rows, captions.column)

    def read(number: int) -> Iterator[Sample | ShardError]:
        try:
            for row in rows.shard(rows.num_shards, number):
                texts = row[text] if text else ()
                texts = (texts,) if isinstance(texts, str) else tuple(texts or ())
                yield Sample(row[image], texts, row[label] if label else None)
        except Exception as error:  # noqa: BLE001  every reader has its own
            yield ShardError(
                f"{shards[number]} cannot be read to its end: {error}; repair or remove it", rest_lost=True
            )

    shards = arguments.get("data_files", {}).get(config.split, [])
    if len(shards) != rows.num_shards:
        shards = [f"{config.path or config.name}, shard {number}" for number in range(rows.num_shards)]
    by_name: dict[str, Shard] = {name: partial(read, number) for number, name in enumerate(shards)}
    return by_name, getattr(rows.features[label], "names", None) if label else None


def read_tar(name: str) -> Iterator[Sample | ShardError]:
    """The samples of a tar shard in webdataset's layout: consecutive members of one stem.

    ``.png``, ``.jpg``, ``.webp``: the image; ``.txt``: its caption; ``.cls``: its class;
    ``.json``: an object with ``caption`` (or ``text``, ``prompt``) and ``label``. ``name`` is a
    file, or an address that fsspec opens (https://, s3://).
    """
    with require_extra("train", "reading shards"):
        import fsspec
    compression = "gzip" if name.endswith("gz") else None
    try:
        with (
            fsspec.open(name, "rb", compression=compression) as file,
            tarfile.open(fileobj=file, mode="r|", tarinfo=_StrictHeader) as tar,
        ):
            for stem, group in groupby(filter(tarfile.TarInfo.isfile, tar), _stem):
                members = {_extension(info): tar.extractfile(info).read() for info in group}  # type: ignore[union-attr]
                yield _to_sample(f"{stem} in {name}", members)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        yield ShardError(f"{name} cannot be read to its end: {error}; repair or remove it", rest_lost=True)


class _StrictHeader(tarfile.TarInfo):
    """The header of a member; tarfile takes a damaged one for the end, here it is an error."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_StrictHeader":
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # zeros mark the end
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"cut short or damaged at byte {tar.offset}") from error


def _stem(info: tarfile.TarInfo) -> str:
    path = PurePosixPath(info.name)
    first = path.name.partition(".")[0]
    return str(path.with_name(first)) if first else str(path)


def _extension(info: tarfile.TarInfo) -> str:
    return PurePosixPath(info.name).name.partition(".")[2].lower()


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
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"a caption is a text or a list of texts, got {value!r}")
    return tuple(texts)
