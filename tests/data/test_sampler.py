import gc
import multiprocessing
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice

import pytest
import torch
from torch import Tensor

from immiscible_diffusion.data import DataSet, ImageSet, KeyedSampler, batches
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.random import RandomStreams


def stream(order: KeyedSampler, steps: int) -> Tensor:
    return torch.cat([order.indices(step) for step in range(steps)])


@pytest.fixture
def dataset() -> ImageSet:
    """24 images whose every row, mirrored or not, tells which image it is."""
    images = torch.arange(24 * 3).view(24, 1, 1, 3).to(torch.uint8)
    return ImageSet(images, "numbered", torch.arange(24), flip=True)


@dataclass
class RecordingData(DataSet):
    """A set that counts its calls and fails from call ``fails_at`` on."""

    fails_at: int | None = None
    calls: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return 24

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        self.calls.append(len(indices))
        if self.fails_at is not None and len(self.calls) > self.fails_at:
            raise ValueError("row 7 is broken")
        return Batch(indices[:, None].float())


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "batches"}


def assert_ended(started: set[threading.Thread]) -> None:
    assert started
    for thread in started:
        thread.join(timeout=10)
        assert not thread.is_alive()


# -- the order ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "size"), [(12, 4), (10, 4), (7, 3), (5, 5), (3, 8), (1, 3)])
def test_every_epoch_is_a_permutation_whatever_the_batch(count, size):
    indices = stream(KeyedSampler(count, size, seed=0), steps=4 * count)
    epochs = indices[: len(indices) // count * count].view(-1, count)
    assert torch.equal(epochs.sort().values, torch.arange(count).expand_as(epochs))


def test_a_step_is_a_function_of_seed_and_step_alone():
    forward = [KeyedSampler(10, 4, seed=3).indices(step) for step in range(20)]
    for step in reversed(range(20)):
        assert torch.equal(KeyedSampler(10, 4, seed=3).indices(step), forward[step])
    assert not torch.equal(stream(KeyedSampler(10, 4, seed=4), 5), torch.cat(forward[:5]))


def test_the_stream_does_not_depend_on_the_batch_size():
    assert torch.equal(stream(KeyedSampler(10, 3, 0), 20), stream(KeyedSampler(10, 60, 0), 1))


def test_what_the_caller_does_to_the_indices_does_not_change_the_order():
    order = KeyedSampler(6, 6, seed=0)
    before = order.indices(0).clone()
    order.indices(0).zero_()
    assert torch.equal(order.indices(0), before)


def test_epochs_and_seeds_are_uniform_over_the_permutations():
    draws = [tuple(KeyedSampler(3, 3, seed).indices(epoch).tolist()) for seed in range(100) for epoch in range(12)]
    expected = len(draws) / 6
    statistic = sum((seen - expected) ** 2 / expected for seen in Counter(draws).values())
    assert len(set(draws)) == 6
    assert statistic < 20.5  # chi-square, 5 degrees of freedom: p = 0.001


@pytest.mark.parametrize(("count", "size"), [(0, 4), (4, 0)])
def test_an_empty_set_or_batch_is_refused(count, size):
    with pytest.raises(ValueError, match="count >= 1 and batch_size >= 1"):
        KeyedSampler(count, size, seed=0)


# -- ranks and micro-batches ----------------------------------------------------------------------


def parts(dataset, order, *, world, gradient_accumulation_steps, steps=5, **options) -> list[list[Batch]]:
    """By step, the micro-batches of all ranks in the order of their chunks."""
    ranks = [
        list(
            islice(
                batches(
                    dataset,
                    order,
                    rank=r,
                    world=world,
                    gradient_accumulation_steps=gradient_accumulation_steps,
                    ahead=0,
                    **options,
                ),
                steps * gradient_accumulation_steps,
            )
        )
        for r in range(world)
    ]
    return [
        [
            ranks[r][step * gradient_accumulation_steps + m]
            for m in range(gradient_accumulation_steps)
            for r in range(world)
        ]
        for step in range(steps)
    ]


@pytest.mark.parametrize(("world", "gradient_accumulation_steps"), [(1, 2), (2, 1), (2, 2), (3, 2), (4, 3)])
def test_ranks_and_micro_batches_joined_are_the_batch_of_one_rank(dataset, world, gradient_accumulation_steps):
    order = KeyedSampler(24, 12, seed=5)
    for step, chunks in enumerate(
        parts(dataset, order, world=world, gradient_accumulation_steps=gradient_accumulation_steps)
    ):
        labels = torch.cat([chunk.cond["label"] for chunk in chunks])
        assert torch.equal(labels, order.indices(step))


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_see_the_flips_of_one_process_with_as_many_micro_batches(dataset, world):
    order = KeyedSampler(24, 12, seed=5)
    many = parts(dataset, order, world=world, gradient_accumulation_steps=1)
    one = parts(dataset, order, world=1, gradient_accumulation_steps=world)
    for left, right in zip(many, one, strict=True):
        for mine, theirs in zip(left, right, strict=True):
            assert torch.equal(mine.data, theirs.data)


def test_augmentation_is_keyed_by_seed_step_and_chunk(dataset):
    order = KeyedSampler(24, 12, seed=5)
    for step, chunks in enumerate(parts(dataset, order, world=2, gradient_accumulation_steps=2)):
        for chunk, batch in enumerate(chunks):
            indices = order.indices(step).chunk(4)[chunk]
            expected = dataset.batch(indices, RandomStreams(5, step, chunk).augment)
            assert torch.equal(batch.data, expected.data)


@pytest.mark.parametrize("ahead", [0, 2])
def test_starting_later_skips_batches(dataset, ahead):
    order, options = KeyedSampler(24, 9, seed=1), {"gradient_accumulation_steps": 3, "ahead": ahead}
    all_batches = list(islice(batches(dataset, order, **options), 21))
    late = list(islice(batches(dataset, order, start=4, **options), 9))
    for expected, batch in zip(all_batches[12:], late, strict=True):
        assert torch.equal(batch.data, expected.data)
        assert torch.equal(batch.cond["label"], expected.cond["label"])


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_the_thread_changes_nothing(dataset, ahead):
    order = KeyedSampler(24, 10, seed=1)
    plain, threaded = batches(dataset, order, ahead=0), batches(dataset, order, ahead=ahead)
    pairs = list(zip(islice(plain, 20), islice(threaded, 20), strict=True))
    threaded.close()
    assert len(pairs) == 20
    assert all(torch.equal(expected.data, batch.data) for expected, batch in pairs)


def test_a_data_set_is_read_in_the_order_of_its_sampler(dataset):
    options = {"start": 2, "rank": 1, "world": 2, "ahead": 0}
    by_hand = list(islice(batches(dataset, KeyedSampler(24, 10, seed=3), **options), 6))
    for one, other in zip(islice(dataset.batches(10, 3, **options), 6), by_hand, strict=True):
        assert torch.equal(one.data, other.data)
        assert torch.equal(one.cond["label"], other.cond["label"])
    assert torch.equal(dataset.common_rows(), torch.arange(24))
    assert torch.equal(dataset.complete_rows(), torch.arange(24))


@pytest.mark.parametrize(
    ("size", "world", "gradient_accumulation_steps", "nearest"),
    [(10, 4, 1, "8 or 12"), (10, 2, 2, "8 or 12"), (3, 4, 1, "nearest: 4")],
)
def test_a_batch_that_does_not_divide_is_refused_at_once(dataset, size, world, gradient_accumulation_steps, nearest):
    with pytest.raises(ValueError, match=nearest):
        batches(
            dataset, KeyedSampler(24, size, 0), world=world, gradient_accumulation_steps=gradient_accumulation_steps
        )


@pytest.mark.parametrize(
    "options",
    [{"rank": 2, "world": 2}, {"rank": -1}, {"gradient_accumulation_steps": 0}, {"start": -1}, {"ahead": -1}],
)
def test_numbers_out_of_range_are_refused_at_once(dataset, options):
    with pytest.raises(ValueError, match="expected 0 <= rank < world"):
        batches(dataset, KeyedSampler(24, 4, 0), **options)


# -- the thread -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [0, 2])
def test_an_error_surfaces_at_the_next_that_would_have_returned_the_batch(ahead):
    before, source = (threads(), batches(RecordingData(fails_at=3), KeyedSampler(24, 4, 0), ahead=ahead))
    next(source)
    started = threads() - before  # still there: two batches wait, the third finds no room
    assert len(list(islice(source, 2))) == 2
    with pytest.raises(ValueError, match="row 7 is broken"):
        next(source)
    if ahead:
        assert_ended(started)


def test_the_thread_makes_no_more_than_was_asked_for():
    watched = RecordingData()
    source = batches(watched, KeyedSampler(24, 4, 0), ahead=3)
    next(source)
    deadline = time.monotonic() + 10
    while len(watched.calls) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)  # it would now run on if it could
    assert len(watched.calls) == 5  # one returned, three waiting, one in hand
    source.close()


