import gc
import random
import threading
import time
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from immiscible_diffusion.couplings import KNN, Coupling, Independent, LinearAssignment, Shuffled
from immiscible_diffusion.couplings.paired_loader import PairedBatch, PairedLoader
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.random import RandomStreams


def batch(number: int, rows: int = 6) -> Batch:
    data = torch.randn(rows, 3, generator=torch.Generator().manual_seed(number))
    return Batch(data, {"label": torch.full((rows,), number)})


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    gc.collect()
    assert not threads()


@dataclass(frozen=True)
class Slow:
    """A coupling that takes its time, a random one."""

    coupling: Independent | KNN | LinearAssignment = field(default_factory=Independent)

    def __call__(self, data, *, cond=None, generator=None):
        time.sleep(random.random() / 100)
        return self.coupling(data, cond=cond, generator=generator)


def slow_loader(count: int = 12):
    for number in range(count):
        time.sleep(random.random() / 100)
        yield batch(number)


@dataclass(frozen=True)
class FailsAt:
    """Fails at the batch whose label is ``number``."""

    number: int

    def __call__(self, data, *, cond=None, generator=None):
        if cond["label"][0] == self.number:
            raise ArithmeticError("no noise for this one")
        return torch.randn(data.shape, generator=generator)


# -- what it yields -------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [0, 1, 3])
@pytest.mark.parametrize("coupling", [Independent(), KNN(4), LinearAssignment()])
def test_noise_depends_on_seed_and_number_and_not_on_the_timing(coupling, ahead):
    seen = 0
    for number, paired in enumerate(PairedLoader(slow_loader(), Slow(coupling), seed=5, ahead=ahead)):
        time.sleep(random.random() / 100)
        data, noise, cond = paired
        assert paired[0] is data
        assert paired[1] is noise
        assert paired[2] is cond
        expected = batch(number)
        assert torch.equal(data, expected.data)
        assert torch.equal(cond["label"], expected.cond["label"])
        generator = RandomStreams(5, number).noise
        assert torch.equal(noise, coupling(expected.data, generator=generator))
        seen += 1
    assert seen == 12


def test_streams_of_the_callers_own():
    made = PairedLoader(map(batch, range(3)), Independent(), streams=lambda n: RandomStreams(1, 10 + n, 2))
    batches = list(made)
    assert len(batches) == 3
    for number, paired in enumerate(batches):
        streams = RandomStreams(1, 10 + number, 2, device=torch.device("cpu"))
        assert paired.rng == streams
        assert torch.equal(paired[1], Independent()(paired[0], generator=streams.noise))
        assert paired.pairing_seconds > 0


def test_a_data_loader_of_pairs_and_a_mask():
    data, labels = torch.randn(10, 3), torch.arange(10)
    seen = list(PairedLoader(DataLoader(TensorDataset(data, labels), batch_size=4), KNN(2)))
    assert torch.equal(torch.cat([paired.data for paired in seen]), data)
    assert torch.equal(torch.cat([paired.cond["label"] for paired in seen]), labels)
    seen = list(PairedLoader(DataLoader(TensorDataset(data), batch_size=4), KNN(2)))
    assert [paired.cond for paired in seen] == [None] * 3
    mask = torch.rand(10, 3) < 0.9
    mask[:, 0] = True
    (only,) = PairedLoader([Batch(data, None, mask)], KNN(2), seed=0)
    assert torch.equal(only.mask, mask)
    assert torch.equal(only.noise, KNN(2)(data, mask=mask, generator=RandomStreams(0, 0).noise))
    (only,) = PairedLoader([(data, {"text": labels})], KNN(2))
    assert torch.equal(only.cond["text"], labels)


def test_a_mask_is_never_passed_over_in_silence():
    made = iter(PairedLoader([Batch(torch.ones(2, 3), None, torch.ones(2, 3, dtype=torch.bool))], Slow()))
    with pytest.raises(ValueError, match="mask"):
        next(made)


def test_encoding_is_done_in_the_thread_without_gradients():
    layer, where = torch.nn.Linear(3, 2), []

    def encode(item, generator):
        where.append(threading.current_thread().name)
        return layer(item["pixels"]), item["label"]

    loader = [{"pixels": torch.randn(4, 3), "label": torch.arange(4)} for _ in range(2)]
    for paired in PairedLoader(loader, KNN(2), encode):
        assert paired.data.shape == paired.noise.shape == (4, 2)
        assert not paired.data.requires_grad
        assert torch.equal(paired.cond["label"], torch.arange(4))
    assert where == ["prefetch", "prefetch"]


