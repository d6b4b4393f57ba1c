"""The best linear prediction, unit variance for the network, EDM's formulas, and both ends of time."""

import pytest
import torch
from torch import nn

from immiscible_diffusion import EDMPath, FlowMatchingPath, VPPath
from immiscible_diffusion.diffusion.paths import Preconditioned

PATHS = [
    FlowMatchingPath(),
    FlowMatchingPath(time_scale=1.0),
    *(VPPath("cosine", prediction) for prediction in ("epsilon", "v", "data")),
    VPPath("linear", "v", zero_snr=True),
    EDMPath(sigma_data=0.7),
]
TIMES = (0.0, 0.003, 0.3, 0.7, 0.997, 1.0)
COUNT = 40_000


class Known(nn.Module):
    """Returns ``value`` and keeps what it is given."""

    def __init__(self, value=0.0):
        super().__init__()
        self.value = value

    def forward(self, x, time, cond):
        self.seen = x
        return torch.full_like(x, self.value) if isinstance(self.value, float) else self.value


def pairs(correlation, dtype=torch.float64):
    """Data ``[N, 2]`` of mean 0.4 and variance 0.49, and their noise, of mean 0.2 and variance 0.8 where paired."""
    generator = torch.Generator().manual_seed(0)
    z, e = torch.randn(2, COUNT, 2, generator=generator, dtype=dtype)
    mixed = correlation * z + (1 - correlation**2) ** 0.5 * e
    return 0.4 + 0.7 * z, 0.2 + 0.8**0.5 * mixed if correlation else e


def fitted(path, correlation):
    data, noise = pairs(correlation)
    model = Preconditioned(Known(), path)
    model.fit(
        [
            (part, other if correlation else None)
            for part, other in zip(data.split(5000), noise.split(5000), strict=True)
        ]
    )
    return model, data, noise


def at(path, data, noise, t):
    time = torch.full((len(data),), t, dtype=data.dtype)
    return path.sample(data, noise, time), path.network_time(time)


@pytest.mark.parametrize("correlation", [0.0, 0.6, -0.3])
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_a_network_of_zeros_is_the_best_linear_prediction(path, correlation):
    """Against least squares on the pairs themselves, in every dimension."""
    model, data, noise = fitted(path, correlation)
    for t in (0.02, 0.3, 0.7, 0.98):
        point, time = at(path, data, noise, t)
        output = model(point.x_t, time)
        columns = torch.stack([point.x_t.flatten(), torch.ones(2 * COUNT).double()], dim=1)
        best = columns @ torch.linalg.lstsq(columns, point.target.flatten()[:, None]).solution
        spread = (point.target - best.view_as(output)).std()
        assert float((output - best.view_as(output)).square().mean().sqrt()) < 0.02 * float(spread) + 1e-4


