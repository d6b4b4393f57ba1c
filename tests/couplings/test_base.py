import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import stats

from immiscible_diffusion import (
    KNN,
    Calibrated,
    Coupling,
    FlowMatchingPath,
    GaussianOT,
    Independent,
    LinearAssignment,
    Moments,
    NoiseDistribution,
    RegressionLoss,
    Shuffled,
)
from immiscible_diffusion.couplings import WarmUp
from immiscible_diffusion.couplings.base import as_coupling, start_noise
from immiscible_diffusion.couplings.testing import check_coupling

ALL = [
    Independent(),
    KNN(4),
    KNN(4, center=Moments(torch.full((6,), 0.5), 1.0, 10)),
    LinearAssignment(),
    LinearAssignment(cost="norm"),
    Shuffled(KNN(4)),
    Shuffled(LinearAssignment()),
]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def data_of(count, dim=6, seed=0):
    return torch.randn(count, dim, generator=seeded(seed))


@pytest.mark.parametrize("coupling", ALL, ids=str)
def test_is_a_coupling(coupling):
    assert isinstance(coupling, Coupling)


def test_independent_is_randn():
    noise = Independent()(data_of(5), generator=seeded(1))
    assert torch.equal(noise, torch.randn(5, 6, generator=seeded(1)))
    with pytest.raises(ValueError, match="floating"):
        Independent()(torch.zeros(3, 3, dtype=torch.uint8))


@pytest.mark.parametrize("coupling", ALL, ids=str)
def test_labels_stay_with_their_data(coupling):
    data, labels = data_of(32), torch.arange(32)
    before = data.clone()
    coupling(data, cond={"label": labels}, generator=seeded(2))
    assert torch.equal(data, before)
    assert torch.equal(labels, torch.arange(32))


@pytest.mark.parametrize("coupling", ALL, ids=str)
@pytest.mark.parametrize("time", ["uniform", "logit_normal"])
def test_mixture_and_target_use_the_same_noise(coupling, time):
    # denoising-diffusion-pytorch mixes with paired noise and learns the noise as it was drawn.
    data, path = data_of(32).double(), FlowMatchingPath(time=time)
    noise = coupling(data, generator=seeded(3))
    t = path.sample_time(32, generator=seeded(4)).double().clamp(0.05, 0.95)
    point = path.sample(data, noise, t)
    of_mixture = (point.x_t - path.alpha(t)[:, None] * data) / path.sigma(t)[:, None]
    of_target = point.target + data
    assert torch.allclose(of_mixture, noise)
    assert torch.allclose(of_target, noise)


@pytest.mark.parametrize("coupling", ALL, ids=str)
def test_loss_vanishes_for_the_model_that_knows_the_paired_noise(coupling):
    data, path = data_of(32), FlowMatchingPath()
    noise, t = coupling(data, generator=seeded(3)), torch.full((32,), 0.7)

    def oracle(x_t, time, cond):
        return (x_t - data) / 0.7  # x_t - data = t (noise - data)

    loss = RegressionLoss()(oracle, path, data, noise, t, None)
    assert loss.shape == (32,)
    assert loss.max() < 1e-10


@pytest.mark.parametrize("inner", [Independent(), KNN(8), LinearAssignment()], ids=str)
@pytest.mark.parametrize("count", [2, 3, 17])
def test_shuffled_hands_on_the_very_noises_and_keeps_none(inner, count):
    data = data_of(count)
    for seed in range(20):
        noise = inner(data, generator=seeded(seed))
        shuffled = Shuffled(inner)(data, generator=seeded(seed))
        assert torch.equal(shuffled.unique(dim=0), noise.unique(dim=0))
        assert not (shuffled == noise).all(dim=1).any()


def test_shuffled_is_every_cycle_equally_often():
    data, seen = data_of(4), {}
    generator = seeded(0)
    for _ in range(3000):
        state = generator.get_state()
        noise = Independent()(data, generator=generator)
        generator.set_state(state)
        shuffled = Shuffled(Independent())(data, generator=generator)
        order = tuple((shuffled[:, None] == noise[None]).all(dim=2).nonzero()[:, 1].tolist())
        seen[order] = seen.get(order, 0) + 1
    assert len(seen) == 6  # cycles of four
    assert stats.chisquare(list(seen.values())).pvalue > 1e-4


def test_shuffled_keeps_the_law_and_loses_the_pairing():
    data = data_of(4000)
    coupling = KNN(16)
    noise = coupling(data, generator=seeded(5))
    shuffled = Shuffled(coupling)(data, generator=seeded(6))
    unpaired = Independent()(data, generator=seeded(7))

    def alignment(noise):
        along = (noise * data).sum(dim=1) / data.norm(dim=1)
        return float(along.mean()), float(along.std() / len(along) ** 0.5)

    assert alignment(noise)[0] > 0.5
    mean, error = alignment(shuffled)
    assert abs(mean) < 4 * error
    norms = [x.norm(dim=1).numpy() for x in (noise, shuffled, unpaired)]
    assert stats.ks_2samp(norms[0], norms[1]).pvalue > 1e-4
    assert stats.ks_2samp(norms[1], norms[2]).pvalue < 1e-6
    assert np.mean(norms[1]) == pytest.approx(np.mean(norms[0]), rel=0.02)


