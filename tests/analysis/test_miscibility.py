"""Effective images, the irreducible loss and everything given a condition."""

import json

import pytest
import torch

from immiscible_diffusion import KNN, Independent, LinearAssignment, Moments
from immiscible_diffusion.analysis.miscibility import VALUES, miscibility
from immiscible_diffusion.analysis.noise_density import density_of
from immiscible_diffusion.analysis.posterior import GaussianKernel, OptimalDenoiser
from immiscible_diffusion.diffusion.paths import FlowMatchingPath
from immiscible_diffusion.reporting.analysis.records import Miscibility
from immiscible_diffusion.utils.serialization import from_dict, to_dict


@pytest.fixture(scope="module")
def digits():
    datasets = pytest.importorskip("sklearn.datasets")
    bunch = datasets.load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 8 - 1
    return images, torch.tensor(bunch.target)


@pytest.fixture(scope="module")
def mixture():
    """2-D points about three centers, with the center as the label."""
    generator = torch.Generator().manual_seed(5)
    label = torch.arange(60) % 3
    centers = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [-1.0, -1.5]])
    return centers[label] + 0.3 * torch.randn(60, 2, generator=generator), label


@pytest.mark.parametrize(("k", "number", "error"), [(1, 1790.0, 0.2), (4, 1449, 16), (64, 762, 25)])
def test_reference_numbers_on_digits(digits, k, number, error):
    """An independent prototype's, uncentered, 300 probes."""
    level = miscibility(digits[0], KNN(k), levels=[0.98], probes=300).levels[0]
    both = (error**2 + level.effective.error**2) ** 0.5
    assert abs(level.effective.value - number) < 3 * both


@pytest.mark.parametrize("k", [1, 4, 64])
def test_nll_is_entropy_and_the_denoiser_has_the_irreducible_loss(digits, k):
    found = miscibility(digits[0], KNN(k), levels=[0.5, 0.8, 0.98], probes=1797)
    for level in found.levels:
        error = (level.nll.error**2 + level.entropy.error**2) ** 0.5
        assert abs(level.nll.value - level.entropy.value) < 3 * error
        error = (level.model_loss.error**2 + level.irreducible.error**2) ** 0.5
        assert abs(level.model_loss.value - level.irreducible.value) < 3 * error


@pytest.mark.parametrize("coupling", [Independent(), KNN(4)])
def test_an_optimal_model_reaches_the_irreducible_loss(mixture, coupling):
    """The closed form as the model, its loss as a trainer would take it: within 1%."""
    data = mixture[0][:8]
    path, denoiser = FlowMatchingPath(), OptimalDenoiser.of(data, coupling, FlowMatchingPath())
    levels = (0.9,)
    found = miscibility(data, coupling, levels=levels, probes=200_000, seed=1)
    generator = torch.Generator().manual_seed(11)
    for t, level in zip(levels, found.levels, strict=True):
        truth = data.repeat(60_000, 1)
        noise = coupling(truth, generator=generator)
        point = path.sample(truth, noise, torch.full((len(truth),), t))
        loss = (denoiser.target(point.x_t, t) - point.target).square().mean()
        assert float(loss) == pytest.approx(level.irreducible.value, rel=0.01)


def test_order_of_data_does_not_matter(mixture):
    data, _ = mixture
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    probes = torch.tensor([3, 17, 40])
    where = torch.argsort(order)[probes]
    plain = miscibility(data, KNN(8), probes=probes)
    moved = miscibility(data[order], KNN(8), probes=where)
    for one, other in zip(plain.levels, moved.levels, strict=True):
        for name in VALUES:
            assert getattr(one, name).value == pytest.approx(getattr(other, name).value, rel=1e-9)


