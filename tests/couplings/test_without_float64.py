"""A device without float64, as MPS is: nothing makes any there, nor casts to it on the way to the CPU.

The meta device stands in for it, whose tensors have no values: those copied to the CPU are random. It cannot run
assignment, which needs the values.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from immiscible_diffusion import GaussianOT, Moments
from immiscible_diffusion.couplings import EmptyAxes, NoiseDistribution, SemidiscretePlan, _validation, parse_coupling
from immiscible_diffusion.couplings.semidiscrete_fit import _fit, _FitState
from immiscible_diffusion.couplings.semidiscrete_plan import UNFITTED
from immiscible_diffusion.diffusion.paths import VPPath
from immiscible_diffusion.metrics.fid import FeatureStatistics

NAMES = [
    "independent",
    "knn:k=8",
    "knn:k=8,center=label",
    "quantile:rank=2",
    "gaussian_ot",
    "semidiscrete",
    "calibrated:knn:k=8",
    "aligned:knn:k=8",
    "projected(pool=2):knn:k=8",
    "projected(rank=3):shuffled:knn:k=8",
]
SHAPE = (2, 4, 4)


class NoFloat64(TorchDispatchMode):
    """Refuses float64 on the meta device, and copies from there that change the dtype to it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given, kwargs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)], kwargs or {}
        if any(x.is_meta for x in given):
            if func is torch.ops.aten._local_scalar_dense.default:
                return True
            if func is torch.ops.aten._to_copy.default and kwargs.get("device") == torch.device("cpu"):
                if kwargs.get("dtype") == torch.float64:
                    raise TypeError(f"{func} makes float64 of a tensor on a device without it")
                return torch.rand(args[0].shape).to(args[0].dtype)
        out = func(*args, **kwargs)
        if any(x.is_meta and x.dtype == torch.float64 for x in tree_leaves(out) if isinstance(x, torch.Tensor)):
            raise TypeError(f"{func} makes float64 on a device without it")
        return out


@pytest.fixture
def moments():
    return Moments.fit([(torch.randn(80, *SHAPE), torch.arange(80) % 3)])


@pytest.fixture
def device(moments, monkeypatch):
    monkeypatch.setattr(_validation, "WITHOUT_FLOAT64", ("meta",))
    with NoFloat64():
        yield torch.device("meta")


@pytest.mark.parametrize("make", [lambda x: x.double(), lambda x: x.to("cpu", torch.float64)])
def test_what_such_a_device_refuses_is_refused_here(make, device):
    data = torch.randn(3, device=device)
    with pytest.raises(TypeError, match="makes float64"):
        make(data)
    assert data.cpu().double().dtype == torch.float64


@pytest.mark.parametrize("name", NAMES)
def test_couplings_draw_noise(name, moments, device):
    plan = lambda _, **options: SemidiscretePlan.fit(torch.randn(80, *SHAPE), moments, **options | UNFITTED)  # noqa: E731
    coupling = parse_coupling(name, moments, NoiseDistribution.standard(moments), plan)
    cond = {"label": torch.arange(20) % 3, "index": torch.arange(20)}
    cond = {key: value.to(device) for key, value in cond.items()}
    noise = coupling(torch.randn(20, *SHAPE, device=device), cond=cond)
    assert noise.shape == (20, *SHAPE)
    assert noise.dtype == torch.float32


@pytest.mark.parametrize(
    "fit",
    [
        Moments.fit,
        Moments.fit_channels,
        lambda data: Moments.fit([(data, torch.zeros(len(data), device=data.device).long())]),
        lambda data: EmptyAxes.fit(lambda: [data]),
        lambda data: FeatureStatistics.of(data.flatten(1)),
        lambda data: GaussianOT(Moments.fit(data)).kurtosis(data),
        lambda data: VPPath().time(torch.arange(len(data), device=data.device)),
    ],
)
def test_what_is_fitted_comes_to_the_cpu_before_it_is_cast(fit, device):
    fit(torch.randn(20, *SHAPE, device=device))


def test_a_plan_starts_where_it_is_fitted(device):
    """Its start alone: which samples are equal has no answer without values."""
    samples, weight = torch.randn(9, 4, device=device), torch.full((9,), 1 / 9, device=device)
    bias, _ = _fit(samples, weight, torch.Generator(), 0.02, 0, None, _FitState(None, ""), 0)
    assert bias.device == device
    assert bias.dtype == torch.float32
