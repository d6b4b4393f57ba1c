"""With a generator of its own, no coupling touches the random numbers of a trainer."""

import random

import pytest
import torch

from immiscible_diffusion import KNN, Calibrated, Independent, LinearAssignment, Moments, Shuffled
from immiscible_diffusion.couplings import GaussianOT, MaskedCoupling, NoiseDistribution, WarmUp
from immiscible_diffusion.integrations import own_generator

DATA = torch.randn(96, 3, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.3
COND = {"label": torch.arange(96) % 3, "inpaint_mask": torch.ones(96, 1, 4, 4)}
MOMENTS = Moments.fit([(DATA, COND["label"])], directions=4)


@pytest.fixture(autouse=True)
def _fresh():
    own_generator.cache_clear()
    torch.manual_seed(0)


COUPLINGS = [
    Independent(),
    KNN(1),
    KNN(4),
    KNN(600),
    KNN(4, center=MOMENTS),
    KNN(4, center="label", moments=MOMENTS),
    KNN(4, center="channel", moments=MOMENTS),
    LinearAssignment(),
    LinearAssignment(negate=True),
    LinearAssignment(cond_key="label", cond_cost="soft"),
    Shuffled(KNN(4)),
    WarmUp(KNN(4), 3),
    MaskedCoupling(KNN(4)),
    Calibrated(KNN(4), NoiseDistribution.measure(KNN(4), [DATA], MOMENTS)),
    GaussianOT(MOMENTS),
]


def states():
    return torch.get_rng_state().tolist(), random.getstate()


@pytest.mark.parametrize("coupling", COUPLINGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_streams_of_a_trainer_are_left_alone(coupling, dtype):
    data = DATA.to(dtype)
    torch.randn_like(data)
    before = states()
    torch.manual_seed(0)
    noise = coupling.pair(data, torch.randn_like(data), cond=COND, generator=own_generator("cpu"))
    assert states() == before
    again = torch.Generator().manual_seed(own_generator("cpu").initial_seed())
    torch.manual_seed(0)
    assert torch.equal(noise, coupling.pair(data, torch.randn_like(data), cond=COND, generator=again))


def test_one_a_device_by_seed_and_rank(monkeypatch):
    seeds = []
    for seed, rank in [(0, "0"), (0, "1"), (1, "0"), (1, "1")]:
        own_generator.cache_clear()
        monkeypatch.setenv("RANK", rank)
        torch.manual_seed(seed)
        assert own_generator("cpu") is own_generator("cpu")
        seeds.append(own_generator("cpu").initial_seed())
    assert len({*seeds, 0, 1}) == 6
