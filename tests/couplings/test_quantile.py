"""Quantile coupling: ranks along directions, N(0, 1) along each, ties, labels, bad input."""

import re

import pytest
import torch
from scipy.stats import kstest, spearmanr

from immiscible_diffusion.couplings import KNN, Moments, SemidiscretePlan, parse_coupling
from immiscible_diffusion.couplings.describe import DataSpec, describe_coupling
from immiscible_diffusion.couplings.quantile import Quantile
from immiscible_diffusion.couplings.testing import check_coupling

N, SHAPE = 3000, (2, 3)


def skewed(seed=0, count=N):
    """Data far from a Gaussian: exponential, in dependent directions."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.empty(count, 6).exponential_(generator=generator) @ torch.randn(6, 6, generator=generator)
    return data.view(count, *SHAPE)


def plan_of_rank(rank, data=None, **options):
    data = skewed() if data is None else data
    moments = Moments.fit(data)
    return SemidiscretePlan.fit(data, moments, rank=rank, max_steps=0, **options)


def passes(coupling, data, times, **options):
    """Noise of ``times`` passes over the data set ``[times N, D]``."""
    generator = torch.Generator().manual_seed(1)
    return torch.cat([coupling(data, generator=generator, **options).flatten(1) for _ in range(times)])


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_noise_is_standard_normal_along_every_direction(rank, share):
    """And across them: each coordinate in the basis of the data, and any other direction if there is but one."""
    data, plan = skewed(), plan_of_rank(rank)
    noise = passes(Quantile(plan, rank, share=share), data, 10)
    axes = Moments.fit(data).directions
    for axis in axes:
        assert kstest((noise @ axis).numpy(), "norm").pvalue > 0.01
    assert torch.allclose(noise.T @ noise / len(noise), torch.eye(6), atol=0.04)
    if rank == 1:
        mixed = torch.nn.functional.normalize(torch.ones(6), dim=0)
        assert kstest((noise @ mixed).numpy(), "norm").pvalue > 0.01


def test_ranks_agree_along_the_directions_and_not_across():
    data, plan = skewed(), plan_of_rank(6)  # of which two are used
    noise = Quantile(plan, 2)(data, generator=torch.Generator().manual_seed(2)).flatten(1)
    axes = Moments.fit(data).directions
    agreement = [spearmanr((data.flatten(1) @ axis).numpy(), (noise @ axis).numpy())[0] for axis in axes]
    assert min(agreement[:2]) > 0.999
    assert max(map(abs, agreement[2:])) < 0.06


def test_it_is_optimal_transport_on_a_line():
    """The quadratic cost of sorted pairs is the least there is, up to the spread of N draws."""
    data = skewed()[:, :1, :1].contiguous()
    noise = Quantile(plan_of_rank(1, data))(data, generator=torch.Generator().manual_seed(3))
    drawn = torch.randn(N, generator=torch.Generator().manual_seed(4)).sort().values
    best = (data.flatten().sort().values - drawn).square().mean()
    assert float((data - noise).square().mean()) == pytest.approx(float(best), rel=0.03)


@pytest.mark.parametrize(("rank", "share"), [(1, 1.0), (3, 1.0), (1, 0.5), (3, 0.3)])
def test_the_pull_is_what_describe_says(rank, share):
    variance = torch.tensor([30.0, 20, 10] + [1.0] * 60)
    data = torch.randn(4000, 63, generator=torch.Generator().manual_seed(0)) * variance.sqrt()
    plan = SemidiscretePlan.fit(data, Moments.fit(data), max_steps=0)
    coupling = Quantile(plan, rank, share)
    noise = torch.cat([coupling(data, generator=torch.Generator().manual_seed(seed)) for seed in range(1, 9)])
    data = data.repeat(8, 1)
    product, length = (noise * data).sum(dim=1), data.norm(dim=1)
    [note] = describe_coupling(f"quantile:rank={rank},share={share}", DataSpec((63,))).notes
    times = re.search(r"([\d.]+) times the sum", note)
    assert ("log N nats" in note) == (times is None) == (share == 1)
    expected = float((variance[:rank] / variance.sum()).sqrt().sum()) * (float(times[1]) if times else 1)
    assert float(product.mean() / length.square().mean().sqrt()) == pytest.approx(expected, rel=0.05)
    assert float((product / length).mean()) == pytest.approx(expected, rel=0.15)  # lengths vary


def test_equal_values_share_their_ranks():
    """Of a coin with 3 heads in 10 the heads have the upper 3 tenths of the noise, each all of it."""
    data = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0])[:, None]
    noise = passes(Quantile(plan_of_rank(1, data)), data, 4000).view(-1, 10)
    edge = torch.special.ndtri(torch.tensor(0.7))
    heads = data[:, 0] == 1
    assert bool((noise[:, heads] > edge).all())
    assert bool((noise[:, ~heads] < edge).all())
    assert kstest(noise.flatten().numpy(), "norm").pvalue > 0.01
    top = [float((noise[:, i] > torch.special.ndtri(torch.tensor(0.85))).float().mean()) for i in (0, 3, 7)]
    assert top == pytest.approx([0.5] * 3, abs=0.04)


def test_the_share_of_the_samples_is_paired_and_no_more():
    """A paired sample's noise lies within its rank, here one in a thousand levels; few others' do by chance."""
    data = skewed(count=1000)
    coupling = Quantile(plan_of_rank(1, data), share=0.3)
    axis = coupling.plan.directions[0]
    rank = (data.flatten(1) @ axis).argsort().argsort()
    level = torch.special.ndtr(passes(coupling, data, 5) @ axis) * 1000
    kept = (level - rank.repeat(5) - 0.5).abs() < 1
    assert float(kept.float().mean()) == pytest.approx(0.3, abs=0.03)


def test_batches_of_one_are_as_batches_of_all():
    """Ranks are of the data set: a sample by itself has its noise."""
    data, coupling = skewed(count=200), Quantile(plan_of_rank(1, skewed(count=200)))
    alone = torch.cat([coupling(row[None], generator=torch.Generator().manual_seed(i)) for i, row in enumerate(data)])
    together = coupling(data, generator=torch.Generator().manual_seed(0))
    axis = coupling.plan.directions[0]
    assert float(((alone - together).flatten(1) @ axis).abs().median()) < 0.05


def test_samples_that_the_plan_has_not_seen_take_the_rank_between():
    plan = plan_of_rank(1, torch.arange(100.0)[:, None])
    noise = Quantile(plan)(torch.tensor([[-50.0], [49.4], [1000.0]]))
    sign = float(plan.directions[0, 0])
    level = torch.special.ndtr(sign * noise[:, 0])
    assert pytest.approx(level.tolist(), abs=0.011) == [0.0, 0.5, 1.0]


def test_within_labels_the_noise_of_each_is_standard_normal():
    """The means of two labels lie apart; without ``cond_key`` the noise says which is which."""
    labels = torch.arange(N) % 2
    data = skewed() + 8.0 * labels.view(-1, 1, 1)
    moments = Moments.fit(data)
    within = SemidiscretePlan.fit([(data, labels)], moments, rank=1, max_steps=0)
    blind = SemidiscretePlan.fit(data, moments, rank=1, max_steps=0)
    axis, cond = within.directions[0], {"label": labels}
    noise = Quantile(within, cond_key="label")(data, cond=cond).flatten(1) @ axis
    assert all(kstest(noise[labels == i].numpy(), "norm").pvalue > 0.01 for i in (0, 1))
    leak = Quantile(blind)(data).flatten(1) @ axis
    assert abs(float(leak[labels == 0].mean())) > 0.5
    assert Quantile(within, cond_key="label").preserves_conditional("label")
    with pytest.raises(ValueError, match="no samples of label 7"):
        Quantile(within, cond_key="label")(data, cond={"label": torch.full((N,), 7)})
    with pytest.raises(ValueError, match="label"):
        Quantile(within, cond_key="label")(data)


def test_it_is_a_coupling():
    data = skewed(count=300)
    check_coupling(Quantile(plan_of_rank(1, data)), shape=SHAPE)
    coupling = parse_coupling("quantile:share=0.5", plan=lambda within, **options: plan_of_rank(options["rank"], data))
    assert (coupling.share, coupling.rank, len(coupling.plan.directions)) == (0.5, 1, 1)
    assert str(coupling) == "quantile:share=0.5"
    assert not Quantile(plan_of_rank(2, data), rank=2).preserves_marginal
    assert Quantile(plan_of_rank(2, data)).preserves_marginal


def test_errors():
    plan = plan_of_rank(1)
    with pytest.raises(ValueError, match="SemidiscretePlan"):
        Quantile(KNN(2))
    with pytest.raises(ValueError, match="rank must be 1 to 1"):
        Quantile(plan, rank=2)
    with pytest.raises(ValueError, match="share"):
        Quantile(plan, share=1.5)
    with pytest.raises(ValueError, match="label"):
        Quantile(plan, cond_key="label")
    with pytest.raises(ValueError, match="fit it on data of this shape"):
        Quantile(plan)(torch.zeros(4, 3))
    data = skewed(count=8)
    data[5, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="data row 5 is not finite"):
        Quantile(plan)(data)
    within = SemidiscretePlan.fit([(data[:4], torch.zeros(4).long())], Moments.fit(data[:4]), rank=1, max_steps=0)
    for wrong in (torch.zeros(3).long(), torch.zeros(4), [0, 0, 0, 0]):
        with pytest.raises(ValueError, match="labels must be"):
            Quantile(within, cond_key="label")(data[:4], cond={"label": wrong})
