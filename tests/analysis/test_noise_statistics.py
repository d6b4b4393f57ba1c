"""The distribution of the noise against theory, and estimates against closed forms."""

import json
import math

import pytest
import torch

from immiscible_diffusion import KNN, Independent, LinearAssignment, Moments
from immiscible_diffusion.analysis.miscibility import miscibility
from immiscible_diffusion.analysis.noise_density import KNNDensity
from immiscible_diffusion.analysis.noise_statistics import gaussian_fit, gaussian_fit_bias, measure_noise
from immiscible_diffusion.couplings.gaussian_ot import GaussianOT
from immiscible_diffusion.couplings.noise_distribution import NoiseDistribution
from immiscible_diffusion.couplings.wrappers import Calibrated
from immiscible_diffusion.reporting.analysis.records import NoiseStatistics
from immiscible_diffusion.utils.serialization import from_dict, to_dict


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(1)
    scale = torch.tensor([2.0, 1.0, 0.5] + [0.2] * 17)
    return 0.3 + scale * torch.randn(400, 20, generator=generator)


def near(mean, value, errors=4):
    return abs(mean.value - value) < errors * mean.error


@pytest.mark.parametrize("k", [2, 4, 64])
def test_what_pairing_spends(data, k):
    """Information and distortion of KNN add up to log k - 1 + 1/k, whatever the data."""
    found = measure_noise(data, KNN(k), pairs=3000)
    total = found.information.value + found.kl.value
    error = math.hypot(found.information.error, found.kl.error)
    assert abs(total - (math.log(k) - 1 + 1 / k)) < 4 * error
    assert found.kl.value > 3 * found.kl.error
    assert found.square.value < 1


def test_no_pairing_spends_nothing(data):
    found = measure_noise(data, Independent())
    assert abs(found.information.value) + abs(found.kl.value) < 1e-9
    assert near(found.square, 1)
    assert near(found.shift_square, 0)
    for variance, error in zip(found.direction_variance, found.direction_error, strict=True):
        assert abs(variance - 1) < 4 * error


def test_an_affine_map_keeps_the_information(data):
    inner, moments = KNN(16), Moments.fit(data, directions=20)
    generator = torch.Generator().manual_seed(0)
    distribution = NoiseDistribution.measure(inner, [data] * 20, moments, generator=generator)
    plain, mapped = measure_noise(data, inner), measure_noise(data, Calibrated(inner, distribution))
    assert mapped.information.value == pytest.approx(plain.information.value, abs=1e-5)
    assert mapped.kl.value < plain.kl.value / 3
    assert near(mapped.square, 1)
    assert near(plain.shift_square, float(sum(x * x for x in plain.direction_mean)), errors=6)


def test_transport_on_gaussian_data(data):
    """Information of jointly Gaussian noise and data: -1/2 sum log(1 - rho^2)."""
    moments = Moments.fit(data, directions=20)
    coupling = GaussianOT(moments, eps=4.0)
    found = measure_noise(data, coupling, pairs=3000)
    given = found.information.value + found.kl.value
    expected = -0.5 * float((1 - coupling.correlation.double().square()).log().sum())
    assert abs(given - expected) < 4 * math.hypot(found.information.error, found.kl.error)


def test_by_label(data):
    labels = (data[:, 0] > 0.3).long()
    found = measure_noise(data, KNN(16), labels=labels, pairs=500)
    assert set(found.per_label) == {"0", "1"}
    alone = measure_noise(data[labels == 1], KNN(16), pairs=500)
    one = found.per_label["1"]
    assert one.samples == int(labels.sum())
    assert abs(one.kl.value - alone.kl.value) < 4 * math.hypot(one.kl.error, alone.kl.error)
    assert one.shift_square.value > 4 * one.shift_square.error
    values = json.loads(json.dumps(to_dict(found, kinds=False)))
    assert from_dict(NoiseStatistics, values, "record") == found


def test_assignment_preserves_the_marginal(data):
    found = measure_noise(data, LinearAssignment(), batch_size=64)
    assert found.estimate
    assert found.kl == (0, 0)
    assert found.information.value > 1


def tight_blobs():
    """Two tight blobs in two dimensions, where an estimate of the density easily fails."""
    generator = torch.Generator().manual_seed(0)
    side = torch.where(torch.randn(400, 1, generator=generator) > 0, 2.0, -2.0)
    blobs = side + 0.05 * torch.randn(400, 2, generator=generator)
    return blobs, (side[:, 0] > 0).long()


def test_kl_is_0_of_what_preserves_the_marginal_however_wrong_the_estimate():
    blobs, labels = tight_blobs()
    found = measure_noise(blobs, LinearAssignment(), labels=labels, pairs=200)
    assert found.kl == (0, 0)
    assert found.failed or found.information.value > -3 * found.information.error
    assert all(one.kl != (0, 0) for one in found.per_label.values())  # noises go where they suit
    within = LinearAssignment(cond_key="label")
    kept = measure_noise(blobs, within, labels=labels, pairs=200)
    assert [one.kl for one in kept.per_label.values()] == [(0, 0), (0, 0)]
    options = {"cond": {"label": labels}, "label_key": "task", "pairs": 200}
    other = measure_noise(blobs, within, labels=labels, **options)
    assert all(one.kl != (0, 0) for one in other.per_label.values())


def test_an_estimate_that_failed_gives_no_figure(data):
    """Information below 0 is impossible, and so is a likelihood that is not the entropy's."""

    class Unknown:
        """Independent noise that does not say so."""

        def __call__(self, data, *, cond=None, mask=None, generator=None):
            return torch.randn(data.shape, generator=generator)

    class WrongDensity(KNNDensity):
        estimate = "estimated badly"

    wrong = WrongDensity(KNN(64))
    found = measure_noise(data, Unknown(), labels=(data[:, 0] > 0.3).long(), density=wrong)
    assert found.failed
    for one in (found, *found.per_label.values()):
        assert not one.information.is_known
        assert not one.kl.is_known
        assert one.square.is_known
    mixed = miscibility(data, Unknown(), levels=[0.5, 0.9], density=wrong)
    assert mixed.failed
    assert not any(level.effective.is_known or level.irreducible.is_known for level in mixed.levels)
    assert all(level.consistency_error.is_known for level in mixed.levels)
    exact = measure_noise(data, Unknown(), density=KNNDensity(KNN(64)))
    assert not exact.failed  # a stated density is taken at its word
    assert exact.information.value < 0


def test_gaussian_fit_without_its_bias(data):
    assert gaussian_fit_bias(50_000, 3072) == pytest.approx(48.23, abs=0.005)
    plain = gaussian_fit(data, Independent(), count=4000)
    assert abs(plain.corrected) < 0.01
    paired = gaussian_fit(data, KNN(64), count=4000)
    assert paired.corrected > 0.3
    with pytest.raises(ValueError, match="more noises than"):
        gaussian_fit(data, Independent(), count=20)
