"""Pairing of plans of actions: few dimensions, padding in time, observations that must not move."""

import itertools
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures.action_windows import GARBAGE, windows
from immiscible_diffusion import KNN, LinearAssignment
from immiscible_diffusion.couplings import Independent, Shuffled, WarmUp
from immiscible_diffusion.couplings.testing import check_coupling
from immiscible_diffusion.diffusion.paths import FlowMatchingPath, VPPath
from immiscible_diffusion.integrations import pull

COUPLINGS = [
    KNN(k=2),
    KNN(k=16),
    LinearAssignment(),
    LinearAssignment(cost="norm", standardize=True),
    LinearAssignment(standardize=True),
    LinearAssignment(cond_key="observation", cond_cost="soft"),
    LinearAssignment(oversample=2),
    Shuffled(KNN(k=4)),
    WarmUp(KNN(k=2), 10),
    Independent(),
]
PAIRING = [coupling for coupling in COUPLINGS if not isinstance(coupling, (Shuffled, Independent))]
short = settings(max_examples=15, deadline=None)


def draw(coupling, batch, seed=0, data=None):
    generator = torch.Generator().manual_seed(seed)
    data = batch.data if data is None else data
    return coupling(data, cond=batch.cond, mask=batch.mask, generator=generator)


def garbled(batch, fill=GARBAGE):
    return batch.data.masked_fill(~batch.mask, fill)


@pytest.mark.parametrize("coupling", COUPLINGS, ids=repr)
@short
@given(seed=st.integers(0, 1000), fill=st.sampled_from([GARBAGE, -3.0, 0.0]))
def test_padding_never_influences_pairing(coupling, seed, fill):
    batch = windows(24, seed)
    assert not bool(batch.mask.all())
    same = draw(coupling, batch, seed)
    assert torch.equal(draw(coupling, batch, seed, garbled(batch, fill)), same)


@pytest.mark.parametrize("coupling", COUPLINGS, ids=repr)
@short
@given(seed=st.integers(0, 1000))
def test_data_and_observations_stay_in_place(coupling, seed):
    batch = windows(24, seed)
    data, seen = batch.data.clone(), batch.cond["observation"].clone()
    mask = batch.mask.clone()
    draw(coupling, batch, seed)
    assert torch.equal(batch.data, data)
    assert torch.equal(batch.cond["observation"], seen)
    assert torch.equal(batch.mask, mask)


@pytest.mark.parametrize("path", [VPPath("cosine", steps=100), FlowMatchingPath()], ids=repr)
@pytest.mark.parametrize("coupling", COUPLINGS, ids=repr)
def test_padding_never_influences_a_masked_loss(coupling, path):
    """Where positions outside are put at 0 before data are diffused, and errors there left out.

    The network sees all of ``x_t``, so a mask on the errors alone would let padding in.
    """

    def loss(data):
        noise = draw(coupling, batch, data=data)
        point = path.sample(data.masked_fill(~batch.mask, 0), noise, t)
        mixed = point.x_t.flatten(1) @ weight  # every position reaches every other
        error = (mixed.view(point.x_t.shape) - point.target).square()
        inside = batch.mask.expand_as(error)
        return (error * inside).sum(dim=(1, 2)) / inside.sum(dim=(1, 2))

    batch, weight = windows(24, 3), torch.randn(32, 32)
    t = path.sample_time(24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loss(batch.data), loss(garbled(batch)))


@pytest.mark.parametrize("coupling", PAIRING, ids=repr)
def test_noise_leans_to_its_actions_over_valid_positions_only(coupling):
    batch = windows(512, 1)
    noise, valid = draw(coupling, batch), batch.mask.expand_as(batch.data)
    assert float(pull(batch.data, noise, mask=valid).mean()) > 0.15
    free = noise[~valid]
    if isinstance(coupling, (KNN, WarmUp)):
        assert abs(float(free.var()) - 1) < 4 * (2 / free.numel()) ** 0.5
        assert abs(float(free.mean())) < 4 / free.numel() ** 0.5


def test_a_masked_assignment_gives_padded_data_noise_that_is_long_where_it_does_not_count():
    """Known, not wanted: noises are whole, and short over valid positions suits padded data.

    Over all positions the law is N(0, I); given the mask it is not. KNN has none of this.
    """
    batch = windows(512, 1)
    valid = batch.mask.expand_as(batch.data)
    noise = draw(LinearAssignment(), batch)
    padded = ~valid.flatten(1).all(dim=1)
    assert abs(float(noise.var()) - 1) < 0.05
    assert float(noise[~valid].var()) > 1.2
    assert float(noise[padded][valid[padded]].var()) < 0.95


def test_knn_of_two_is_what_the_design_says():
    """16 x 2 actions in [-1, 1]: variance 0.892 at k = 2, 0.814 at 4 (eight seeds, 0.0005 each)."""
    data = 2 * torch.rand(20_000, 16, 2, generator=torch.Generator().manual_seed(0)) - 1
    for k, variance in ((2, 0.892), (4, 0.8136)):
        noise = KNN(k=k)(data, generator=torch.Generator().manual_seed(1))
        assert abs(float(noise.var()) - variance) < 0.006


# -- standardized distance ------------------------------------------------------------------------


def standardized_by_hand(data, valid):
    out = torch.zeros_like(data)
    for place in itertools.product(*map(range, data.shape[1:])):
        rows = valid[(slice(None), *place)]
        values = data[(rows, *place)]
        if len(values) and values.std(unbiased=False) > 1e-6:
            out[(rows, *place)] = (values - values.mean()) / values.std(unbiased=False)
    return out


