import math

import numpy as np
import pytest
import torch
from scipy import integrate

from immiscible_diffusion import FlowMatchingPath
from immiscible_diffusion.diffusion.paths import EDMPath, VPPath
from immiscible_diffusion.diffusion.samplers import (
    METHODS,
    SamplerConfig,
    sample_dopri5,
    sample_euler,
    sample_heun,
    sample_midpoint,
    start_noise,
)

ORDERS = {sample_euler: 1, sample_heun: 2, sample_midpoint: 2}


def field(x, t):
    """dx/dt = sin(3 t) x + t, with rows of their own times."""
    return torch.sin(3 * t)[:, None] * x + t[:, None]


def exact(noise):
    """By variation of constants; the integral on a fine grid."""
    s = np.linspace(0, 1, 20_001)
    growth = np.exp(-(1 - np.cos(3 * s)) / 3)  # exp of minus the integral of sin(3 t)
    return noise * growth[-1] - integrate.trapezoid(s * growth, s)


def noise_of(count=5, dim=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, dim, dtype=dtype, generator=generator)


@pytest.mark.parametrize(("sample", "order"), ORDERS.items(), ids=lambda v: getattr(v, "__name__", v))
def test_order_of_the_error(sample, order):
    noise, steps = noise_of(), np.array([8, 16, 32, 64])
    errors = [(sample(field, noise, steps=n).data - exact(noise)).abs().max() for n in steps]
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.15)
    assert errors[-1] < {1: 0.02, 2: 2e-4}[order]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-5])
def test_dopri5_reaches_its_tolerance(dtype, tolerance):
    pytest.importorskip("torchdiffeq")
    noise = noise_of(dtype=dtype)
    sampled = sample_dopri5(field, noise, tolerance=tolerance)
    assert sampled.data.dtype == dtype
    assert (sampled.data - exact(noise.double())).abs().max() < 10 * tolerance


def test_dopri5_works_harder_for_more():
    pytest.importorskip("torchdiffeq")
    loose, tight = (sample_dopri5(field, noise_of(), tolerance=e).nfe for e in (1e-2, 1e-8))
    assert loose < tight


@pytest.mark.parametrize("method", [*METHODS, "dopri5"])
def test_nfe_counts_the_calls(method):
    if method == "dopri5":
        pytest.importorskip("torchdiffeq")
    calls = []

    def velocity(x, t):
        assert t.shape == x.shape[:1]
        assert 0 <= t.min() <= t.max() <= 1
        assert not torch.is_grad_enabled()
        calls.append(float(t[0]))
        return field(x, t)

    noise = noise_of()
    before = noise.clone()
    sampled = SamplerConfig(method, steps=7)(velocity, noise)
    assert sampled.nfe == len(calls)
    assert sampled.nfe == {"euler": 7, "heun": 14, "midpoint": 14}.get(method, len(calls))
    assert calls[0] == 1
    assert torch.equal(noise, before)


def test_straight_paths_need_one_step():
    data, noise = noise_of(), noise_of().flip(0)
    sampled = sample_euler(lambda x, t: noise - data, noise, steps=1)
    assert torch.allclose(sampled.data, data)


def test_gaussian_data_get_their_covariance():
    # E[noise - data | x_t] of data N(0, C) is linear; its flow maps noise to C^(1/2) noise.
    basis = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)).double())[0]
    variance = torch.tensor([0.1, 0.5, 1.0, 3.0], dtype=torch.float64)
    covariance = basis * variance @ basis.T
    eye = torch.eye(4, dtype=torch.float64)

    def model(x, time, cond):
        t = float(time[0])
        spread = (1 - t) ** 2 * covariance + t**2 * eye
        return x @ torch.linalg.solve(spread, t * eye - (1 - t) * covariance)

    noise = noise_of(20_000, 4)
    velocity = FlowMatchingPath(time_scale=1).velocity(model)
    sampled = sample_heun(velocity, noise, steps=50).data
    assert torch.allclose(sampled, noise @ (basis * variance.sqrt() @ basis.T), atol=0.02)
    assert torch.allclose(sampled.T.cov(), covariance, atol=0.1)


def test_start_noise_does_not_depend_on_the_split():
    whole = start_noise(3, range(10), (2, 3))
    parts = torch.cat([start_noise(3, part, (2, 3)) for part in (range(4), range(4, 10))])
    assert torch.equal(whole, parts)
    assert torch.equal(start_noise(3, [7, 2], (2, 3)), whole[[7, 2]])


