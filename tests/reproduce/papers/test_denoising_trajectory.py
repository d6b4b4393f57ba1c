"""Predictions step by step, of the best denoiser there can be."""

import pytest
import torch

from immiscible_diffusion import KNN, Independent
from immiscible_diffusion.analysis.posterior import OptimalDenoiser
from immiscible_diffusion.diffusion.paths import FlowMatchingPath, VPPath
from reproduce.papers.denoising_trajectory import data_prediction, denoising_trajectory


@pytest.fixture(scope="module")
def data():
    return torch.randn(50, 1, 4, 4, generator=torch.Generator().manual_seed(1)).double() + 0.3


@pytest.fixture(scope="module")
def noise():
    return torch.randn(200, 1, 4, 4, generator=torch.Generator().manual_seed(2)).double()


def trajectory(data, noise, coupling, path=None, **options):
    path = path or FlowMatchingPath()
    return denoising_trajectory(OptimalDenoiser.of(data, coupling, path), path, noise, data, **options)


def test_at_pure_noise_no_pairing_knows_no_image(data, noise):
    first = trajectory(data, noise, Independent(), steps=1).steps[0]
    assert first.t == 1
    assert first.spread.value < 1e-6
    assert first.offset.value < 1e-6


def test_pairing_tells_noises_apart_and_stronger_pairing_more(data, noise):
    few, many = (trajectory(data, noise, KNN(k), steps=1).steps[0].spread for k in (4, 256))
    assert few.value > 10 * few.error
    assert many.value > few.value + 5 * many.error
    assert many.value < 1


def test_sampling_ends_in_the_data(data, noise):
    result = trajectory(data, noise, Independent())
    assert len(result.steps) == 20
    assert result.x_t.shape == result.predicted.shape == (20, 200, 1, 4, 4)
    nearest = torch.cdist(result.data.flatten(1), data.flatten(1)).min(dim=1).values
    assert nearest.median() < 1e-3
    last = result.steps[-1]
    assert abs(last.spread.value - 1) < 0.15
    spreads = [step.spread.value for step in result.steps]
    assert spreads == sorted(spreads)
    assert torch.equal(result.x_t[0], noise)


@pytest.mark.parametrize("path", [FlowMatchingPath(), VPPath()], ids=["flow", "diffusion"])
@pytest.mark.parametrize("t", [1.0, 0.5, 0.1])
def test_the_prediction_is_read_off_the_models_output(data, noise, path, t):
    best = OptimalDenoiser.of(data, KNN(4), path)
    read = data_prediction(path, lambda x, time, cond: best.target(x, t))
    torch.testing.assert_close(read(noise, t), best(noise, t), atol=1e-6, rtol=1e-6)


def test_flow_prediction_is_the_point_less_the_way_to_go(noise):
    read = data_prediction(FlowMatchingPath(), lambda x, time, cond: 2 * x + 1)
    torch.testing.assert_close(read(noise, 0.25), noise - 0.25 * (2 * noise + 1))


def test_euler_steps_on_flow(data, noise):
    """A step of predicted image and noise is Euler's on straight paths."""
    best = OptimalDenoiser.of(data, KNN(4), FlowMatchingPath())
    x = noise
    for t in (1.0, 0.5):
        x = x - 0.5 * best.target(x, t)
    torch.testing.assert_close(trajectory(data, noise, KNN(4), steps=2).data, x)


def test_conditions_alone_make_no_spread(data, noise):
    """A prediction that is the mean of the condition: nothing is known of the image."""
    classes, of_data = torch.arange(200) % 2, torch.arange(50) % 2
    means = torch.stack([data[of_data == c].mean(dim=0) for c in (0, 1)])
    means[1] += 1
    shifted = data + (of_data == 1).view(-1, 1, 1, 1)

    def predict(x, t):
        return means[classes]

    groups = {"groups": classes, "data_groups": of_data}
    within = denoising_trajectory(predict, FlowMatchingPath(), noise, shifted, steps=1, **groups).steps[0]
    across = denoising_trajectory(predict, FlowMatchingPath(), noise, shifted, steps=1).steps[0]
    assert within.spread.value < 1e-6
    assert within.offset.value < 1e-6
    assert across.spread.value > 0.2


def test_offset_of_a_constant(data, noise):
    """Prediction = mean + 1: the offset is 1 in units of the data's deviation."""
    unit = (data.flatten(1) - data.flatten(1).mean(dim=0)).view_as(data)
    unit = unit / unit.square().sum().div(49 * 16).sqrt()
    result = denoising_trajectory(lambda x, t: torch.ones_like(x), FlowMatchingPath(), noise, unit, steps=1)
    assert result.steps[0].offset.value == pytest.approx(1)


def test_bad_use_is_refused(data, noise):
    with pytest.raises(ValueError, match="steps must be at least 1"):
        trajectory(data, noise, KNN(2), steps=0)
    with pytest.raises(ValueError, match="both or none"):
        trajectory(data, noise, KNN(2), groups=torch.zeros(200))
    with pytest.raises(ValueError, match="got 1 and 50"):
        trajectory(data, noise[:1], KNN(2))
