"""The law of every label: with many labels, and of couplings that are N(0, I) over all alone."""

from dataclasses import replace

import pytest
import torch

from immiscible_diffusion import KNN, Independent, LinearAssignment, Moments, Shuffled
from immiscible_diffusion.couplings import Calibrated, NoiseDistribution, Semidiscrete, SemidiscretePlan

DIM = 64
SPREAD = torch.arange(1, DIM + 1).float().rsqrt()
SPREAD = 0.5 * DIM**0.5 * SPREAD / SPREAD.norm()


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def classes(count, each, seed, between=0.35):
    """``each`` data of ``count`` classes whose means are ``between`` of the spread."""
    centers = between * torch.randn(count, DIM, generator=seeded(9)) * SPREAD
    labels = torch.arange(count).repeat_interleave(each)
    within = torch.randn(len(labels), DIM, generator=seeded(seed)) * SPREAD
    return centers[labels] + (1 - between**2) ** 0.5 * within, labels


def passes(data, labels, count, seed):
    for one in range(count):
        for rows in torch.randperm(len(data), generator=seeded(seed + one)).split(256):
            yield data[rows], labels[rows]


def shift(coupling, data, labels, count):
    """Rms distance of the mean noise of a class from 0, without sampling bias: by two halves."""
    means = []
    for seed in (100, 200):
        total = torch.zeros(count, DIM)
        for x, y in passes(data, labels, 3, seed):
            noise = coupling(x, cond={"label": y}, generator=seeded(seed + int(x[0, 0] * 1e6)))
            total.index_add_(0, y, noise)
        means.append(total / (3 * labels.bincount(minlength=count)[:, None]))
    return max(0.0, float((means[0] * means[1]).sum(dim=1).mean())) ** 0.5


@pytest.mark.parametrize(("count", "each", "times"), [(10, 400, 5), (100, 40, 5), (500, 8, 1)])
def test_calibration_by_label_is_no_worse_than_over_all_however_few_the_noises(count, each, times):
    data, labels = classes(count, each, seed=1)
    fresh = classes(count, max(20, each // 4), seed=2)
    moments, coupling = Moments.fit([(data, labels)]), KNN(16)
    law = NoiseDistribution.measure(coupling, passes(data, labels, times, 0), moments, generator=seeded(3))
    over_all = replace(law, label_mean=None, label_covariance=None)
    couplings = (coupling, Calibrated(coupling, over_all), Calibrated(coupling, law))
    raw, plain, mended = (shift(c, *fresh, count) for c in couplings)
    assert mended < 1.15 * plain  # which itself is above raw: the noise gets its length back
    if count == 10:
        assert mended < 0.6 * raw


def test_means_of_labels_are_not_touched_where_noises_are_many():
    data, labels = classes(4, 300, seed=1)
    moments, coupling = Moments.fit([(data, labels)]), KNN(16)
    law = NoiseDistribution.measure(coupling, passes(data, labels, 60, 0), moments, generator=seeded(3))
    noises = [(coupling(x, generator=seeded(7 + i)), y) for i, (x, y) in enumerate(passes(data, labels, 60, 50))]
    noise, label = (torch.cat(part) for part in zip(*noises, strict=True))
    for one in range(4):
        mine = noise[label == one].mean(dim=0) @ law.basis.T
        assert torch.allclose(law.label_mean[one], mine, atol=0.05)


def test_an_assignment_shifts_classes_and_its_law_by_label_knows_it():
    data, labels = classes(4, 300, seed=1, between=0.8)
    moments, coupling = Moments.fit([(data, labels)]), LinearAssignment()
    law = NoiseDistribution.measure(coupling, passes(data, labels, 5, 0), moments, generator=seeded(3))
    assert law.label_mean is not None
    assert not bool(law.mean.any())  # over all it is N(0, I), exactly
    assert torch.equal(law.covariance, torch.eye(len(law.covariance)))
    raw, mended = (shift(c, data, labels, 4) for c in (coupling, Calibrated(coupling, law)))
    assert raw > 0.5
    assert mended < 0.3 * raw


@pytest.mark.parametrize("coupling", [Independent(), LinearAssignment(cond_key="label"), KNN(1)], ids=str)
def test_what_keeps_its_law_given_the_label_needs_no_measuring(coupling):
    data, labels = classes(4, 50, seed=1)
    moments = Moments.fit([(data, labels)])
    law = NoiseDistribution.measure(coupling, passes(data, labels, 1, 0), moments)
    assert law == NoiseDistribution.standard(moments)


def test_without_labels_or_by_wish_the_law_over_all_is_exact():
    data, labels = classes(4, 50, seed=1)
    moments = Moments.fit([(data, labels)])
    for coupling in (LinearAssignment(), Shuffled(LinearAssignment())):
        assert NoiseDistribution.measure(coupling, data.split(64), moments) == NoiseDistribution.standard(moments)
        law = NoiseDistribution.measure(coupling, passes(data, labels, 1, 0), moments, by_label=False)
        assert law == NoiseDistribution.standard(moments)


def test_a_plan_that_ignores_labels_is_measured_given_them():
    """Its noise is N(0, I) over the data, and leans to its side given a label; conditions reach the coupling."""
    data = torch.cat([torch.randn(20, 6, generator=seeded(1)) - 2, torch.randn(20, 6, generator=seeded(2)) + 2])
    labels, index = torch.arange(40) // 20, torch.arange(40)
    moments = Moments.fit([(data, {"label": labels, "index": index})])
    assert torch.equal(moments.label_count, torch.tensor([20, 20]))
    coupling = Semidiscrete(SemidiscretePlan.fit(data, moments))
    batches = [(data, {"label": labels, "index": index})] * 50
    law = NoiseDistribution.measure(coupling, batches, moments, generator=seeded(3))
    assert torch.equal(law.mean, torch.zeros_like(law.mean))
    assert float((law.label_mean[1] - law.label_mean[0]).norm()) > 1
    within = Semidiscrete(SemidiscretePlan.fit([(data, labels)], moments), cond_key="label")
    assert NoiseDistribution.measure(within, batches, moments) == NoiseDistribution.standard(moments)
    with pytest.raises(ValueError, match=r'needs cond\["index"\]'):
        NoiseDistribution.measure(coupling, [(data, labels)], moments)