def test_the_consumer_keeps_its_gradients_and_autocast():
    layer, count = torch.nn.Linear(3, 3), 0
    with torch.autocast("cpu", torch.bfloat16):
        made = iter(PairedLoader([torch.randn(2, 3)] * 3, KNN(2), lambda x, generator: layer(x), ahead=1))
        for data, noise, _ in made:
            assert data.dtype == noise.dtype == torch.float32, "autocast is off in the thread"
            assert torch.is_grad_enabled()
            assert (data @ noise.T).dtype == torch.bfloat16
            count += 1
    for _ in PairedLoader([torch.randn(2, 3)] * 2, KNN(2), ahead=0):
        assert torch.is_grad_enabled()
        count += 1
    assert count == 5


@pytest.mark.parametrize("item", [3, "ab", (torch.ones(1, 1), 2), {"x": torch.ones(1, 1)}, ()])
def test_what_is_no_batch_is_refused(item):
    with pytest.raises(ValueError, match="give encode="):
        next(iter(PairedLoader([item], Independent())))


def test_bad_arguments_are_refused_at_once():
    for options in ({"ahead": -1}, {"start": -1}):
        with pytest.raises(ValueError, match="ahead and start must be"):
            PairedLoader([], Independent(), **options)


# -- where it begins ------------------------------------------------------------------------------


class Numbered:
    """A loader that may begin anywhere, and knows where it was begun."""

    def __init__(self) -> None:
        self.began = []

    def starting_at(self, index):
        self.began.append(index)
        return map(batch, range(index, 10))


@pytest.mark.parametrize("pool", [1, 3])
@pytest.mark.parametrize("start", [0, 1, 3, 5, 9])
@pytest.mark.parametrize("resumable", [True, False])
def test_to_start_later_changes_no_noise(pool, start, resumable):
    def paired(start):
        loader = Numbered() if resumable else map(batch, range(10))
        coupling = Shuffled(Ranked(pool))
        pairs = list(PairedLoader(loader, coupling, seed=3, start=start))
        if resumable:
            assert loader.began == [start - start % pool], "a pool is paired complete"
        return pairs

    complete, part = paired(0), paired(start)
    assert len(complete) == 10
    assert len(part) == 10 - start
    for one, other in zip(complete[start:], part, strict=True):
        assert one.rng == other.rng
        assert torch.equal(one.data, other.data)
        assert torch.equal(one.noise, other.noise)


def test_every_pass_draws_other_noise_and_only_the_first_starts_late():
    loader = PairedLoader([batch(number) for number in range(4)], Independent(), seed=1, start=2)
    first, second, third = list(loader), list(loader), list(loader)
    assert [len(pairs) for pairs in (first, second, third)] == [2, 4, 4]
    assert not torch.equal(first[0].noise, second[2].noise)
    assert not torch.equal(second[0].noise, third[0].noise)
    assert first[0].rng.step == 2


# -- the thread -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [0, 1, 4])
@pytest.mark.parametrize("where", ["loader", "encode", "coupling"])
def test_an_error_is_raised_at_the_step_that_would_have_used_the_batch(where, ahead):
    def loader():
        for number in range(9):
            if where == "loader" and number == 3:
                raise ArithmeticError("no noise for this one")
            yield batch(number)

    def encode(item, generator):
        if where == "encode" and item.cond["label"][0] == 3:
            raise ArithmeticError("no noise for this one")
        return item

    made = iter(PairedLoader(loader(), FailsAt(3 if where == "coupling" else -1), encode, ahead=ahead))
    for number in range(3):
        assert next(made).cond["label"][0] == number
    with pytest.raises(ArithmeticError, match="no noise for this one") as caught:
        next(made)
    names = {"loader": "loader", "encode": "encode", "coupling": "__call__"}
    assert names[where] in [entry.name for entry in caught.traceback]
    assert not threads()


def test_a_stray_stop_iteration_is_an_error_and_no_end():
    with pytest.raises(RuntimeError, match="StopIteration"):
        list(PairedLoader([batch(0), batch(1)], Independent(), lambda item, generator: next(iter(()))))


def test_one_batch_ahead_and_no_more():
    asked = []

    def loader():
        for number in range(100):
            asked.append(number)
            yield batch(number)

    with closing(iter(PairedLoader(loader(), Independent()))) as made:
        next(made)
        deadline = time.monotonic() + 20
        while len(asked) < 2 and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.1)
        assert asked == [0, 1]
        assert next(made).cond["label"][0] == 1
    assert asked == [0, 1, 2], "the last ticket is used up: other ranks wait for it"