@pytest.mark.parametrize("cost", ["inner", "norm", "l1"])
def test_standardized_is_the_assignment_of_standardized_data(cost):
    batch = windows(32, 4)
    data, valid = batch.data.double(), batch.mask.expand_as(batch.data)
    data = data * torch.tensor([1.0, 0.01]).double() + 5
    noise = torch.randn(data.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    index = LinearAssignment(cost=cost, standardize=True).assign(data, noise, mask=batch.mask)
    by_hand = standardized_by_hand(data, valid)
    assert torch.equal(index, LinearAssignment(cost=cost).assign(by_hand, noise, mask=batch.mask))


def test_standardized_does_not_see_shift_and_scale_of_a_coordinate():
    batch = windows(32, 5)
    data = batch.data.double()
    noise = torch.randn(data.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    own, plain = LinearAssignment(standardize=True), LinearAssignment()
    moved = data * torch.tensor([100.0, 0.02]).double() + torch.tensor([3.0, -1]).double()
    assert torch.equal(own.assign(data, noise), own.assign(moved, noise))
    assert not torch.equal(plain.assign(data, noise), plain.assign(moved, noise))


def test_standardized_with_a_coordinate_that_does_not_vary():
    batch = windows(16, 6)
    data = batch.data.clone()
    data[:, 3] = 0.7
    data[:, 4] = torch.where(torch.arange(16)[:, None] == 2, 0.3, data[:, 4])
    noise = draw(LinearAssignment(standardize=True), batch, data=data)
    assert bool(noise.isfinite().all())


def test_standardized_keeps_the_noises_drawn_and_all_promises():
    batch = windows(64, 7)
    coupling = LinearAssignment(cost="norm", standardize=True)
    drawn = coupling.draw(batch.data, torch.Generator().manual_seed(0))
    assert sorted(draw(coupling, batch).tolist()) == sorted(drawn.tolist())
    assert coupling.preserves_marginal
    check_coupling(coupling)


# -- observations ---------------------------------------------------------------------------------


def test_noise_stays_near_its_observation_where_asked_to():
    """Noise of row j carries the observation of row j; the soft cost keeps it among its like."""
    batch = windows(256, 8)
    seen = batch.cond["observation"]
    unit = seen / seen.norm(dim=1, keepdim=True)
    noise = torch.randn(batch.data.shape, generator=torch.Generator().manual_seed(3))
    moved = {}
    for key in (None, "observation"):
        options = {} if key is None else {"cond_key": key, "cond_cost": "soft"}
        index = LinearAssignment(**options).assign(batch.data, noise, cond=batch.cond)
        assert index.sort().values.tolist() == list(range(256))
        moved[key] = float((1 - (unit * unit[index]).sum(dim=1)).mean())
    assert moved["observation"] < 0.7 * moved[None]


def test_equal_observations_only_pairs_next_to_nothing_and_says_so():
    batch = windows(64, 9)
    with pytest.warns(UserWarning, match="can be paired; use a larger pool, cond_cost='soft'"):
        noise = draw(LinearAssignment(cond_key="observation"), batch)
    drawn = LinearAssignment().draw(batch.data, torch.Generator().manual_seed(0))
    assert float((noise == drawn).float().mean()) > 0.9


# -- warm-up --------------------------------------------------------------------------------------


def test_pairing_begins_at_its_step():
    batch = windows(64, 10)
    coupling = WarmUp(KNN(k=8), start_step=3)
    noises = [draw(coupling.at_step(step), batch) for step in range(6)]
    plain, paired = draw(Independent(), batch), draw(KNN(k=8), batch)
    for step, noise in enumerate(noises):
        assert torch.equal(noise, plain if step < 3 else paired)


def test_a_warm_up_is_found_inside_other_couplings():
    coupling = Shuffled(WarmUp(KNN(k=8), start_step=3))
    assert coupling.at_step(2) == Shuffled(Independent())
    assert coupling.at_step(3) == Shuffled(KNN(k=8))
    assert KNN(k=8).at_step(0) == KNN(k=8)
    assert WarmUp(WarmUp(KNN(k=8), 5), 2).at_step(3) == Independent()


def test_a_warm_up_keeps_what_couplings_promise():
    check_coupling(WarmUp(KNN(k=8), 3))
    assert WarmUp(LinearAssignment(), 3).preserves_marginal
    assert not WarmUp(KNN(k=8), 3).preserves_marginal


def test_a_law_is_of_one_coupling():
    from immiscible_diffusion import Moments
    from immiscible_diffusion.couplings import Calibrated, NoiseDistribution

    data = windows(256, 11).data
    law = NoiseDistribution.standard(Moments.fit(data))
    for coupling in (WarmUp(KNN(k=8), 3), Shuffled(WarmUp(KNN(k=8), 3)), Shuffled(Shuffled(WarmUp(KNN(k=8), 0)))):
        with pytest.raises(ValueError, match=r"use WarmUp\(Calibrated\("):
            Calibrated(coupling, law)
    inside = WarmUp(Calibrated(KNN(k=8), law), 3)
    assert inside.at_step(3) == inside.coupling


@pytest.mark.parametrize("step", [-1, 1.5, True])
def test_steps_that_are_none(step):
    with pytest.raises(ValueError, match="start_step must be a whole number"):
        WarmUp(KNN(k=2), step)
    with pytest.raises(ValueError, match="expected a coupling"):
        WarmUp("knn", 3)


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="LinearAssignment pairs nothing")
        yield
