import pytest
import torch
from scipy import stats

from fixtures import gaussian_mixture as mixture
from immiscible_diffusion import FlowMatchingPath, VPPath
from immiscible_diffusion.diffusion.samplers import (
    SamplerConfig,
    guided,
    sample_ddim,
    sample_dpm,
    select_timesteps,
    start_noise,
)

FINE = VPPath("cosine", steps=4096)
START = torch.linspace(-2.2, 2.2, 41, dtype=torch.float64)[:, None]


def reference(path=FINE):
    t = torch.ones(1, dtype=torch.float64)
    return mixture.exact(START, float(path.alpha(t)), float(path.sigma(t)))


def solved(solver, path=FINE, **options):
    def sample(count):
        return solver(path, mixture.model_on(path), START, steps=count, **options).data

    return sample


@pytest.mark.parametrize("prediction", ["epsilon", "v", "data"])
def test_ddim_is_of_first_order(prediction):
    path = VPPath("cosine", prediction, steps=4096)
    slope, errors = mixture.order(solved(sample_ddim, path, spacing="trailing"), reference(path), (32, 64, 128, 256))
    assert 0.85 < slope < 1.25, errors


def test_dpm_is_of_second_order():
    path = VPPath("cosine", "v", steps=4096)
    # Its tables are float32, which is where the error ends.
    slope, errors = mixture.order(solved(sample_dpm, path), reference(path), (16, 32, 64))
    ddim = solved(sample_ddim, path, spacing="trailing")(16)
    assert slope > 1.5, errors
    assert errors[0] < float((ddim - reference(path)).square().mean().sqrt())


@pytest.mark.parametrize("spacing", ["linear", "trailing"])
def test_dpm_is_nearer_than_ddim_with_either_spacing(spacing):
    """Linear steps that end at step 0 would give an error of 0.12: a jump of second order there."""
    path = VPPath("linear")
    errors = [
        float((solved(solver, path, spacing=spacing)(20) - reference(path)).square().mean().sqrt())
        for solver in (sample_dpm, sample_ddim)
    ]
    assert errors[0] < 0.04
    assert errors[0] < 0.5 * errors[1]