@pytest.mark.parametrize("correlation", [0.0, 0.6])
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_input_and_target_of_the_network_have_mean_0_and_variance_1(path, correlation):
    model, data, noise = fitted(path, correlation)
    for t in (0.02, 0.3, 0.7, 0.98):
        point, time = at(path, data, noise, t)
        skip = model(point.x_t, time)
        model.network.value = torch.ones_like(data)
        scale = model(point.x_t, time) - skip
        model.network.value = 0.0
        for values in (model.network.seen, (point.target - skip) / scale):
            assert float(values.mean()) == pytest.approx(0, abs=0.02)
            assert float(values.var()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_float32_is_as_good_as_float64_at_both_ends(path):
    """Skip and scale apart, each relative to its own size."""
    model, data, noise = fitted(path, 0.6)
    data, noise = data[:500], noise[:500]
    for t in TIMES:
        point, time = at(path, data, noise, t)
        parts = []
        for x, network_time in ((point.x_t, time), (point.x_t.float(), time.float())):
            model.network.value = 0.0
            skip = model(x, network_time)
            model.network.value = torch.ones_like(x)
            parts.append((skip.double(), (model(x, network_time) - skip).double()))
        (skip, scale), (skip32, scale32) = parts
        assert skip32.isfinite().all()
        torch.testing.assert_close(skip32, skip, rtol=1e-3, atol=1e-4 * float(skip.abs().max()))
        rounding = 1e-6 * float(skip.abs().max())  # of the difference, where the skip is large
        torch.testing.assert_close(scale32, scale, rtol=2e-3, atol=rounding)


def test_a_consistency_models_first_levels_are_exact_in_float32():
    path = EDMPath()
    model = Preconditioned(Known(1.0), path, 0.25, path.sigma_min)
    t = torch.linspace(0, 0.01, 11, dtype=torch.float64)
    x = torch.zeros(11, 1, dtype=torch.float64)
    exact, found = model(x, path.network_time(t)), model(x.float(), path.network_time(t.float()))
    torch.testing.assert_close(found.double(), exact, rtol=1e-2, atol=1e-7)


def test_the_straight_path_is_edm_in_other_variables():
    """x_t = (1 - t)(data + sigma noise), sigma = t / (1 - t); from D(x), v = (x_t - D) / t (2206.00364, table 1)."""
    generator = torch.Generator().manual_seed(0)
    x_t, bare = torch.randn(2, 64, 5, generator=generator, dtype=torch.float64)
    t = torch.linspace(0.01, 0.99, 64, dtype=torch.float64)
    sigma, s = (t / (1 - t))[:, None], 0.7
    x = x_t / (1 - t)[:, None]
    denoised = s**2 / (sigma**2 + s**2) * x + sigma * s / (sigma**2 + s**2).sqrt() * bare
    path, network = FlowMatchingPath(), Known(-bare)
    velocity = Preconditioned(network, path, s**2)(x_t, path.network_time(t))
    assert torch.allclose(velocity, (x_t - denoised) / t[:, None], atol=1e-6)  # s^2 is kept in float32
    assert torch.allclose(network.seen, x / (sigma**2 + s**2).sqrt(), atol=1e-6)


def test_an_edm_path_has_edms_formulas():
    path, network = EDMPath(sigma_data=0.5), Known(1.0)
    x = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    sigma = path.sigma(t)[:, None]
    norm = (sigma**2 + 0.25).sqrt()
    output = Preconditioned(network, path, 0.25)(x, path.network_time(t))
    assert torch.allclose(output, 0.25 / norm**2 * x + sigma * 0.5 / norm)
    assert torch.allclose(network.seen, x / norm)


def test_a_consistency_model_is_the_identity_at_the_end_whatever_is_fitted():
    path = EDMPath()
    model = Preconditioned(Known(1.0), path, identity_sigma=path.sigma_min)
    model.fit([pairs(0.6)])
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(model(x, path.network_time(torch.zeros(3).double())), x, atol=1e-10)


def test_variances_are_of_channels_and_means_of_pixels():
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(2, 4, 4, generator=generator)
    scale = torch.tensor([0.5, 2.0]).view(2, 1, 1)
    data = mean + scale * torch.randn(5000, 2, 4, 4, generator=generator)
    model = Preconditioned(Known(), FlowMatchingPath())
    model.fit((part, None) for part in data.split(500))
    assert torch.allclose(model.data_mean, mean, atol=0.15)
    assert model.data_variance.shape == (2, 1, 1)
    assert torch.allclose(model.data_variance.flatten(), torch.tensor([0.25, 4.0]), rtol=0.03)
    assert model.covariance.abs().max() == 0


def test_constant_data_and_perfect_pairs_stay_finite():
    path = FlowMatchingPath()
    for data, noise in ((torch.full((10, 3), 0.3), None), (torch.eye(3), 2 * torch.eye(3))):
        model = Preconditioned(Known(1.0), path)
        model.fit([(data, noise)])
        for t in TIMES:
            point, time = at(path, data, torch.zeros_like(data) if noise is None else noise, t)
            assert model(point.x_t, time).isfinite().all()


def test_statistics_travel_with_the_weights():
    model, *_ = fitted(FlowMatchingPath(), 0.6)
    other = Preconditioned(Known(), FlowMatchingPath())
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(one, two) for one, two in zip(model.buffers(), other.buffers(), strict=True))


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([], "needs data"),
        ((torch.zeros(4, 2), torch.zeros(4, 2)), "iterable of pairs"),
        ([torch.zeros(4, 2)], "iterable of pairs"),
        ([(torch.zeros(4, 2), torch.zeros(4, 3))], "noise like data"),
        ([(torch.full((4, 2), torch.nan), None)], "not finite"),
    ],
)
def test_what_is_no_pairs_is_refused(pairs, said):
    with pytest.raises(ValueError, match=said):
        Preconditioned(Known(), FlowMatchingPath()).fit(pairs)
