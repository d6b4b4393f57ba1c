"""Predictions by layer, on the best denoiser there can be."""

import pytest
import torch

from immiscible_diffusion import KNN, Independent
from immiscible_diffusion.analysis.posterior import OptimalDenoiser
from immiscible_diffusion.diffusion.paths import FlowMatchingPath, VPPath
from reproduce.papers.denoising_trajectory import predict_layers, prediction


@pytest.fixture(scope="module")
def data():
    return torch.randn(50, 1, 4, 4, generator=torch.Generator().manual_seed(1)).double() + 0.3


@pytest.fixture(scope="module")
def noise():
    return torch.randn(200, 1, 4, 4, generator=torch.Generator().manual_seed(2)).double()


def layers(data, noise, coupling, path=None, **options):
    path = path or FlowMatchingPath()
    return predict_layers(OptimalDenoiser.of(data, coupling, path), path, noise, data, **options)


def test_at_pure_noise_no_pairing_knows_no_image(data, noise):
    first = layers(data, noise, Independent(), steps=1).layers[0]
    assert first.t == 1
    assert first.spread.value < 1e-6
    assert first.offset.value < 1e-6


def test_pairing_tells_noises_apart_and_stronger_pairing_more(data, noise):
    few, many = (layers(data, noise, KNN(k), steps=1).layers[0].spread for k in (4, 256))
    assert few.value > 10 * few.error
    assert many.value > few.value + 5 * many.error
    assert many.value < 1


def test_sampling_ends_in_the_data(data, noise):
    found = layers(data, noise, Independent())
    assert len(found.layers) == 20
    assert found.x_t.shape == found.predicted.shape == (20, 4, 1, 4, 4)
    nearest = torch.cdist(found.data.flatten(1), data.flatten(1)).min(dim=1).values
    assert nearest.median() < 1e-3
    last = found.layers[-1]
    assert abs(last.spread.value - 1) < 0.15
    spreads = [layer.spread.value for layer in found.layers]
    assert spreads == sorted(spreads)
    assert torch.equal(found.x_t[0], noise[:4])


@pytest.mark.parametrize("path", [FlowMatchingPath(), VPPath()], ids=["flow", "diffusion"])
@pytest.mark.parametrize("t", [1.0, 0.5, 0.1])
def test_the_prediction_is_read_off_the_models_word(data, noise, path, t):
    best = OptimalDenoiser.of(data, KNN(4), path)
    read = prediction(path, lambda x, time, cond: best.target(x, t))
    torch.testing.assert_close(read(noise, t), best(noise, t), atol=1e-6, rtol=1e-6)


def test_flow_prediction_is_the_point_less_the_way_to_go(noise):
    read = prediction(FlowMatchingPath(), lambda x, time, cond: 2 * x + 1)
    torch.testing.assert_close(read(noise, 0.25), noise - 0.25 * (2 * noise + 1))


def test_euler_steps_on_flow(data, noise):
    """A step of predicted image and noise is Euler's on straight paths."""
    best = OptimalDenoiser.of(data, KNN(4), FlowMatchingPath())
    x = noise
    for t in (1.0, 0.5):
        x = x - 0.5 * best.target(x, t)
    torch.testing.assert_close(layers(data, noise, KNN(4), steps=2).data, x)


def test_conditions_alone_make_no_spread(data, noise):
    """A prediction that is the mean of the condition: nothing is known of the image."""
    classes, of_data = torch.arange(200) % 2, torch.arange(50) % 2
    means = torch.stack([data[of_data == c].mean(dim=0) for c in (0, 1)])
    means[1] += 1
    shifted = data + (of_data == 1).view(-1, 1, 1, 1)

    def predict(x, t):
        return means[classes]

    groups = {"groups": classes, "data_groups": of_data}
    within = predict_layers(predict, FlowMatchingPath(), noise, shifted, steps=1, **groups).layers[
        0
    ]
    across = predict_layers(predict, FlowMatchingPath(), noise, shifted, steps=1).layers[0]
    assert within.spread.value < 1e-6
    assert within.offset.value < 1e-6
    assert across.spread.value > 0.2


def test_offset_of_a_constant(data, noise):
    """Prediction = mean + 1: the offset is 1 in units of the data's deviation."""
    unit = (data.flatten(1) - data.flatten(1).mean(dim=0)).view_as(data)
    unit = unit / unit.square().sum().div(49 * 16).sqrt()
    found = predict_layers(
        lambda x, t: torch.ones_like(x), FlowMatchingPath(), noise, unit, steps=1
    )
    assert found.layers[0].offset.value == pytest.approx(1)


def test_a_strip_to_look_at(data, noise):
    found = layers(data, noise[:20], KNN(4))
    assert found.strip(1, columns=10).shape == (20, 1, 4, 4)
    assert torch.equal(found.strip(1)[9], found.x_t[19, 1])
    assert torch.equal(found.strip(1)[10], found.predicted[0, 1])


def test_bad_use_is_refused(data, noise):
    with pytest.raises(ValueError, match="steps must be at least 1"):
        layers(data, noise, KNN(2), steps=0)
    with pytest.raises(ValueError, match="both or none"):
        layers(data, noise, KNN(2), groups=torch.zeros(200))
    with pytest.raises(ValueError, match="got 1 and 50"):
        layers(data, noise[:1], KNN(2))
