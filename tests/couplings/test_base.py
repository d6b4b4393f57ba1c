import sys
import types

import numpy as np
import pytest
import torch
from scipy import stats

from immiscible_diffusion import (
    KNN,
    Coupling,
    FlowMatchingPath,
    Independent,
    LinearAssignment,
    Moments,
    RegressionLoss,
    Shuffled,
    parse_coupling,
)

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


MEAN = Moments(torch.zeros(6), 1.0, 10)


@pytest.mark.parametrize(
    ("name", "coupling"),
    [
        ("independent", Independent()),
        (" knn:k=16 ", KNN(16)),
        ("knn:k=16,center=none", KNN(16)),
        ("knn:k=16,center=mean", KNN(16, center=MEAN)),
        ("knn: k = 16 , center = mean", KNN(16, center=MEAN)),
        ("assignment", LinearAssignment()),
        ("assignment:cost=norm", LinearAssignment(cost="norm")),
        ("shuffled:knn:k=4", Shuffled(KNN(4))),
        ("shuffled:shuffled:independent", Shuffled(Shuffled(Independent()))),
        ("immiscible_diffusion:KNN(k=3)", KNN(3)),
        ("immiscible_diffusion.couplings.knn:KNN(k=3, center=None)", KNN(3)),
        ("immiscible_diffusion:Independent", Independent()),
        ("shuffled:immiscible_diffusion:Independent()", Shuffled(Independent())),
    ],
)
def test_names(name, coupling):
    assert parse_coupling(name, MEAN) == coupling


def test_moments_are_fitted_only_if_needed():
    fits = []

    def fit():
        fits.append(1)
        return MEAN

    assert parse_coupling("knn:k=2", fit) == KNN(2)
    assert not fits
    assert parse_coupling("shuffled:knn:k=2,center=mean", fit) == Shuffled(KNN(2, center=MEAN))
    assert fits == [1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "unknown coupling ''; known: independent, knn"),
        ("nearest", "unknown coupling 'nearest'; known: independent, knn"),
        ("KNN:k=4", "cannot be imported|unknown coupling"),
        ("knn", "'k'.*options: k, center"),
        ("knn:k=0", "k must be a whole number"),
        ("knn:k=four", "k must be a whole number >= 1, got 'four'"),
        ("knn:4", "'4' is not of the form option=value"),
        ("knn:k=", "'k=' is not of the form"),
        ("knn:k=2,k=3", "'k' is given twice"),
        ("knn:k=2,center=mean", "center.*options: k, center"),
        ("knn:k=2,center=sum", "center=sum is unknown; use one of mean, label, channel"),
        ("knn:k=2,center=mean", "needs the moments of the data"),
        ("assignment:cost=l2", "inner, norm, l1, got 'l2'"),
        ("independent:k=2", "options: none"),
        ("shuffled:", "unknown coupling ''"),
        ("no_such_module:Mine", "cannot be imported: No module named 'no_such_module'"),
        ("immiscible_diffusion:NoSuch", "cannot be imported"),
        ("immiscible_diffusion:KNN(3)", "use option=value only"),
        ("immiscible_diffusion:KNN(**{})", "use option=value only"),
        ("immiscible_diffusion:KNN(k=)", "cannot read"),
        ("immiscible_diffusion:KNN(k=open('x'))", "cannot read"),
        ("immiscible_diffusion:KNN(k=2)+f(3)", "one pair of brackets"),
        ("immiscible_diffusion:KNN(k=2)(k=3)", "one pair of brackets"),
        ("immiscible_diffusion:__version__", "not callable|cannot be called"),
        ("immiscible_diffusion:KNN(j=2)", "options: k, center"),
    ],
)
def test_errors_of_names(name, message):
    with pytest.raises(ValueError, match=message):
        parse_coupling(name)


def test_a_name_that_makes_no_coupling(monkeypatch):
    module = types.ModuleType("mine")
    module.Number = float
    monkeypatch.setitem(sys.modules, "mine", module)
    with pytest.raises(ValueError, match="which cannot be called with data"):
        parse_coupling("mine:Number")


def test_a_coupling_of_another_signature_is_refused_by_name(monkeypatch):
    class Older:
        def __call__(self, data):
            return data

    module = types.ModuleType("mine")
    module.Older = Older
    monkeypatch.setitem(sys.modules, "mine", module)
    with pytest.raises(ValueError, match=r"cannot be called as coupling\(data, cond=cond"):
        parse_coupling("mine:Older")


def test_switches_are_read_in_small_letters():
    assert parse_coupling("assignment:across_ranks=true,flipped=False") == LinearAssignment(
        across_ranks=True
    )
