"""The law of the noise: what theory says it is, and estimates against closed forms."""

import json
import math

import pytest
import torch

from immiscible_diffusion import KNN, Independent, LinearAssignment, Moments
from immiscible_diffusion.analysis.noise_statistics import (
    gaussian_fit,
    gaussian_fit_bias,
    measure_noise,
)
from immiscible_diffusion.couplings.calibrated import Calibrated
from immiscible_diffusion.couplings.gaussian_ot import GaussianOT
from immiscible_diffusion.couplings.noise_distribution import NoiseDistribution


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
    assert ((found.spectrum - 1).abs() < 4 * found.spectrum_error).all()


def test_an_affine_map_keeps_the_information(data):
    inner, moments = KNN(16), Moments.fit(data, directions=20)
    generator = torch.Generator().manual_seed(0)
    law = NoiseDistribution.measure(inner, [data] * 20, moments, generator=generator)
    plain, mapped = measure_noise(data, inner), measure_noise(data, Calibrated(inner, law))
    assert mapped.information.value == pytest.approx(plain.information.value, abs=1e-5)
    assert mapped.kl.value < plain.kl.value / 3
    assert near(mapped.square, 1)
    assert near(plain.shift_square, float(plain.direction_shift.square().sum()), errors=6)


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
    assert set(found.per_label) == {0, 1}
    alone = measure_noise(data[labels == 1], KNN(16), pairs=500)
    one = found.per_label[1]
    assert one.images == int(labels.sum())
    assert abs(one.kl.value - alone.kl.value) < 4 * math.hypot(one.kl.error, alone.kl.error)
    assert one.shift_square.value > 4 * one.shift_square.error
    assert json.loads(json.dumps(found.to_json()))["per_label"]["1"]["images"] == one.images


def test_assignment_keeps_the_law(data):
    found = measure_noise(data, LinearAssignment(), batch_size=64)
    assert found.estimate
    assert found.kl == (0, 0)
    assert found.information.value > 1


def test_what_keeps_the_law_has_no_kl_however_wrong_its_estimate():
    """Tight blobs in two dimensions, where the estimate of the density fails."""
    generator = torch.Generator().manual_seed(0)
    side = torch.where(torch.randn(400, 1, generator=generator) > 0, 2.0, -2.0)
    blobs, labels = side + 0.05 * torch.randn(400, 2, generator=generator), (side[:, 0] > 0).long()
    found = measure_noise(blobs, LinearAssignment(), labels=labels, pairs=200)
    assert found.kl == (0, 0)
    assert all(one.kl != (0, 0) for one in found.per_label.values())  # noises go where they suit
    within = LinearAssignment(cond_key="label")
    kept = measure_noise(blobs, within, labels=labels, pairs=200)
    assert [one.kl for one in kept.per_label.values()] == [(0, 0), (0, 0)]
    other = measure_noise(
        blobs, within, labels=labels, cond={"label": labels}, label_key="task", pairs=200
    )
    assert all(one.kl != (0, 0) for one in other.per_label.values())


def test_gaussian_fit_without_its_bias(data):
    assert gaussian_fit_bias(50_000, 3072) == pytest.approx(48.23, abs=0.005)
    plain = gaussian_fit(data, Independent(), count=4000)
    assert abs(plain.corrected) < 0.01
    paired = gaussian_fit(data, KNN(64), count=4000)
    assert paired.corrected > 0.3
    with pytest.raises(ValueError, match="more noises than"):
        gaussian_fit(data, Independent(), count=20)