def test_start_noise_is_normal_and_new_for_every_image_and_seed():
    noise = start_noise(0, range(2000), (4,))
    assert len(noise.unique()) == noise.numel()
    assert abs(float(noise.mean())) < 4 / 8000**0.5
    assert float(noise.var()) == pytest.approx(1, abs=4 * (2 / 8000) ** 0.5)
    assert not torch.equal(start_noise(1, range(3), (4,)), noise[:3])


def test_start_noise_leaves_global_randomness():
    state = torch.get_rng_state()
    start_noise(0, range(3), (2,))
    assert torch.equal(state, torch.get_rng_state())


def test_half_precision_times_are_rounded_once():
    # Times summed in bfloat16 would drift; 1 / 100 is not a bfloat16.
    seen = []

    def velocity(x, t):
        seen.append(float(t[0]))
        return torch.zeros_like(x)

    sample_euler(velocity, torch.zeros(1, 2, dtype=torch.bfloat16), steps=100)
    assert max(abs(t - (1 - n / 100)) for n, t in enumerate(seen)) < 1 / 256
    assert math.isclose(seen[0], 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SamplerConfig("rk4"), "edm, consistency, got 'rk4'"),
        (lambda: SamplerConfig(steps=0), "steps must be >= 1"),
        (lambda: SamplerConfig("dopri5", tolerance=0), "tolerance must be > 0"),
        (lambda: sample_euler(field, noise_of(), steps=0), "steps must be at least 1, got 0"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_names_for_tables():
    assert str(SamplerConfig("heun", steps=25)) == "heun 25"
    assert str(SamplerConfig("dopri5", tolerance=1e-4)) == "dopri5 0.0001"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shift", [0.5, 3.0])
def test_a_shifted_grid_is_that_of_the_formula(method, shift):
    times = []

    def velocity(x, t):
        times.append(float(t[0]))
        return torch.ones_like(x)

    sampled = SamplerConfig(method, steps=4, shift=shift)(velocity, noise_of())
    equal = np.linspace(1, 0, 5)
    grid = shift * equal / (1 + (shift - 1) * equal)
    starts = times if method == "euler" else times[::2]
    np.testing.assert_allclose(starts, grid[:-1], rtol=1e-12)
    assert torch.allclose(sampled.data, noise_of() - 1)  # the steps sum to 1
    # The formula of the training times.
    path = FlowMatchingPath(shift=shift)
    draws = [p.sample_time(9, generator=torch.Generator().manual_seed(0)) for p in (FlowMatchingPath(), path)]
    np.testing.assert_allclose(shift * draws[0] / (1 + (shift - 1) * draws[0]), draws[1], rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 3, 20, 50, 100])
def test_no_shift_leaves_every_time_as_it_was(steps):
    times = []

    def velocity(x, t):
        times.append(t[0])
        return x

    SamplerConfig("euler", steps=steps)(velocity, noise_of())
    assert torch.equal(torch.stack(times), torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1].to(times[0]))


def test_init_scale_multiplies_the_noise_and_one_leaves_it():
    path, model = FlowMatchingPath(), lambda x, time, cond: torch.sin(x)
    noise = noise_of()
    scaled = SamplerConfig(steps=3, init_scale=0.9).sample(path, model, noise).data
    assert torch.equal(scaled, SamplerConfig(steps=3).sample(path, model, 0.9 * noise).data)
    assert torch.equal(
        SamplerConfig(steps=3).sample(path, model, noise).data, sample_euler(path.velocity(model), noise, steps=3).data
    )


@pytest.mark.parametrize("method", ["dopri5", "ddim", "edm"])
def test_a_shift_is_of_methods_in_t(method):
    path = {"ddim": VPPath(), "edm": EDMPath()}.get(method, FlowMatchingPath())
    with pytest.raises(ValueError, match=f"moves the times of euler, heun, midpoint, and the method is {method}"):
        SamplerConfig(method, shift=2).check(path)


def test_what_was_changed_is_in_the_name():
    sampler = SamplerConfig(steps=5, init_scale=0.95, prune=2.7, shift=0.5)
    assert str(sampler) == "euler 5 init_scale 0.95 prune 2.7 shift 0.5"
    assert sampler.selection == "equal in t, then shifted by 0.5"
    with pytest.raises(ValueError, match="use one of the two"):
        SamplerConfig(prune=2.7, init_noise="matched")
    with pytest.raises(ValueError, match="shift must be > 0"):
        SamplerConfig(shift=0)