def test_shuffled_warns_for_one_datum():
    with pytest.warns(UserWarning, match="nothing to shuffle"):
        Shuffled(Independent())(data_of(1))


def of_each_kind():
    """A coupling of each kind, for data of 3 channels and 4 x 6 pixels."""
    moments = Moments.fit(torch.randn(80, 3, 4, 6, generator=seeded(0)), directions=4)
    standard = NoiseDistribution.standard(moments)
    centered = [KNN(4, center=moments), KNN(4, center="channel", moments=moments)]
    plain = [
        Independent(),
        KNN(1),
        KNN(4),
        LinearAssignment(),
        LinearAssignment(oversample=2),
        as_coupling(torch_like),
    ]
    around = [Shuffled(KNN(4)), WarmUp(KNN(4), 9), Calibrated(KNN(4), standard), Calibrated(Independent(), standard)]
    return [*plain, *centered, GaussianOT(moments), *around]


def torch_like(data, *, cond=None, generator=None):
    return torch.randn(data.shape, dtype=data.dtype, generator=generator)


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.mT.contiguous().mT,
    "batch last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "sparse": lambda x: torch.stack([x, x], dim=-1)[..., 0],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("coupling", of_each_kind(), ids=lambda one: str(one).partition(" at 0x")[0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_noise_has_the_memory_layout_of_the_data(coupling, layout, dtype):
    data = LAYOUTS[layout](torch.randn(5, 3, 4, 6, generator=seeded(1)).to(dtype))
    noises = [coupling(data, generator=seeded(2))]
    if coupling.takes_noise and getattr(coupling, "oversample", 1) == 1:
        noises.append(coupling.pair(data, torch.randn(data.shape).to(dtype), generator=seeded(2)))
    for noise in noises:
        assert noise.stride() == torch.empty_like(data).stride()
        assert (noise.shape, noise.dtype) == (data.shape, data.dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("coupling", [Independent(), KNN(1)], ids=str)
def test_noise_that_is_not_paired_is_randn_like_bit_for_bit(coupling, layout):
    data = LAYOUTS[layout](torch.randn(7, 3, 4, 6, generator=seeded(1)))
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        torch.manual_seed(5)
        expected = torch.randn_like(data.to(dtype))
        torch.manual_seed(5)
        assert torch.equal(coupling(data.to(dtype)), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pairing_does_not_depend_on_the_layout(layout):
    data = torch.randn(7, 3, 4, 6, generator=seeded(1))
    for coupling in (KNN(4), LinearAssignment()):
        noise = coupling(LAYOUTS[layout](data), generator=seeded(2))
        torch.testing.assert_close(noise, coupling(data, generator=seeded(2)))


# -- couplings of a user's own ---------------------------------------------------------------------


def plain(data, *, cond=None, generator=None):
    return torch.randn(data.shape, generator=generator)


class Foreign:
    """Its attributes mean something to its author alone."""

    pool, coupling, across_ranks, preserves_marginal = "a pool", "a coupling", 3, 1

    def __call__(self, data, cond, mask, generator):
        return torch.full_like(data, -1.0 if mask is None else float(mask.sum()))


@pytest.mark.parametrize("own", [plain, Foreign(), lambda data, **options: data + 1])
def test_a_function_is_a_coupling_and_nothing_is_read_off_it(own):
    coupling = as_coupling(own)
    assert as_coupling(coupling) is coupling
    assert (coupling.pool_size, coupling.across_ranks) == (1, False)
    assert coupling.preserves_marginal is coupling.takes_noise is False
    assert coupling.at_step(3) is coupling.unpooled() is coupling
    assert Shuffled(own)(data_of(3)).shape == (3, 6)
    with pytest.raises(ValueError, match="cannot start from noise"):
        coupling.pair(data_of(3), data_of(3))


def test_a_mask_reaches_a_function_that_takes_one_and_no_other():
    mask = torch.tensor([True] * 5 + [False])
    assert as_coupling(Foreign())(data_of(4), mask=mask)[0, 0] == 20
    assert as_coupling(Foreign())(data_of(4))[0, 0] == -1
    with pytest.raises(ValueError, match=r"have a mask, which .*plain.* does not take"):
        as_coupling(plain)(data_of(4), mask=mask)


@pytest.mark.parametrize("value", ["knn", None, KNN, lambda data: data, Coupling])
def test_what_is_no_coupling(value):
    with pytest.raises(ValueError, match=r"expected a coupling|cannot be called as coupling"):
        as_coupling(value)


def test_noise_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="noise must be"):
        as_coupling(lambda data, **options: data[:1])(data_of(4))


@dataclass(frozen=True)
class Halves(Coupling):
    """One method: all a subclass needs."""

    def choose(self, data, noise, cond, mask, generator):
        return start_noise(data, noise, generator)


def test_a_subclass_needs_one_method():
    check_coupling(Halves())
    noise = data_of(5, seed=1)
    assert torch.equal(Halves().pair(data_of(5), noise), noise)
    assert pickle.loads(pickle.dumps(Halves())) == Halves()
    with pytest.raises(NotImplementedError, match="Coupling must define choose"):
        Coupling()(data_of(3))
