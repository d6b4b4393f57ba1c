"""Data sets larger than the disk: read shard by shard, shuffled in a buffer, never addressed."""

import warnings
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

import torch
from torch import Tensor

from immiscible_diffusion.data.hf_images import Decoder
from immiscible_diffusion.data.images import draw_flips, to_batch
from immiscible_diffusion.data.prompts import ClassNamePrompts, Tokenize
from immiscible_diffusion.data.sampler import check_split
from immiscible_diffusion.data.shards import Sample, ShardError, Shards
from immiscible_diffusion.utils.background import prefetch_iterator
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.random import RandomStreams, keyed_generator

DECODERS = 4
OnError = Literal["raise", "skip"]


@dataclass(frozen=True, eq=False)
class Stream:
    """Pictures with prompts that come by, in an order that is shuffled but not addressable.

    A resumed run goes on with other data than it would have seen: exact resume is for data sets
    that can be addressed. Two runs of one seed, from their start, see the same.

    Attributes:
        shards: where they come from.
        decoder: rows to bytes ``[C, H, W]``.
        shape: (C, H, W).
        name: for reports.
        tokenize: texts to ``[B, L]`` int64, or None.
        classes: says what a label is called, or None.
        buffer: samples to draw the next from.
        on_error: ``raise``, or ``skip`` what cannot be read: it is told, and noted in ``skipped``.
        flip: mirror left and right at random.
        note: what every figure made on it must say.
        skipped: what was skipped so far, by this process.
    """

    shards: Shards
    decoder: Decoder
    shape: tuple[int, ...]
    name: str
    tokenize: Tokenize | None = None
    classes: ClassNamePrompts | None = None
    buffer: int = 1000
    on_error: OnError = "raise"
    flip: bool = False
    note: str = ""
    skipped: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.on_error not in ("raise", "skip") or self.buffer < 1:
            raise ValueError(
                f"expected on_error raise or skip and a buffer of at least 1, got "
                f"'{self.on_error}' and {self.buffer}"
            )

    @property
    def num_classes(self) -> int | None:
        """Number of classes, None if they are not named."""
        return None if self.classes is None else len(self.classes.names)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """One per class, or None."""
        return None if self.classes is None else tuple(self.classes.names)

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

        A process reads the shards that fall to it in a shuffle of the epoch, which also depends
        on ``start``. Arguments as for ``data.batches``.

        Raises:
            ValueError: fewer shards than processes, or the batch does not divide; at ``next``,
                what cannot be read, by name, unless it is skipped.
        """
        check_split(batch_size, world * gradient_accumulation_steps)
        if len(self.shards.names) < world:
            raise ValueError(
                f"{self.name} has {len(self.shards.names)} shards for {world} processes, each of "
                f"which needs one; write more and smaller shards"
            )
        samples = self._shuffled(seed, start, rank, world)
        size = batch_size // (world * gradient_accumulation_steps)
        made = self._made(samples, size, seed, start, rank, world, gradient_accumulation_steps)
        return prefetch_iterator(made, ahead + 1, name="stream", finish=False) if ahead else made

    def first(self, count: int) -> tuple[list[Tensor], list[Sample]]:
        """Up to ``count`` samples as they come, not shuffled: bytes ``[C, H, W]``, and theirs."""
        read = (
            found for shard in range(len(self.shards.names)) for found in self.shards.samples(shard)
        )
        pictures: list[Tensor] = []
        chosen: list[Sample] = []
        for found in islice(read, count):
            decoded = found if isinstance(found, ShardError) else self._decode(found)
            if isinstance(found, ShardError) or isinstance(decoded, ShardError):
                self._failed(decoded)  # type: ignore[arg-type]
            else:
                pictures.append(decoded)
                chosen.append(found)
        return pictures, chosen

    def texts_of(self, sample: Sample) -> Sequence[str]:
        """What may be said of a sample: its captions, else its class; maybe nothing."""
        if sample.texts or self.classes is None or sample.label is None:
            return sample.texts
        return self.classes.of_class(sample.label)

    def _made(
        self,
        samples: Iterator[Sample],
        size: int,
        seed: int,
        step: int,
        rank: int,
        world: int,
        gradient_accumulation_steps: int,
    ) -> Generator[Batch, None, None]:
        with ThreadPoolExecutor(DECODERS, "decode") as pool:
            while True:
                for chunk in range(rank, world * gradient_accumulation_steps, world):
                    pictures, chosen = self._decoded(samples, size, pool)
                    generator = RandomStreams(seed, step, chunk).augment
                    yield self._batch(pictures, chosen, generator)
                step += 1

    def _batch(
        self, pictures: list[Tensor], samples: list[Sample], generator: torch.Generator
    ) -> Batch:
        labels = [sample.label for sample in samples]
        known = torch.tensor(labels) if all(label is not None for label in labels) else None
        flips = draw_flips(len(samples), self.flip, generator)
        batch = to_batch(torch.stack(pictures), known, 255, flips)
        if self.tokenize is None:
            return batch
        tokens = self.tokenize([self._text(sample, generator) for sample in samples])
        named = tokens if isinstance(tokens, dict) else {"tokens": tokens}
        return Batch(batch.data, {**(batch.cond or {}), **named})

    def _text(self, sample: Sample, generator: torch.Generator) -> str:
        texts = self.texts_of(sample)
        return texts[int(torch.rand((), generator=generator) * len(texts))]

    def _decoded(
        self, samples: Iterator[Sample], size: int, pool: ThreadPoolExecutor
    ) -> tuple[list[Tensor], list[Sample]]:
        """``size`` pictures, those that are broken replaced by the next."""
        pictures: list[Tensor] = []
        chosen: list[Sample] = []
        while len(pictures) < size:
            wanted = list(islice(samples, size - len(pictures)))
            for sample, found in zip(wanted, pool.map(self._decode, wanted), strict=True):
                if isinstance(found, ShardError):
                    self._failed(found)
                else:
                    pictures.append(found)
                    chosen.append(sample)
        return pictures, chosen

    def _decode(self, sample: Sample) -> Tensor | ShardError:
        where = sample.cell.get("path") or self.name
        try:
            if self.tokenize is not None and not self.texts_of(sample):
                return ShardError(f"{where} has no caption and no class", whole=False)
            return self.decoder({self.decoder.column: sample.cell})
        except ValueError as error:
            return ShardError(str(error), whole=False)

    def _failed(self, error: ShardError) -> None:
        if self.on_error == "raise":
            raise ValueError(
                f'{error}; mend or remove it, or set on_error="skip" to go on without'
            ) from error
        self.skipped.append(str(error))
        rest = ", and the rest of the shard" if error.whole else ""
        warnings.warn(f"skipped ({len(self.skipped)} so far{rest}): {error}", stacklevel=2)

    def _shuffled(self, seed: int, start: int, rank: int, world: int) -> Iterator[Sample]:
        generator = keyed_generator(seed, start, rank, "buffer")
        held: list[Sample] = []
        for sample in self._endless(seed, start, rank, world):
            if len(held) < self.buffer:
                held.append(sample)
                continue
            place = int(torch.randint(len(held), (), generator=generator))
            chosen, held[place] = held[place], sample
            yield chosen

    def _endless(self, seed: int, start: int, rank: int, world: int) -> Iterator[Sample]:
        epoch = 0
        while True:
            keyed = keyed_generator(seed, start, epoch, "shards")
            order = torch.randperm(len(self.shards.names), generator=keyed).tolist()
            good = 0
            for shard in order[rank::world]:
                for found in self.shards.samples(shard):
                    if isinstance(found, ShardError):
                        self._failed(found)
                    else:
                        good += 1
                        yield found
            if not good:
                raise ValueError(f"{self.name}: no sample of this process's shards can be read")
            epoch += 1