def test_it_works_while_the_consumer_does():
    paired, consumer_waits = threading.Event(), threading.Event()

    @dataclass(frozen=True)
    class Tells:
        def __call__(self, data, *, cond=None, generator=None):
            if cond["label"][0] == 1:
                assert consumer_waits.wait(20)
                paired.set()
            return torch.zeros_like(data)

    made = iter(PairedLoader(map(batch, range(3)), Tells()))
    next(made)
    consumer_waits.set()
    assert paired.wait(20), "batch 1 is paired though nobody has asked for it"
    made.close()


@pytest.mark.parametrize("how", ["close", "with", "drop", "break", "error", "cycle", "end"])
def test_no_thread_outlives_its_use(how):
    closed = []

    def loader():
        try:
            yield from map(batch, range(5))
        finally:
            closed.append(True)

    pairs = PairedLoader(loader(), Slow(), ahead=2)
    made = iter(pairs)
    first = next(made)
    assert isinstance(first, PairedBatch)
    assert threads()
    if how == "close":
        made.close()
    elif how == "with":
        with pairs:
            pass
    elif how == "drop":
        del made
    elif how == "break":
        for _ in islice(made, 2):
            break
        del made
    elif how == "error":
        with pytest.raises(KeyError), closing(made):
            raise KeyError
    elif how == "cycle":
        cycle = [made]
        cycle.append(cycle)
        del made, cycle
        gc.collect()
    else:
        assert len(list(made)) == 4
    assert not threads()
    assert closed == [True]


def test_one_never_begun_starts_no_thread():
    made = iter(PairedLoader(map(batch, range(3)), Independent()))
    assert not threads()
    made.close()
    next(iter(PairedLoader(map(batch, range(3)), Independent(), ahead=0)))
    assert not threads()


# -- pools ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranked(Coupling):
    """Noise whose rows count up over the batch it is given; pairs ``pool`` batches as one."""

    pool: int = 1

    @property
    def pool_size(self):
        return self.pool

    def unpooled(self):
        return Ranked()

    def choose(self, data, noise, cond, mask, generator):
        assert self.pool == 1
        start = torch.randint(1000, (), generator=generator) * 1000
        return (start + torch.arange(len(data)))[:, None].expand_as(data).float().clone()


@pytest.mark.parametrize("ahead", [0, 1, 2])
@pytest.mark.parametrize(("pool", "count"), [(1, 4), (3, 9), (3, 8), (4, 3)])
def test_pools_are_aligned_windows_and_the_last_may_be_short(pool, count, ahead):
    seen = list(PairedLoader(map(batch, range(count)), Shuffled(Ranked(pool)), seed=3, ahead=ahead))
    assert [int(paired.cond["label"][0]) for paired in seen] == list(range(count))
    for first in range(0, count, pool):
        window = seen[first : first + pool]
        whole = torch.cat([paired.data for paired in window])
        noise = Shuffled(Ranked())(whole, generator=RandomStreams(3, first).noise)
        assert torch.equal(torch.cat([paired.noise for paired in window]), noise)


@pytest.mark.parametrize("ahead", [0, 1])
def test_batches_before_an_error_within_a_pool_are_not_lost(ahead):
    def loader():
        yield from map(batch, range(5))
        raise OSError("the disk is gone")

    made = iter(PairedLoader(loader(), Ranked(4), ahead=ahead))
    assert len(list(islice(made, 5))) == 5
    with pytest.raises(OSError, match="disk"):
        next(made)


def test_every_call_has_noise_of_its_own_unless_it_is_given_a_seed():
    def noise(**options):
        return torch.cat([n for _, n, _ in PairedLoader([torch.zeros(3, 2)] * 2, KNN(1), **options)])

    torch.manual_seed(0)
    first, second = noise(), noise()
    assert not torch.equal(first, second)  # two epochs
    torch.manual_seed(0)
    assert torch.equal(noise(), first)
    assert torch.equal(noise(seed=4), noise(seed=4))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_thread_with_a_stream_of_its_own_pairs_as_the_step_does():
    loader = [batch(number, rows=256) for number in range(4)]

    def pairs(ahead):
        with PairedLoader(loader, LinearAssignment(), seed=0, device="cuda", ahead=ahead) as paired:
            return [(each.data.cpu(), each.noise.cpu()) for each in paired]

    for here, there in zip(pairs(0), pairs(2), strict=True):
        assert all(map(torch.equal, here, there))
        assert torch.equal(LinearAssignment().assign(*here), torch.arange(256))  # on the CPU: the best already
