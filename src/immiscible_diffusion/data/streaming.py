"""Data sets larger than the disk: shards read from start to end, shuffled in a buffer."""

import warnings
import zlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import count, islice
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from immiscible_diffusion.data.base import forward
from immiscible_diffusion.data.captions import Captioned, Captions, add_tokens
from immiscible_diffusion.data.hf_images import load_arguments
from immiscible_diffusion.data.image_decoding import decode_image
from immiscible_diffusion.data.images import ImageSet, draw_flips, to_batch
from immiscible_diffusion.data.load import DataConfig
from immiscible_diffusion.data.prompts import ClassNamePrompts, ListCaptions, Tokenize, load_class_names, read_names
from immiscible_diffusion.data.sampler import check_split
from immiscible_diffusion.data.shard_readers import (
    Sample,
    Shard,
    ShardEndError,
    ShardError,
    no_sample_of,
    read_tar,
    table_shards,
)
from immiscible_diffusion.utils.background import prefetch_iterator
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.random import RandomStreams, keyed_generator

T = TypeVar("T")
Place = tuple[int, int, int, int]  # epoch; shard and row at which a block of the shuffle begins; samples taken of it
PlaceKey = tuple[int, int, int, int, int, int]  # seed, rank, world, samples taken; shards and checksum of their names
NUM_DECODERS = 4
PLACES_KEPT = 100  # of the last micro-batches; those that wait for a step are fewer
NUM_IN_MEMORY = 1000  # first images of a stream, for validation and previews


@dataclass(frozen=True, eq=False)
class Stream:
    """Images with prompts that are read in a shuffled order, and cannot be addressed by index.

    The order is a function of the seed and the number of ranks; each reads every sample of its shards once an epoch.
    """

    config: DataConfig  # name, size, channels, flip, shuffle buffer, and what to do with errors
    shards: Mapping[str, Shard]  # by the names by which a resumed stream knows them
    tokenize: Tokenize | None = None  # texts to ``[B, L]`` int64, or None
    classes: ClassNamePrompts | None = None  # prompts of the classes, or None
    skipped: list[str] = field(default_factory=list)  # what this process skipped so far
    places: dict[PlaceKey, Place] = field(default_factory=dict)  # where the stream resumes after the last batches

    @property
    def name(self) -> str:
        """Name for reports."""
        return self.config.path or self.config.name

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes, or their numbers, None where they are not known."""
        if self.classes:
            return tuple(self.classes.names)
        number = self.config.num_classes if self.config.labels else None
        return tuple(map(str, range(number))) if number else None

    @cached_property
    def _shard_set(self) -> tuple[int, int]:
        """How many shards, and a checksum of their names without folders, which may have another path when resumed."""
        return len(self.shards), zlib.crc32("\n".join(name.rpartition("/")[2] for name in self.shards).encode())

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
        if (number := len(self.shards)) < world:
            raise ValueError(
                f"{self.name} has {number} shard{'s' * (number > 1)} for {world} processes, each of which "
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
        now = (world, *self._shard_set)
        place = self.places.get((seed, rank, world, taken, *self._shard_set))
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
            order = torch.randperm(len(self.shards), generator=keyed_generator(seed, epoch, "shards"))
            own = order[rank::world].tolist()
            source = self._intact(self._read(own, epoch, shard, row))
            block = list(islice(source, self.config.shuffle_buffer))
            if not block and not (shard or row):
                raise ValueError(f"{self.name}: {no_sample_of([list(self.shards)[number] for number in own])}")
            if not block or block[0].place[:3] != (epoch, shard, row):
                taken = 0  # a shard was damaged since: this is another block than the one that samples were taken of
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
        shards = list(self.shards.values())
        for position in range(shard, len(numbers)):
            for index, item in enumerate(shards[numbers[position]]()):
                if index >= row or isinstance(item, ShardEndError):  # which before ``row`` is damage since
                    yield item if isinstance(item, ShardError) else replace(item, place=(epoch, position, index, 0))
            row = 0

    def _decoded(
        self, samples: Iterator[Sample], ahead: int, pool: ThreadPoolExecutor
    ) -> Iterator[tuple[Tensor, Sample]]:
        """Intact images with their samples, of which ``ahead`` are read and decoded before they are asked for."""

        def in_order() -> Iterator[tuple[Tensor, Sample] | ShardError]:
            futures = (pool.submit(self._decode, sample) for sample in samples)
            pending = deque(islice(futures, ahead))
            while pending:
                decoded = pending.popleft().result()
                pending.extend(islice(futures, 1))
                yield decoded

        return self._intact(in_order())

    def _decode(self, sample: Sample) -> tuple[Tensor, Sample] | ShardError:
        config, mode = self.config, "L" if self.config.channels == 1 else "RGB"
        if self.tokenize is not None and not self.texts_of(sample):
            of_class = "" if sample.label is None else f" with a name, as {sample.label} in --captions.names FILE"
            return ShardError(f"{sample.cell.get('path') or self.name} has no caption and no class{of_class}")
        try:
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
            rest = ", and the rest of the shard" if isinstance(item, ShardEndError) else ""
            warnings.warn(f"skipped ({len(self.skipped)} so far{rest}): {item}", stacklevel=2)

    def _batch(self, decoded: list[tuple[Tensor, Sample]], generator: torch.Generator) -> Batch:
        images, samples = zip(*decoded, strict=True)
        flips = draw_flips(len(samples), self.config.flip, generator)
        labels, number = _labels(samples), self.config.num_classes
        if labels is not None and number and not 0 <= int(labels.min()) <= int(labels.max()) < number:
            raise ValueError(f"{self.name}: labels {labels.tolist()} are not all of 0 to data.num_classes - 1")
        batch = to_batch(torch.stack(images), labels, 255, flips)
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

    batches = forward("stream.batches")
    state_dict = forward("stream.state_dict")
    load_state_dict = forward("stream.load_state_dict")

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
        raise ValueError(f"{stream.name}: {no_sample_of(list(stream.shards))}")
    images, samples = zip(*first, strict=True)
    labels, names = _labels(samples), stream.class_names
    if labels is not None and names is None:
        if config.labels and captions is None:
            text = f"labels of {stream.name} have no names, and are not used: set data.num_classes to their number"
            warnings.warn(text, stacklevel=2)
        labels = None
    names = None if labels is None else names
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
    arguments = load_arguments(replace(config, stream=True))
    shards: Mapping[str, Shard]
    if arguments["path"] == "webdataset":
        shards, names = {name: partial(read_tar, name) for name in arguments["data_files"][config.split]}, None
    else:
        shards, names = table_shards(config, arguments, captions.column)
    if captions.names:
        names = read_names(Path(captions.names))
    classes = None
    if config.labels and names:
        names = load_class_names(names, None, Path(config.path) if config.path else None)
        classes = ClassNamePrompts(torch.arange(len(names)), names, captions.template, captions.synonyms)
        if config.num_classes not in (None, len(names)):
            raise ValueError(f"data.num_classes is {config.num_classes}, and {len(names)} classes have names")
    return Stream(config, shards, tokenize, classes)
