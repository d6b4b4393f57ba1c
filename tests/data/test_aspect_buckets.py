"""Buckets: little is cropped, every batch is of one shape, every image comes once an epoch."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.image_files import datasets, save, write_parquet
from immiscible_diffusion.data import DataConfig, batches
from immiscible_diffusion.data.aspect_buckets import Buckets, BucketSampler, ResizeCrop, bucket_sizes, nearest_bucket
from immiscible_diffusion.data.captions import Captioned, load_captioned

pytestmark = pytest.mark.usefixtures("hf_cache")


def test_the_buckets_of_sdxl() -> None:
    sizes = bucket_sizes(1024)
    assert {(1024, 1024), (832, 1216), (896, 1152), (768, 1344), (640, 1600), (512, 2048)} <= set(sizes)
    assert {(width, height) for height, width in sizes} == set(sizes)
    for height, width in sizes:
        assert height % 64 == width % 64 == 0
        assert height * width <= 1024**2
        assert min(height, width) * (max(height, width) + 64) > 1024**2  # none larger fits
        assert min(height, width) >= 512
    assert bucket_sizes(32, 8, 32) == ((32, 32),)


@pytest.mark.parametrize("bad", [(1000, 64, None), (64, 64, 128), (64, 0, 8), (64, 16, 8)])
def test_sizes_that_leave_no_bucket(bad: tuple[int, int, int | None]) -> None:
    with pytest.raises(ValueError, match="expected size a multiple of step"):
        bucket_sizes(*bad)


@given(st.integers(20, 4000), st.integers(20, 4000))
@settings(max_examples=200, deadline=None)
def test_an_image_goes_where_least_is_cropped(height: int, width: int) -> None:
    sizes = bucket_sizes(1024)

    def lost(bucket: tuple[int, int]) -> float:
        scale = max(bucket[0] / height, bucket[1] / width)
        return 1 - math.prod(bucket) / (height * width * scale**2)

    chosen = sizes[nearest_bucket((height, width), sizes)]
    assert lost(chosen) <= min(map(lost, sizes)) + 1e-9
    crop = ResizeCrop.of((height, width), chosen)
    for resized, offset, side in zip(crop.resized, (crop.top, crop.left), chosen, strict=True):
        assert 0 <= offset <= resized - side
        assert abs((resized - side) - 2 * offset) <= 1  # the center
    assert chosen[0] in crop.resized or chosen[1] in crop.resized  # no larger than need be


some_buckets = st.lists(st.integers(0, 3), min_size=1, max_size=40)


@given(some_buckets, st.integers(1, 7), st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_short_every_image_once_an_epoch(buckets: list[int], size: int, epoch: int) -> None:
    bucket = torch.tensor(buckets)
    sampler = BucketSampler(bucket, size, seed=1, last="short")
    steps = range(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch)
    batches = [sampler.indices(step) for step in steps]
    assert torch.cat(batches).sort().values.tolist() == list(range(len(bucket)))
    for rows in batches:
        assert 1 <= len(rows) <= size
        assert len(bucket[rows].unique()) == 1


@given(some_buckets, st.integers(1, 7), st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_fill_every_batch_full(buckets: list[int], size: int, epoch: int) -> None:
    bucket = torch.tensor(buckets)
    sampler = BucketSampler(bucket, size, seed=1)
    steps = range(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch)
    batches = [sampler.indices(step) for step in steps]
    assert all(len(rows) == size for rows in batches)
    assert all(len(bucket[rows].unique()) == 1 for rows in batches)
    times = torch.bincount(torch.cat(batches), minlength=len(bucket))
    assert int(times.min()) >= 1
    for b in bucket.unique():
        members = times[bucket == b]
        assert int(members.max() - members.min()) <= 1
        if len(members) >= size:
            assert all(len(rows.unique()) == size for rows in batches if bucket[rows[0]] == b)


def test_the_order_is_a_function_of_the_seed_and_shuffled() -> None:
    bucket = torch.arange(60) % 3
    one, same = BucketSampler(bucket, 4, seed=1), BucketSampler(bucket, 4, seed=1)
    other = BucketSampler(bucket, 4, seed=2)
    far = same.indices(40)  # asked for first: nothing is carried from step to step
    ahead = [one.indices(step) for step in range(41)]
    assert torch.equal(ahead[40], far)
    assert not torch.equal(ahead[0], other.indices(0))
    assert not torch.equal(torch.cat(ahead[:15]), torch.cat(ahead[15:30]))
    of_bucket = [int(bucket[rows[0]]) for rows in ahead[:15]]
    assert of_bucket != sorted(of_bucket)


def test_bad_samplers() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        BucketSampler(torch.zeros(0).long(), 2, 0)
    with pytest.raises(ValueError, match="short or fill"):
        BucketSampler(torch.zeros(3).long(), 2, 0, last="drop")  # type: ignore[arg-type]


SHAPES = ((20, 20), (12, 30), (31, 13), (16, 24), (40, 42), (60, 30))


@pytest.fixture
def dataset(tmp_path: Path) -> Captioned:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in SHAPES * 3]
    texts = ([str(i) for i in range(len(arrays))], datasets.Value("string"))
    file = write_parquet(tmp_path / "train.parquet", arrays, text=texts)
    config = DataConfig("folder", path=str(file), flip=True)
    return load_captioned(config, buckets=Buckets(32, 8, time_ids=True))


def test_ranks_see_what_one_process_sees(dataset: Captioned) -> None:
    order = dataset.sampler(4, seed=3)

    def seen(rank: int, world: int, gradient_accumulation_steps: int, start: int = 0) -> list[torch.Tensor]:
        stream = batches(
            dataset,
            order,
            start=start,
            rank=rank,
            world=world,
            gradient_accumulation_steps=gradient_accumulation_steps,
            ahead=0,
        )
        return [next(stream).data for _ in range(6 * gradient_accumulation_steps)]

    whole, first, second = seen(0, 1, 2), seen(0, 2, 1), seen(1, 2, 1)
    for step in range(6):
        assert torch.equal(whole[2 * step], first[step])
        assert torch.equal(whole[2 * step + 1], second[step])
        assert first[step].shape == second[step].shape
    resumed = seen(0, 1, 2, start=2)
    assert all(torch.equal(a, b) for a, b in zip(whole[4:], resumed, strict=False))
    assert len({tuple(data.shape) for data in whole}) > 1


def test_conditions_hold_size_and_crop(dataset: Captioned) -> None:
    batch = dataset.batch(torch.tensor([1]))  # 12 x 30 in 16 x 64? no: the nearest ratio
    assert batch.cond is not None
    height, width, top, left, *bucket = batch.cond["time_ids"][0].int().tolist()
    assert (height, width) == (12, 30)
    assert tuple(bucket) == tuple(batch.data.shape[2:])
    assert bucket[0] < bucket[1]
    assert (top, left) == (ResizeCrop.of((12, 30), tuple(bucket)).top, ResizeCrop.of((12, 30), tuple(bucket)).left)
    assert float(batch.data.abs().max()) <= 1


def test_a_batch_of_two_buckets_is_refused(dataset: Captioned) -> None:
    with pytest.raises(ValueError, match="of one bucket, got images of 2"):
        dataset.batch(torch.tensor([0, 1]))


def test_an_image_taken_sideways_goes_to_its_upright_bucket(tmp_path: Path) -> None:
    array = np.zeros((10, 30, 3), dtype=np.uint8)
    exif = __import__("PIL.Image").Image.Exif()
    exif[0x0112] = 6
    save(array, tmp_path / "a.jpg", exif=exif)
    (tmp_path / "a.txt").write_text("tall")
    config = DataConfig("folder", path=str(tmp_path))
    tall = load_captioned(config, buckets=Buckets(32, 8))
    _, height, width = tall.batch(torch.tensor([0])).data.shape[1:]
    assert height > width
    assert tall.shape == (3, height, width)