@pytest.mark.parametrize("how", ["close", "collect"])
def test_the_thread_ends_when_its_batches_are_no_longer_wanted(how):
    before, source = threads(), batches(RecordingData(), KeyedSampler(24, 4, 0), ahead=1)
    next(source)
    started = threads() - before
    if how == "close":
        source.close()
    else:
        del source
        gc.collect()
    assert_ended(started)


def test_no_thread_is_started_before_the_first_batch_or_without_ahead():
    before = threads()
    waiting = batches(RecordingData(), KeyedSampler(24, 4, 0))
    next(batches(RecordingData(), KeyedSampler(24, 4, 0), ahead=0))
    assert threads() <= before  # those of other tests may end meanwhile
    waiting.close()


# -- workers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workers", "start", "options"),
    [(1, 0, {}), (2, 1, {}), (3, 2, {}), (2, 3, {"rank": 1, "world": 2, "gradient_accumulation_steps": 2})],
)
def test_workers_change_nothing_and_start_where_asked(dataset, workers, start, options):
    order, state = KeyedSampler(24, 8, seed=1), torch.random.get_rng_state()
    plain = batches(dataset, order, start=start, ahead=0, **options)
    loaded = batches(dataset, order, start=start, ahead=0, num_workers=workers, **options)
    for expected, batch in zip(islice(plain, 9), islice(loaded, 9), strict=True):
        assert torch.equal(expected.data, batch.data)
        assert torch.equal(expected.cond["label"], batch.cond["label"])
    loaded.close()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_an_error_in_a_worker_is_the_error_of_its_batch():
    loaded = batches(RecordingData(fails_at=2), KeyedSampler(24, 8, seed=1), ahead=0, num_workers=1)
    assert len([next(loaded), next(loaded)]) == 2
    with pytest.raises(ValueError, match=r"^row 7 is broken$"):
        next(loaded)


