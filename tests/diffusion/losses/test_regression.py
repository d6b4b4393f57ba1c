from dataclasses import dataclass

import torch

from immiscible_diffusion import FlowMatchingPath, RegressionLoss


def setting(count=6):
    generator = torch.Generator().manual_seed(0)
    data, noise = (torch.randn(count, 2, 3, generator=generator) for _ in range(2))
    return data, noise, torch.rand(count, generator=generator)


def test_is_the_mean_square_of_each_sample():
    data, noise, t = setting()
    error = torch.arange(6.0)
    loss = RegressionLoss()(
        lambda x, time, cond: noise - data + error[:, None, None], FlowMatchingPath(), data, noise, t, None
    )
    assert torch.allclose(loss, error.square(), atol=1e-5)


def test_of_an_ignorant_model_is_the_size_of_the_target():
    data, noise, t = setting()
    loss = RegressionLoss()(lambda x, time, cond: torch.zeros_like(x), FlowMatchingPath(), data, noise, t, None)
    assert torch.allclose(loss, (noise - data).square().flatten(1).mean(dim=1))


def test_the_model_sees_the_mixture_its_time_and_the_conditions():
    data, noise, t = setting()
    path, cond, seen = FlowMatchingPath(), {"label": torch.arange(6)}, []

    def model(x, time, given):
        seen.append((x, time, given))
        return x

    RegressionLoss()(model, path, data, noise, t, cond)
    x, time, given = seen[0]
    assert len(seen) == 1
    assert torch.equal(x, path.sample(data, noise, t).x_t)
    assert torch.equal(time, path.network_time(t))
    assert given is cond


def test_weight_of_the_path():
    @dataclass(frozen=True)
    class Weighted(FlowMatchingPath):
        def weight(self, t):
            return 3 * t

    data, noise, t = setting()
    plain, weighted = (
        RegressionLoss()(lambda x, time, cond: x, path, data, noise, t, None)
        for path in (FlowMatchingPath(), Weighted())
    )
    assert torch.allclose(weighted, 3 * t * plain)


def test_half_precision_models_do_not_overflow_the_square():
    data, noise, t = setting()
    loss = RegressionLoss()(
        lambda x, time, cond: torch.full_like(x, 1000, dtype=torch.float16), FlowMatchingPath(), data, noise, t, None
    )
    assert loss.dtype == torch.float32
    assert bool(loss.isfinite().all())
    assert loss.min() > 9e5


def test_gradient_reaches_the_model_and_not_the_noise():
    data, noise, t = setting()
    scale = torch.ones((), requires_grad=True)
    loss = RegressionLoss()(lambda x, time, cond: scale * x, FlowMatchingPath(), data, noise, t, None)
    loss.sum().backward()
    x, target = FlowMatchingPath().sample(data, noise, t).x_t, noise - data
    assert torch.allclose(scale.grad, (2 * (x - target) * x).flatten(1).mean(dim=1).sum())
