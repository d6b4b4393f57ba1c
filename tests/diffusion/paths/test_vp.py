import pytest
import torch

from immiscible_diffusion import VPPath
from immiscible_diffusion.analysis.posterior import mixing
from immiscible_diffusion.diffusion.samplers import sample_midpoint

STABLE = {"schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
THEIRS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SETTINGS = {
    "ddpm": ({}, {"beta_schedule": "linear"}),
    "stable": (STABLE, {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}),
    "cosine": ({"schedule": "cosine"}, {"beta_schedule": "squaredcos_cap_v2"}),
    "zero": (STABLE | {"zero_snr": True, "prediction": "v"}, THEIRS | {"rescale_betas_zero_snr": True}),
}
STEPS = torch.tensor([0, 1, 17, 499, 998, 999])


def pair(count=6, *shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(count, *shape, dtype=dtype, generator=generator) for _ in "ab")


def theirs(name):
    diffusers = pytest.importorskip("diffusers")
    return diffusers.DDPMScheduler(num_train_timesteps=1000, **SETTINGS[name][1])


@pytest.mark.parametrize("name", SETTINGS)
def test_mixtures_and_targets_are_those_of_diffusers(name):
    path, scheduler, (data, noise) = VPPath(**SETTINGS[name][0]), theirs(name), pair(6, 3, 4)
    point = path.sample(data, noise, path.time(STEPS))
    # Their table is a product in float32.
    assert torch.allclose(point.x_t, scheduler.add_noise(data, noise, STEPS), atol=2e-5)
    v = VPPath(**SETTINGS[name][0] | {"prediction": "v"}).sample(data, noise, point.t).target
    assert torch.allclose(v, scheduler.get_velocity(data, noise, STEPS), atol=2e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "data"])
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights_are_those_of_the_paper(prediction, gamma):
    path = VPPath(prediction=prediction, min_snr=gamma)
    snr = theirs("ddpm").alphas_cumprod.double()
    snr = (snr / (1 - snr))[STEPS]
    least = snr.clamp_max(gamma)
    expected = {"epsilon": least / snr, "v": least / (snr + 1), "data": least}[prediction]
    assert torch.allclose(path.weight(path.time(STEPS)).double(), expected, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_are_exact_integers(dtype):
    path, steps = VPPath(), torch.arange(1000)
    t = ((steps + 1) / 1000).to(dtype)
    assert torch.equal(path.step(t), steps)
    assert torch.equal(path.network_time(t), steps.to(path.network_time(t).dtype))
    assert torch.equal(path.step(path.time(steps)), steps)
    drawn = path.sample_time(20_000, generator=torch.Generator().manual_seed(0))
    counts = path.step(drawn).bincount(minlength=1000)
    assert len(counts) == 1000
    assert float(((counts - 20) ** 2 / 20).sum()) < 1140  # chi-square, 999 degrees: 3 sigma


def test_zero_is_data_and_the_circle_is_kept():
    path, (data, noise) = VPPath(), pair(6, 3, dtype=torch.float64)
    assert torch.equal(path.sample(data, noise, torch.zeros(6)).x_t, data)
    t = torch.linspace(0, 1, 4001, dtype=torch.float64)
    circle = path.alpha(t) ** 2 + path.sigma(t) ** 2
    assert torch.allclose(circle, torch.ones_like(t), atol=1e-14)
    assert bool((path.sigma(t).diff() > 0).all())
    assert bool((path.alpha(t).diff() < 0).all())


def test_zero_snr_ends_in_noise_alone():
    path, (data, noise) = VPPath(zero_snr=True, prediction="v"), pair(6, 3)
    point = path.sample(data, noise, torch.ones(6))
    assert torch.allclose(point.x_t, noise, atol=1e-7)
    assert torch.allclose(point.target, -data, atol=1e-6)


def test_slopes_are_derivatives():
    path = VPPath("cosine")
    t = torch.tensor([0.10023, 0.50047, 0.90051], dtype=torch.float64)  # inside intervals
    mixture, step = path.mixture(t, t), 1e-6
    for share, slope in ((path.alpha, mixture.alpha_slope), (path.sigma, mixture.sigma_slope)):
        assert torch.allclose((share(t + step) - share(t - step)) / (2 * step), slope, atol=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "data"])
def test_the_exact_flow_of_a_gaussian_is_followed(prediction):
    """For data N(m, s^2) the probability flow is known: quantiles stay where they are."""
    mean, std = 0.7, 0.3
    path = VPPath("cosine", prediction, steps=1000)

    def model(x, time, cond):
        t = (time + 1) / 1000
        mixture = path.mixture(t, x)
        var = (mixture.alpha * std) ** 2 + mixture.sigma**2
        data = mean + mixture.alpha * std**2 * (x - mixture.alpha * mean) / var
        return mixture.convert(data, x, "data", prediction)

    start = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    end = sample_midpoint(path.velocity(model), start, steps=1000).data
    first = path.mixture(torch.ones(1).double(), start)
    spread = float(((first.alpha * std) ** 2 + first.sigma**2).sqrt())
    expected = (start - first.alpha * mean) / spread
    assert torch.allclose((end - mean) / std, expected, atol=5e-3)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "data"])
def test_the_analysis_knows_its_targets(prediction):
    path = VPPath(prediction=prediction)
    mix, t = mixing(path, 0.5), torch.tensor([0.5], dtype=torch.float64)
    alpha, sigma = float(path.alpha(t)), float(path.sigma(t))
    slope = {"epsilon": -alpha / sigma, "v": -1 / sigma, "data": 1.0}[prediction]
    assert mix.slope == pytest.approx(slope, rel=1e-9)
    assert (mix.alpha, mix.sigma) == pytest.approx((alpha, sigma))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"schedule": "quadratic"}, "linear, scaled_linear, cosine"),
        ({"prediction": "score"}, "epsilon, v, data"),
        ({"zero_snr": True}, "use prediction v or data"),
        ({"prediction": "v", "zero_snr": True, "min_snr": 5.0}, "leave out one"),
        ({"beta_start": 0.5, "beta_end": 0.1}, "beta_end must be >= 0.5"),
        ({"min_snr": 0.0}, "min_snr must be > 0"),
        ({"steps": 1}, "steps must be >= 2"),
    ],
)
def test_bad_settings_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        VPPath(**wrong)


def test_integer_times_are_refused():
    with pytest.raises(ValueError, match=r"use path\.time"):
        VPPath().alpha(torch.tensor([3]))
