import pytest
import torch

from immiscible_diffusion.diffusion.paths import EDMPath, FlowMatchingPath, Mixture, VPPath, per_row

KINDS = ("epsilon", "v", "data", "velocity")
T = torch.tensor([0.003, 0.1, 0.5, 0.9, 0.999], dtype=torch.float64)
PATHS = {
    "linear": VPPath(),
    "scaled": VPPath("scaled_linear", "v", beta_start=0.00085, beta_end=0.012),
    "cosine": VPPath("cosine", "data"),
    "sigma": EDMPath(),
}


def pair(count=5, *shape):
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(count, *shape, dtype=torch.float64, generator=generator) for _ in "ab")


def flow_mixture(t, like):
    time = per_row(t, like)
    one = torch.ones_like(time)
    return Mixture(1 - time, time, -one, one)


@pytest.mark.parametrize("name", [*PATHS, "flow"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_pair_is_recovered_from_any_prediction(name, kind):
    data, noise = pair(5, 3, 2)
    mixture = PATHS[name].mixture(T, data) if name != "flow" else flow_mixture(T, data)
    x_t = mixture.alpha * data + mixture.sigma * noise
    a, b = mixture.coefficients(kind)
    found = mixture.to_data_and_noise(kind, a * data + b * noise, x_t)
    assert torch.allclose(found[0], data, rtol=0, atol=1e-9)
    assert torch.allclose(found[1], noise, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", [*PATHS, "flow"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("into", KINDS)
def test_there_and_back_is_where_we_were(name, kind, into):
    output, x_t = pair(5, 4)
    mixture = PATHS[name].mixture(T, x_t) if name != "flow" else flow_mixture(T, x_t)
    other = mixture.convert(output, x_t, kind, into)
    back = mixture.convert(other, x_t, into, kind)
    assert torch.allclose(back, output, rtol=1e-8, atol=1e-8)


def test_epsilon_into_data_is_the_textbook_formula():
    path, (output, x_t) = PATHS["linear"], pair(5, 4)
    mixture = path.mixture(T, x_t)
    expected = (x_t - mixture.sigma * output) / mixture.alpha
    assert torch.allclose(mixture.convert(output, x_t, "epsilon", "data"), expected)
    denoised = FlowMatchingPath().time_scale * 0 + x_t - per_row(T, x_t) * output
    assert torch.allclose(flow_mixture(T, x_t).convert(output, x_t, "velocity", "data"), denoised)


@pytest.mark.parametrize("name", PATHS)
def test_a_path_target_is_the_share_it_names(name):
    data, noise = pair(5, 3)
    path = PATHS[name]
    mixture = path.mixture(T, data)
    a, b = mixture.coefficients(getattr(path, "prediction", "data"))
    assert torch.allclose(path.sample(data, noise, T).target, a * data + b * noise)


def test_unknown_predictions_and_missing_slopes_are_refused():
    mixture = Mixture(torch.ones(1), torch.ones(1))
    with pytest.raises(ValueError, match="needs alpha_slope"):
        mixture.coefficients("velocity")
    with pytest.raises(ValueError, match="epsilon, v, data or velocity"):
        mixture.coefficients("score")
