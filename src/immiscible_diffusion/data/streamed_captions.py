"""A stream to train on, known by its first pictures: for sets larger than the disk."""

import dataclasses
from collections.abc import Generator
from dataclasses import dataclass

import torch

from immiscible_diffusion.data.captions import Captioned, Captions
from immiscible_diffusion.data.images import ImageSet
from immiscible_diffusion.data.load import DataConfig
from immiscible_diffusion.data.open_stream import open_stream
from immiscible_diffusion.data.prompts import ListCaptions, Tokenize
from immiscible_diffusion.data.streaming import OnError, Stream
from immiscible_diffusion.utils.batch import Batch

HEAD = 1000


@dataclass(frozen=True, eq=False)
class Streamed(Captioned):
    """The first pictures of a stream, in memory, and the stream itself.

    What has to be addressed is of the first pictures: validation, previews, moments, the law of the
    noise, and what samples are judged by. Training reads ``stream``.
    """

    stream: Stream | None = None

    def batches(self, batch_size: int, seed: int, **options: int) -> Generator[Batch, None, None]:
        """The micro-batches of the stream; arguments as for ``Stream.batches``."""
        assert self.stream is not None
        return self.stream.batches(batch_size, seed, **options)

    def tokenized(self, tokenize: Tokenize) -> "Streamed":
        """The same with a tokenizer, of the stream too."""
        assert self.stream is not None
        stream = dataclasses.replace(self.stream, tokenize=tokenize)
        return dataclasses.replace(self, tokenize=tokenize, stream=stream)


def load_streamed(
    config: DataConfig, captions: Captions | None = None, tokenize: Tokenize | None = None
) -> Streamed:
    """The stream that ``config`` names, with its first ``config.limit`` (1,000) pictures.

    Args:
        config: as ``open_stream`` takes it.
        captions: where prompts come from.
        tokenize: texts to tokens.

    Raises:
        ValueError: what ``open_stream`` raises, or no picture can be read.
    """
    on_error: OnError = "skip" if config.skip_damaged else "raise"
    stream = open_stream(config, captions, tokenize, on_error=on_error, buffer=config.buffer)
    pictures, samples = stream.first(config.limit or HEAD)
    if not pictures:
        raise ValueError(f"{stream.name}: no picture can be read")
    labels = [sample.label for sample in samples]
    named = stream.classes is not None and all(label is not None for label in labels)
    images = ImageSet(
        torch.stack(pictures),
        stream.name,
        torch.tensor(labels) if named else None,
        class_names=stream.class_names if named else None,
        note=f"a stream, known by its first {len(pictures):,}",
    )
    return Streamed(
        images,
        ListCaptions([list(map(str, stream.texts_of(s))) for s in samples]),
        tokenize,
        stream,
    )
