"""Aspect-ratio buckets: pictures of many shapes, little cut off, in batches of one shape."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.data.hf_images import columns, images_of
from immiscible_diffusion.data.image_decoding import opened, to_bytes, upright_size
from immiscible_diffusion.data.images import all_labels, draw_flips
from immiscible_diffusion.data.images import to_batch as scaled
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.random import keyed_generator

if TYPE_CHECKING:
    from immiscible_diffusion.data.load import DataConfig

Size = tuple[int, int]
"""Height and width in pixels."""


def bucket_sizes(size: int, step: int = 64, smallest: int | None = None) -> tuple[Size, ...]:
    """The shapes of at most ``size x size`` pixels whose sides are multiples of ``step``.

    Of each side the longest other side within the area; for 1024, 64 and 512 the range of SDXL's
    list, 512 x 2048 to 2048 x 512 (2307.01952, appendix I).

    Args:
        size: side of the square.
        step: what sides are multiples of: at least what VAE and U-Net shrink by together.
        smallest: the shortest side; by default half of ``size``, rounded to ``step``.

    Raises:
        ValueError: sizes that leave no bucket.
    """
    smallest = max(step, size // 2 // step * step) if smallest is None else smallest
    if step < 1 or not step <= smallest <= size or size % step:
        raise ValueError(
            f"expected size a multiple of step and step <= smallest <= size; got size {size}, "
            f"step {step}, smallest {smallest}"
        )
    first = -(-smallest // step) * step
    found: set[Size] = set()
    for side in range(first, size + 1, step):
        other = size * size // side // step * step
        found |= {(side, other), (other, side)}
    return tuple(sorted(found))


def nearest_bucket(size: Size, buckets: Sequence[Size]) -> int:
    """The bucket whose ratio of sides is nearest to that of ``size``, by its logarithm."""
    wanted = math.log(size[0] / size[1])
    gaps = [abs(math.log(height / width) - wanted) for height, width in buckets]
    return min(range(len(buckets)), key=lambda i: (gaps[i], -math.prod(buckets[i]), i))


@dataclass(frozen=True)
class ResizeCrop:
    """How a picture is brought to its bucket: resized so that it covers it, then cut out.

    Attributes:
        resized: height and width after resizing.
        top: rows cut off above.
        left: columns cut off on the left.
    """

    resized: Size
    top: int
    left: int

    @classmethod
    def of(cls, size: Size, bucket: Size) -> "ResizeCrop":
        """The center of a picture of ``size``."""
        scale = max(bucket[0] / size[0], bucket[1] / size[1])
        height, width = (max(b, round(s * scale)) for s, b in zip(size, bucket, strict=True))
        return cls((height, width), (height - bucket[0]) // 2, (width - bucket[1]) // 2)


@dataclass(frozen=True)
class BucketOrder:
    """An endless stream of epochs, each a shuffle of batches of one bucket each.

    In an epoch the pictures of each bucket are shuffled and cut into batches, then the batches of
    all buckets are shuffled. ``batches`` takes it in place of ``KeyedSampler``.

    Args:
        bucket: ``[N]`` int64, of each picture.
        batch_size: data per step, over all ranks.
        seed: the run's.
        last: what becomes of the last batch of a bucket if it is not full. ``short``: it stays
            short, so every picture comes exactly once an epoch; for one process without
            accumulation. ``fill``: filled up with other pictures of its bucket (again with those of
            the batch, where the bucket is smaller than a batch), so every picture comes at least
            once an epoch and every batch divides over ranks.
    """

    bucket: Tensor
    batch_size: int
    seed: int
    last: Literal["short", "fill"] = "fill"

    def __post_init__(self) -> None:
        if self.bucket.ndim != 1 or not len(self.bucket) or self.batch_size < 1:
            raise ValueError(
                f"expected the buckets [N] of at least one picture and a batch of at least one, "
                f"got {list(self.bucket.shape)} and {self.batch_size}"
            )
        if self.last not in ("short", "fill"):
            raise ValueError(f"last must be short or fill, got '{self.last}'")

    @property
    def count(self) -> int:
        """Number of pictures."""
        return len(self.bucket)

    @cached_property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch, the same for every epoch."""
        return sum(-(-len(rows) // self.batch_size) for rows in self._members)

    @cached_property
    def _members(self) -> list[Tensor]:
        return [(self.bucket == b).nonzero()[:, 0] for b in self.bucket.unique()]

    @cached_property
    def _epoch(self) -> Any:
        return lru_cache(maxsize=2)(self._batches)

    def _batches(self, epoch: int) -> list[Tensor]:
        made: list[Tensor] = []
        for number, rows in enumerate(self._members):
            generator = keyed_generator(self.seed, epoch, number, "bucket")
            order = rows[torch.randperm(len(rows), generator=generator)]
            if self.last == "fill":
                order = _filled(order, self.batch_size)
            made += order.split(self.batch_size)
        places = torch.randperm(len(made), generator=keyed_generator(self.seed, epoch, "buckets"))
        return [made[place] for place in places]

    def indices(self, step: int) -> Tensor:
        """``[batch_size]`` int64, or fewer, all of one bucket."""
        epoch, place = divmod(step, self.steps_per_epoch)
        chosen: Tensor = self._epoch(epoch)[place]
        return chosen


def _filled(order: Tensor, size: int) -> Tensor:
    """``order`` continued from its start up to a multiple of ``size``."""
    total = -(-len(order) // size) * size
    return order.repeat(-(-total // len(order)))[:total]


@dataclass(frozen=True, eq=False)
class BucketedImages(DataSet):
    """Pictures in aspect-ratio buckets, decoded when a batch asks for them.

    Attributes:
        rows: an addressable table.
        column: of the pictures.
        mode: PIL's, RGB or L.
        sizes: of the pictures, as they are.
        buckets: the shapes there are.
        bucket: ``[N]`` int64, of each picture.
        name: for reports.
        labels: ``[N]`` int64, or None.
        class_names: one per class, or None.
        flip: mirror left and right at random when training.
        time_ids: add SDXL's ``cond["time_ids"]`` ``[B, 6]``: original size, corner of the cut,
            size of the bucket; each height first.
        note: what every figure made on it must say.
    """

    rows: Any
    column: str
    mode: str
    sizes: Sequence[Size]
    buckets: Sequence[Size]
    bucket: Tensor
    name: str
    labels: Tensor | None = None
    class_names: tuple[str, ...] | None = None
    flip: bool = False
    time_ids: bool = False
    note: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of the fullest bucket; batches of others differ."""
        fullest = int(self.bucket.mode().values)
        return (1 if self.mode == "L" else 3, *self.buckets[fullest])

    @property
    def num_classes(self) -> int | None:
        """Number of classes, None without labels."""
        return len(self.class_names) if self.labels is not None and self.class_names else None

    @cached_property
    def digest(self) -> str:
        """Hash of where the rows come from, and of the buckets."""
        text = f"{self.rows._fingerprint}/{self.buckets}/{self.bucket.tolist()}/{self.mode}"
        return hashlib.sha256(text.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.bucket)

    def common_rows(self) -> Tensor:
        """The pictures of the fullest bucket."""
        return (self.bucket == self.bucket.mode().values).nonzero()[:, 0]

    def sampler(
        self, batch_size: int, seed: int, last: Literal["short", "fill"] = "fill"
    ) -> BucketOrder:
        """The order in which every batch is of one bucket."""
        return BucketOrder(self.bucket, batch_size, seed, last)

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """The pictures at ``indices`` ``[B]``, all of one bucket, in [-1, 1].

        Raises:
            ValueError: they are of several buckets.
        """
        found = self.bucket[indices].unique()
        if len(found) != 1:
            raise ValueError(
                f"a batch must be of one bucket, got pictures of {len(found)}; take the indices "
                f"from BucketOrder"
            )
        bucket = self.buckets[int(found)]
        cuts = [ResizeCrop.of(self.sizes[int(row)], bucket) for row in indices]
        images = torch.stack(
            [self._picture(int(row), cut, bucket) for row, cut in zip(indices, cuts, strict=True)]
        )
        flips = draw_flips(len(indices), self.flip, generator)
        labels = None if self.labels is None else self.labels[indices]
        batch = scaled(images, labels, 255, flips)
        if not self.time_ids:
            return batch
        ids = [
            (*self.sizes[int(row)], cut.top, cut.left, *bucket)
            for row, cut in zip(indices, cuts, strict=True)
        ]
        return replace(batch, cond={**(batch.cond or {}), "time_ids": torch.tensor(ids).float()})

    def _picture(self, row: int, cut: ResizeCrop, bucket: Size) -> Tensor:
        from PIL import Image

        image = opened(self.rows[row][self.column], self.mode)
        height, width = cut.resized
        kind = Image.Resampling.BOX if height < image.height else Image.Resampling.BICUBIC
        image = image.resize((width, height), kind)
        box = (cut.left, cut.top, cut.left + bucket[1], cut.top + bucket[0])
        return to_bytes(image.crop(box))


def bucketed(
    rows: Any, config: "DataConfig", buckets: Sequence[Size], *, time_ids: bool = False
) -> BucketedImages:
    """The pictures of ``rows`` in the buckets that suit them.

    Args:
        rows: as ``open_rows`` gives them.
        config: what they came by.
        buckets: shapes, such as those of ``bucket_sizes``.
        time_ids: add SDXL's sizes to the conditions.
    """
    # Labels and names are those of the pictures as squares, none of which is decoded for it.
    squares: Any = images_of(rows, replace(config, size=min(buckets[0]), in_memory_gib=0.0))
    column = columns(rows, config)[0]
    sizes = [upright_size(rows[row][column]) for row in range(len(squares))]
    return BucketedImages(
        rows,
        column,
        "L" if squares.shape[0] == 1 else "RGB",
        sizes,
        tuple(buckets),
        torch.tensor([nearest_bucket(size, buckets) for size in sizes]),
        squares.name,
        labels=None if squares.num_classes is None else all_labels(squares),
        class_names=squares.class_names,
        flip=config.flip,
        time_ids=time_ids,
        note=squares.note,
    )
