import numpy as np
import pytest
import torch
from scipy import stats

from immiscible_diffusion import FlowMatchingPath
from immiscible_diffusion.diffusion.paths import per_row


def pair(count=5, *shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(count, *shape, dtype=dtype, generator=generator) for _ in range(2))


def times(path, count=20_000, seed=0):
    return path.sample_time(count, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_ends_are_data_and_noise_exactly(dtype):
    data, noise = pair(5, 3, 2, dtype=dtype)
    path = FlowMatchingPath()
    assert torch.equal(path.sample(data, noise, torch.zeros(5)).x_t, data)
    assert torch.equal(path.sample(data, noise, torch.ones(5)).x_t, noise)
    assert path.sample(data, noise, torch.ones(5)).x_t.dtype == dtype


@pytest.mark.parametrize("shape", [(), (4,), (3, 2), (1, 2, 3, 2)])
def test_mixture_is_alpha_data_and_sigma_noise(shape):
    data, noise = pair(6, *shape) if shape else pair(6, 1)
    path, t = FlowMatchingPath(), torch.linspace(0, 1, 6, dtype=torch.float64)
    point = path.sample(data, noise, t)
    alpha, sigma = per_row(path.alpha(t), data), per_row(path.sigma(t), data)
    assert torch.allclose(point.x_t, alpha * data + sigma * noise, rtol=0, atol=1e-14)
    assert torch.equal(point.t, t)


def test_target_is_the_velocity():
    data, noise = pair(7, 3)
    path, t, step = FlowMatchingPath(), torch.linspace(0.1, 0.9, 7, dtype=torch.float64), 1e-5
    ahead, behind = (path.sample(data, noise, t + h).x_t for h in (step, -step))
    assert torch.allclose((ahead - behind) / (2 * step), path.sample(data, noise, t).target)


def test_data_are_recovered_from_the_mixture_and_the_target():
    data, noise = pair(7, 3)
    t = torch.linspace(0, 1, 7, dtype=torch.float64)
    point = FlowMatchingPath().sample(data, noise, t)
    assert torch.allclose(point.x_t - per_row(t, data) * point.target, data)
    assert torch.allclose(point.x_t + per_row(1 - t, data) * point.target, noise)


def test_rows_have_times_of_their_own():
    data, noise = pair(2, 2, 2)
    point = FlowMatchingPath().sample(data, noise, torch.tensor([0.0, 1.0]))
    assert torch.equal(point.x_t, torch.stack([data[0], noise[1]]))


def test_single_times_suffice_for_double_data():
    data, noise = pair(5, 3)
    assert FlowMatchingPath().sample(data, noise, torch.rand(5)).x_t.dtype == torch.float64


LAWS = [
    (FlowMatchingPath(), lambda t: t),
    (FlowMatchingPath(shift=3.0), lambda t: t / (3 - 2 * t)),  # u = t / (shift - (shift - 1) t)
    (FlowMatchingPath(shift=0.5), lambda t: t / (0.5 + 0.5 * t)),
    (FlowMatchingPath(time="logit_normal"), lambda t: stats.norm.cdf(np.log(t / (1 - t)))),
    (
        FlowMatchingPath(time="logit_normal", mean=-0.5, std=0.7),
        lambda t: stats.norm.cdf(np.log(t / (1 - t)), -0.5, 0.7),
    ),
    (  # a shift moves the logit by its logarithm
        FlowMatchingPath(time="logit_normal", mean=0.3, std=1.2, shift=3.0),
        lambda t: stats.norm.cdf(np.log(t / (1 - t)), 0.3 + np.log(3), 1.2),
    ),
]


@pytest.mark.parametrize(("path", "distribution"), LAWS, ids=[str(path) for path, _ in LAWS])
def test_times_follow_their_law(path, distribution):
    t = times(path)
    assert t.min() >= 0
    assert t.max() <= 1
    assert stats.kstest(t.double().numpy(), distribution).pvalue > 1e-4


def test_shift_above_one_favors_noise():
    assert (
        times(FlowMatchingPath(shift=3)).mean()
        > times(FlowMatchingPath()).mean()
        > times(FlowMatchingPath(shift=0.5)).mean()
    )


def test_times_come_from_the_generator():
    assert torch.equal(times(FlowMatchingPath()), times(FlowMatchingPath()))
    assert not torch.equal(times(FlowMatchingPath()), times(FlowMatchingPath(), seed=1))
    assert FlowMatchingPath().sample_time(3).shape == (3,)


def test_what_the_network_sees():
    t, seen = torch.tensor([0.0, 0.25, 1.0]), []
    assert FlowMatchingPath().network_time(t).tolist() == [0, 250, 1000]
    assert FlowMatchingPath(time_scale=1).network_time(t).tolist() == t.tolist()
    assert FlowMatchingPath().weight(t).tolist() == [1, 1, 1]

    def model(x, time, cond):
        seen.append((time, cond))
        return 2 * x

    x, cond = torch.ones(3, 2), {"label": torch.arange(3)}
    velocity = FlowMatchingPath(time_scale=10).velocity(model, cond)
    assert torch.equal(velocity(x, t), 2 * x)
    assert seen[0][0].tolist() == [0, 2.5, 10]
    assert seen[0][1] is cond


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FlowMatchingPath(time="cosine"), "uniform, logit_normal, got 'cosine'"),
        (lambda: FlowMatchingPath(std=0), "std must be > 0, got 0"),
        (lambda: FlowMatchingPath(shift=-1.0), "shift must be > 0"),
        (lambda: FlowMatchingPath(time_scale=float("nan")), "time_scale must be a finite number"),
        (lambda: FlowMatchingPath().sample(*pair(3, 2), torch.zeros(2)), r"t \(2,\)"),
        (lambda: FlowMatchingPath().sample(*pair(3, 2), torch.tensor(0.5)), r"t \(\)"),
        (lambda: FlowMatchingPath().sample(pair(3, 2)[0], pair(3, 1)[0], torch.zeros(3)), r"noise \(3, 1\)"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