def test_ddim_recovers_the_mixture():
    path = VPPath("linear")
    noise = torch.randn(4000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    made = sample_ddim(path, mixture.model_on(path), noise, steps=200, spacing="trailing").data
    real = mixture.draw(4000)
    assert stats.ks_2samp(made[:, 0], real[:, 0]).pvalue > 0.01


def test_ddpm_recovers_the_mixture_with_noise_of_its_own():
    path = VPPath("linear")
    sampler = SamplerConfig("ddpm", steps=500)

    def step_noise(number):
        return torch.randn(3000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(number))

    noise = step_noise(10_000)
    model = mixture.model_on(path)
    made = sampler.sample(path, model, noise, step_noise=step_noise).data
    again = sampler.sample(path, model, noise, step_noise=step_noise).data
    assert torch.equal(made, again)
    assert stats.ks_2samp(made[:, 0], mixture.draw(3000)[:, 0]).pvalue > 0.01


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_step_is_that_of_diffusers(eta):
    diffusers = pytest.importorskip("diffusers")
    path, generator = VPPath(), torch.Generator().manual_seed(0)
    x, output, fresh = (torch.randn(4, 3, 2, 2, generator=generator) for _ in range(3))
    scheduler = diffusers.DDIMScheduler(
        clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing", beta_end=0.02
    )
    scheduler.set_timesteps(10)
    expected = x
    for step in scheduler.timesteps:
        expected = scheduler.step(output, step, expected, eta=eta, variance_noise=fresh).prev_sample
    made = sample_ddim(
        path, lambda x, time, cond: output, x, steps=10, spacing="trailing", eta=eta, step_noise=lambda n: fresh
    ).data
    assert select_timesteps(path, 10, "trailing") == scheduler.timesteps.tolist()
    # Theirs adds noise to the last step as well, from alpha = 1: none. Tables in float32.
    assert torch.allclose(made, expected, rtol=2e-3, atol=2e-3)


def test_the_steps_of_the_paper():
    path = VPPath()
    assert select_timesteps(path, 10, "linear") == list(range(900, -1, -100))
    assert select_timesteps(path, 1000, "linear") == list(range(999, -1, -1))
    assert select_timesteps(path, 4, "trailing") == [999, 749, 499, 249]
    quadratic = select_timesteps(path, 10, "quadratic")
    assert quadratic == [800, 632, 483, 355, 246, 158, 88, 39, 9, 0]
    crowded = select_timesteps(path, 500, "quadratic")
    assert len(set(crowded)) == len(crowded) <= 500
    with pytest.raises(ValueError, match="from 1 to 1000"):
        select_timesteps(path, 1001)


def test_clipped_data_stay_inside_and_x_is_still_explained():
    path = VPPath("cosine")
    noise = 3 * torch.randn(64, 1, generator=torch.Generator().manual_seed(0))
    made = sample_ddim(path, lambda x, time, cond: -x, noise, steps=5, clip=1.0).data
    assert float(made.abs().max()) <= 1


def test_zero_snr_can_be_sampled_from_its_last_step():
    path = VPPath("scaled_linear", "v", zero_snr=True, beta_start=0.00085, beta_end=0.012)
    noise = torch.randn(4000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    made = sample_ddim(path, mixture.model_on(path), noise, steps=100, spacing="trailing").data
    assert bool(made.isfinite().all())
    assert stats.ks_2samp(made[:, 0], mixture.draw(4000)[:, 0]).pvalue > 0.01


def test_noise_on_the_way_is_asked_for():
    with pytest.raises(ValueError, match="give step_noise"):
        sample_ddim(VPPath(), lambda x, t, c: x, torch.zeros(2, 1), eta=0.5)


def test_step_noise_of_an_image_does_not_depend_on_its_batch():
    whole = start_noise(3, range(8), (2, 2), step=5)
    parts = [start_noise(3, rows, (2, 2), step=5) for rows in (range(3), range(3, 8))]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, start_noise(3, range(8), (2, 2), step=6))
    assert not torch.equal(whole, start_noise(3, range(8), (2, 2)))


def test_a_method_of_another_path_is_refused():
    with pytest.raises(ValueError, match="ddim samples a VPPath, got FlowMatchingPath"):
        SamplerConfig("ddim").sample(FlowMatchingPath(), lambda x, t, c: x, torch.zeros(2, 1))
    with pytest.raises(ValueError, match="needs path and model"):
        SamplerConfig("ddim")(lambda x, t: x, torch.zeros(2, 1))


def test_guidance_pushes_from_the_unconditional_towards_the_conditional():
    def model(x, time, cond):
        return x + cond["label"][:, None]

    def none(cond):
        return {"label": torch.zeros_like(cond["label"])}

    x, time, cond = torch.zeros(3, 2), torch.zeros(3), {"label": torch.tensor([1.0, 2.0, 3.0])}
    for weight in (0.0, 0.5, 1.0, 3.0):
        made = guided(model, weight, none)(x, time, cond)
        assert torch.allclose(made, weight * cond["label"][:, None].expand(3, 2))
    with pytest.raises(ValueError, match="needs a condition"):
        guided(model, 2.0, none)(x, time, None)


# -- PNDM -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_pndm_is_stable_diffusions_scheduler(prediction):
    from diffusers import PNDMScheduler

    path = VPPath("scaled_linear", prediction, beta_start=0.00085, beta_end=0.012)
    scheduler = PNDMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        skip_prk_steps=True,
        steps_offset=1,
        prediction_type={"epsilon": "epsilon", "v": "v_prediction"}[prediction],
    )
    noise = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    model = lambda x, t, cond=None: torch.tanh(x) * (t / 1000).view(-1, 1, 1, 1)  # noqa: E731
    found = SamplerConfig("pndm", 20).sample(path, model, noise)
    scheduler.set_timesteps(20)
    x = noise
    for step in scheduler.timesteps:
        x = scheduler.step(model(x, step.repeat(3).float()), step, x).prev_sample
    torch.testing.assert_close(found.data, x)
    assert found.nfe == 21


def test_pndm_recovers_a_gaussian():
    path = VPPath("scaled_linear", beta_start=0.00085, beta_end=0.012)

    def model(x, t, cond=None):  # of data N(0, 0.5^2), exactly
        alpha, sigma = (f(path.time(t)).view(-1, 1) for f in (path.alpha, path.sigma))
        return sigma * x / ((0.5 * alpha) ** 2 + sigma**2)

    noise = torch.randn(5000, 2, generator=torch.Generator().manual_seed(0))
    assert float(SamplerConfig("pndm", 50).sample(path, model, noise).data.std()) == pytest.approx(0.5, abs=0.01)


def test_pndm_needs_a_network_of_epsilon_or_v():
    with pytest.raises(ValueError, match="epsilon or v"):
        SamplerConfig("pndm").check(VPPath(prediction="data"))
