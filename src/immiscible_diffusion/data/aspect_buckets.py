"""Aspect-ratio buckets: images of many shapes, little cropped, in batches of one shape."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from immiscible_diffusion.data.base import DataSet, forward
from immiscible_diffusion.data.hf_images import images_from_rows
from immiscible_diffusion.data.image_decoding import ResizeCrop, Size, image_size, open_image, to_bytes
from immiscible_diffusion.data.images import LazyImageSet, draw_flips, to_batch
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.checks import PositiveInt, check_fields
from immiscible_diffusion.utils.random import keyed_generator

if TYPE_CHECKING:
    from immiscible_diffusion.data.load import DataConfig


def bucket_sizes(size: int, step: int = 64, smallest: int | None = None) -> tuple[Size, ...]:
    """The shapes of at most ``size x size`` pixels whose sides are multiples of ``step``.

    For each side the longest other side within the area; for 1024, 64 and 512 the range of SDXL's
    list, 512 x 2048 to 2048 x 512 (2307.01952, appendix I). Arguments as for ``Buckets``; ValueError for no bucket.
    """
    smallest = max(step, size // 2 // step * step) if smallest is None else smallest
    if step < 1 or not step <= smallest <= size or size % step:
        raise ValueError(
            f"expected size a multiple of step and step <= smallest <= size; got size {size}, "
            f"step {step}, smallest {smallest}"
        )
    sizes: set[Size] = set()
    for side in range(-(-smallest // step) * step, size + 1, step):
        other = size * size // side // step * step
        sizes |= {(side, other), (other, side)}
    return tuple(sorted(sizes))


def nearest_bucket(size: Size, buckets: Sequence[Size]) -> int:
    """Index of the bucket whose aspect ratio is nearest to that of ``size``, by its logarithm."""
    ratio = math.log(size[0] / size[1])
    gaps = [abs(math.log(height / width) - ratio) for height, width in buckets]
    return min(range(len(buckets)), key=lambda i: (gaps[i], -math.prod(buckets[i]), i))


@dataclass(frozen=True)
class BucketSampler:
    """Epochs of shuffled batches, each from one bucket.

    In an epoch the images of each bucket are shuffled and split into batches, then the batches of
    all buckets are shuffled. ``batches`` takes it in place of ``KeyedSampler``.
    """

    bucket: Tensor  # ``[N]`` int64, of each image
    batch_size: int  # samples per step, over all ranks
    seed: int  # of the run
    # the last batch of a bucket, if it is not full. ``short``: it stays short, so every image comes
    # exactly once an epoch; for one process without accumulation. ``fill``: it is filled with other
    # images of its bucket (with its own again, if the bucket is smaller than a batch), so every
    # image comes at least once an epoch and every batch divides over ranks
    last: Literal["short", "fill"] = "fill"

    def __post_init__(self) -> None:
        if self.bucket.ndim != 1 or not len(self.bucket) or self.batch_size < 1:
            raise ValueError(
                f"expected the bucket [N] of at least one image and batch_size >= 1, got "
                f"{list(self.bucket.shape)} and {self.batch_size}"
            )
        if self.last not in ("short", "fill"):
            raise ValueError(f"last must be short or fill, got '{self.last}'")

    @cached_property
    def _members(self) -> list[Tensor]:
        return [(self.bucket == b).nonzero()[:, 0] for b in self.bucket.unique()]

    @cached_property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch, the same for every epoch."""
        return sum(-(-len(rows) // self.batch_size) for rows in self._members)

    @cached_property
    def _epoch(self) -> Callable[[int], list[Tensor]]:
        return lru_cache(maxsize=2)(self._batches)

    def _batches(self, epoch: int) -> list[Tensor]:
        batches: list[Tensor] = []
        for number, rows in enumerate(self._members):
            generator = keyed_generator(self.seed, epoch, number, "bucket")
            order = rows[torch.randperm(len(rows), generator=generator)]
            if self.last == "fill":  # continue from the start up to a multiple of the batch size
                total = -(-len(order) // self.batch_size) * self.batch_size
                order = order.repeat(-(-total // len(order)))[:total]
            batches += order.split(self.batch_size)
        generator = keyed_generator(self.seed, epoch, "buckets")
        return [batches[i] for i in torch.randperm(len(batches), generator=generator)]

    def indices(self, step: int) -> Tensor:
        """``[batch_size]`` int64, or fewer, all of one bucket."""
        epoch, number = divmod(step, self.steps_per_epoch)
        return self._epoch(epoch)[number]


@dataclass(frozen=True, eq=False)
class BucketedImages(DataSet):
    """Images in aspect-ratio buckets, decoded when a batch asks for them."""

    squares: LazyImageSet  # the same images, all cropped to one square
    sizes: Sequence[Size]  # of the original images
    buckets: Sequence[Size]  # sizes of the buckets
    bucket: Tensor  # ``[N]`` int64, of each image
    # add SDXL's ``cond["time_ids"]`` ``[B, 6]``: original size, corner of the crop, size of the
    # bucket; each height first
    time_ids: bool = False

    name = forward("squares.name")
    note = forward("squares.note")
    labels = forward("squares.labels")
    class_names = forward("squares.class_names")

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of the fullest bucket; batches of others differ."""
        return (self.squares.shape[0], *self.buckets[int(self.bucket.mode().values)])

    @cached_property
    def digest(self) -> str:
        """Hash of where the rows come from, and of the buckets."""
        return hashlib.sha256(f"{self.squares.digest}/{self.buckets}/{self.bucket.tolist()}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.bucket)

    def common_rows(self) -> Tensor:
        """The images of the fullest bucket."""
        return (self.bucket == self.bucket.mode().values).nonzero()[:, 0]

    def sampler(self, batch_size: int, seed: int, last: Literal["short", "fill"] = "fill") -> BucketSampler:
        """Batches from one bucket each."""
        return BucketSampler(self.bucket, batch_size, seed, last)

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """The images at ``indices`` ``[B]`` in [-1, 1]; ValueError if they are of several buckets."""
        numbers = self.bucket[indices].unique()
        if len(numbers) != 1:
            raise ValueError(
                f"a batch must be of one bucket, got images of {len(numbers)}; take the indices from BucketSampler"
            )
        bucket, mode = self.buckets[int(numbers)], "L" if self.shape[0] == 1 else "RGB"
        images, ids = [], []
        for row in indices.tolist():
            crop = ResizeCrop.of(self.sizes[row], bucket)
            image = open_image(self.squares.row(row)[self.squares.column], mode)
            images.append(to_bytes(crop(image, bucket)))
            ids.append((*self.sizes[row], crop.top, crop.left, *bucket))
        flips = draw_flips(len(indices), self.squares.flip, generator)
        labels = None if self.labels is None else self.labels[indices]
        batch = to_batch(torch.stack(images), labels, 255, flips)
        time_ids = {"time_ids": torch.tensor(ids).float()} if self.time_ids else {}
        return replace(batch, cond={**(batch.cond or {}), **time_ids} or None)


@dataclass(frozen=True)
class Buckets:
    """Aspect-ratio buckets: shapes of about one area, so that little of an image is cropped."""

    size: PositiveInt = 1024  # side of the square; no bucket has more pixels
    step: PositiveInt = 64  # sides are multiples of it; at least the downsampling factor of VAE and U-Net together
    smallest: PositiveInt | None = None  # the shortest side; by default half of ``size``
    time_ids: bool = False  # give SDXL the original size and the crop, ``cond["time_ids"]``

    def __post_init__(self) -> None:
        check_fields(self, "buckets.")

    def images(self, rows: Any, config: "DataConfig") -> BucketedImages:
        """The images of ``rows``, opened for ``config``, each in the nearest bucket."""
        buckets = bucket_sizes(self.size, self.step, self.smallest)
        squares = images_from_rows(rows, replace(config, size=min(buckets[0]), in_memory_gib=0.0))
        assert isinstance(squares, LazyImageSet)  # none of which is decoded for it
        sizes = [image_size(row[squares.column]) for row in squares.rows]
        bucket = torch.tensor([nearest_bucket(size, buckets) for size in sizes])
        return BucketedImages(squares, sizes, buckets, bucket, self.time_ids)