def test_given_the_label_is_the_subset_of_the_label(mixture):
    data, label = mixture
    members = (label == 1).nonzero()[:, 0]
    whole = miscibility(data, KNN(8), probes=members[:7], labels=label)
    alone = miscibility(data[members], KNN(8), probes=torch.arange(7))
    assert whole.effective_count.value == 20
    for one, other in zip(whole.levels, alone.levels, strict=True):
        for name in VALUES:
            assert getattr(one, name).value == pytest.approx(getattr(other, name).value, rel=1e-9)


def test_labels_reach_the_coupling_and_all_probes_count(mixture):
    data, label = mixture
    moments = Moments.fit([(data, label)], directions=2)
    coupling = KNN(8, center="label", moments=moments)
    found = miscibility(data, coupling, probes=200, labels=label, levels=[1.0])
    assert found.probes == 200
    assert found.condition == "the label"
    assert 1 < found.levels[0].effective.value < 20


def test_a_kernel_between_all_and_one(mixture):
    data, label = mixture
    options = {"levels": [0.9], "probes": 100}
    everything = miscibility(data, KNN(4), **options).levels[0].effective.value
    wide = miscibility(data, KNN(4), weights=GaussianKernel(data, 1e3), **options)
    assert wide.levels[0].effective.value == pytest.approx(everything, rel=1e-4)
    narrow = miscibility(data, KNN(4), weights=GaussianKernel(data, 1e-4), **options)
    assert narrow.effective_count.value == pytest.approx(1, abs=1e-3)
    assert "0.0001" in narrow.condition
    apart = GaussianKernel(label[:, None].float(), 0.01)
    labeled = miscibility(data, KNN(4), labels=label, **options).levels[0]
    kernel = miscibility(data, KNN(4), weights=apart, **options).levels[0]
    assert kernel.effective.value == pytest.approx(labeled.effective.value, rel=1e-6)


def test_blocks_do_not_matter(mixture, monkeypatch):
    data, label = mixture
    calls = []
    whole = miscibility(data, KNN(4), labels=label, probes=50)
    monkeypatch.setattr("immiscible_diffusion.analysis.miscibility.BLOCK_PAIRS", 100)
    blocks = miscibility(data, KNN(4), labels=label, probes=50, progress=lambda *at: calls.append(at))
    for one, other in zip(whole.levels, blocks.levels, strict=True):
        assert one.effective.value == pytest.approx(other.effective.value, rel=1e-12)
    assert calls[-1] == (50 * 8, 50 * 8)


def test_records_survive_json(mixture):
    found = miscibility(mixture[0], KNN(4), levels=[0.5, 1.0], probes=10)
    values = json.loads(json.dumps(to_dict(found, kinds=False)))
    assert from_dict(Miscibility, values, "record") == found
    assert found.at(1.0, "entropy") == found.levels[1].entropy


def test_masked_loss_is_of_valid_positions():
    data = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([True] * 4 + [False] * 2)
    found = miscibility(data, KNN(4), mask=mask[None], levels=[0.8], probes=400)
    short = miscibility(data[:, :4], KNN(4), levels=[0.8], probes=400)
    level, other = found.levels[0], short.levels[0]
    error = 3 * (level.irreducible.error + other.irreducible.error)
    assert level.irreducible.value == pytest.approx(other.irreducible.value, abs=error)


def test_says_what_is_an_estimate(mixture):
    data, _ = mixture
    assert miscibility(data, KNN(4), probes=5).estimate == ""
    found = miscibility(data, LinearAssignment(), probes=50, batch_size=32)
    assert "estimated from" in found.estimate


def test_bad_input(mixture):
    data, label = mixture
    with pytest.raises(ValueError, match="levels"):
        miscibility(data, KNN(4), levels=[0.0])
    with pytest.raises(ValueError, match="labels must be"):
        miscibility(data, KNN(4), labels=label[:5])
    with pytest.raises(ValueError, match="not finite"):
        miscibility(data / 0, KNN(4), density=density_of(KNN(4)))
    with pytest.raises(ValueError, match="bandwidth"):
        GaussianKernel(data, 0.0)