class Unpicklable(DataSet):
    """A set whose error cannot leave its worker as it is."""

    def __len__(self) -> int:
        return 24

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        error = OSError("the disk of shard 7 is gone")
        error.lock = threading.Lock()
        raise error


def test_an_error_that_cannot_be_sent_is_raised_all_the_same():
    with pytest.raises(OSError, match="the disk of shard 7 is gone"):
        next(batches(Unpicklable(), KeyedSampler(24, 8, seed=1), ahead=0, num_workers=1))


def test_workers_are_the_same_to_the_end(dataset):
    before = set(multiprocessing.active_children())
    loaded = batches(dataset, KeyedSampler(24, 8, seed=1), ahead=0, num_workers=2)
    next(loaded)
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    for _ in range(7):  # over two ends of an epoch
        next(loaded)
    assert set(multiprocessing.active_children()) - before == workers
    loaded.close()
    assert not set(multiprocessing.active_children()) & workers


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_killed_worker_says_what_to_do(dataset):
    """In a thread, as the one that pairs."""
    before, raised = set(multiprocessing.active_children()), []
    loaded = batches(dataset, KeyedSampler(24, 8, seed=1), ahead=0, num_workers=1)

    def load() -> None:
        next(loaded)
        [worker] = set(multiprocessing.active_children()) - before
        worker.kill()
        worker.join()
        with pytest.raises(ValueError, match=r"killed .*memory, or /dev/shm.*--num_workers.*same command") as error:
            list(islice(loaded, 9))
        raised.append(error)

    thread = threading.Thread(target=load)
    thread.start()
    thread.join()
    assert raised
