import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from immiscible_diffusion import KNN, RandomStreams
from immiscible_diffusion.utils.random import hash_seed, keyed_generator

NAMES = ("noise", "time", "augment", "order")


def draw(generator, count=8):
    return torch.rand(count, generator=generator)


@pytest.mark.parametrize("name", NAMES)
def test_a_stream_is_a_function_of_its_key(name):
    a, b = RandomStreams(1, step=2, rank=3), RandomStreams(1, step=2, rank=3)
    assert torch.equal(draw(getattr(a, name)), draw(getattr(b, name)))
    assert torch.equal(draw(getattr(a, name)), draw(getattr(a, name)))  # from its start each time


def test_drawing_from_one_stream_does_not_move_another():
    streams = RandomStreams(0, step=5)
    expected = draw(streams.time)
    KNN(64)(torch.zeros(4, 3), generator=streams.noise)
    assert torch.equal(draw(streams.time), expected)


def test_the_global_generator_is_neither_used_nor_moved():
    torch.manual_seed(0)
    one = draw(RandomStreams(0).noise)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert torch.equal(draw(RandomStreams(0).noise), one)
    assert torch.equal(torch.get_rng_state(), state)


def test_streams_differ_by_name_seed_step_and_rank():
    draws = [
        tuple(draw(getattr(RandomStreams(seed, step, rank), name)).tolist())
        for seed, step, rank in itertools.product(range(3), range(3), range(3))
        for name in ("noise", "time", "augment")
    ]
    assert len(set(draws)) == len(draws)


def test_order_is_the_same_on_every_rank():
    orders = [draw(RandomStreams(4, 1, rank).order) for rank in range(3)]
    assert torch.equal(orders[0], orders[1])
    assert torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0], draw(RandomStreams(4, 2).order))


def test_seeds_do_not_collide_over_a_grid():
    parts = itertools.product(range(10), range(200), range(10), ("noise", "time", "dropout"))
    seeds = [hash_seed(*part) for part in parts]
    assert len(set(seeds)) == len(seeds)
    assert 0 <= min(seeds) < max(seeds) < 2**63
    assert hash_seed(1, 23) != hash_seed(12, 3)
    assert hash_seed(1, 2, "noise") != hash_seed(2, 1, "noise")


def test_seeds_are_the_same_on_any_machine():
    assert hash_seed(0) == 4246866556266386882
    assert hash_seed(0, 1, 2, "noise") == 3841096613985521844


def test_first_numbers_of_successive_steps_are_independent():
    first = np.array([draw(RandomStreams(0, step).noise, 2).tolist() for step in range(3000)])
    assert stats.kstest(first[:, 0], "uniform").pvalue > 1e-4
    for a, b in ((first[:-1, 0], first[1:, 0]), (first[:, 0], first[:, 1])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / len(a) ** 0.5
    time = np.array([draw(RandomStreams(0, step).time, 1).item() for step in range(3000)])
    assert abs(np.corrcoef(first[:, 0], time)[0, 1]) < 4 / 3000**0.5


def test_device():
    assert RandomStreams(0, device=torch.device("cpu")).noise.device.type == "cpu"
    assert keyed_generator(0, device="cpu").device.type == "cpu"
    assert torch.equal(draw(RandomStreams(0, device="cpu").noise), draw(RandomStreams(0).noise))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_streams():
    streams = RandomStreams(0, device="cuda")
    assert streams.noise.device.type == streams.time.device.type == "cuda"
    assert streams.order.device.type == streams.augment.device.type == "cpu"


def test_dropout_seeds():
    seeds = {RandomStreams(0, step, rank).dropout for step in range(100) for rank in range(3)}
    assert len(seeds) == 300
    assert RandomStreams(0, 1, 2).dropout == RandomStreams(0, 1, 2).dropout
    torch.Generator().manual_seed(max(seeds))
