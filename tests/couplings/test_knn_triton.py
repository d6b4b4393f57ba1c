"""The one kernel against the operations of ``KNN``: on a CPU by Triton's interpreter, on CUDA compiled."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from immiscible_diffusion import KNN

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROWS = 20_000 if DEVICE == "cuda" else 60  # interpreted, a row takes 40 ms

triton = pytest.importorskip("triton", reason="needs Triton")
tl = triton.language

from immiscible_diffusion.couplings import _knn_triton  # noqa: E402

pytestmark = pytest.mark.cuda  # where there is none, under the interpreter

one_kernel, _noise, _rivals = _knn_triton.knn_in_one_kernel, _knn_triton._noise, _knn_triton._rivals


def seeded(seed, device=DEVICE):
    return torch.Generator(device).manual_seed(seed)


def scalars(noise, x):
    """Squared distance less that of 0, length, product with the sample, coordinates: each ``[rows]``."""
    noise, x = noise.double().cpu(), x.double()
    products = noise.square().sum(dim=1) - 2 * noise @ x, noise.norm(dim=1), noise @ x
    return [*products, noise[:, 0], noise[:, len(x) // 2], noise[:, -1]]


@triton.jit
def draw_scalars(out, seeds, dim, BLOCK: tl.constexpr):
    """Of every row what the kernel draws for one: four noises, a rival's length along and square across."""
    seed, rows, count = tl.load(seeds), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), BLOCK * tl.num_programs(0)
    n0, n1, n2, n3 = _noise(seed, rows * 0, rows)
    along, square = _rivals(seed, rows * 0, rows, dim)
    tl.store(out + rows, n0)
    tl.store(out + count + rows, n1)
    tl.store(out + 2 * count + rows, n2)
    tl.store(out + 3 * count + rows, n3)
    tl.store(out + 4 * count + rows, along)
    tl.store(out + 5 * count + rows, square.to(tl.float32))


@pytest.mark.parametrize("dim", [2, 3, 65, 3072])
def test_normals_and_chi_squares_are_that_and_independent(dim):
    count = 1 << 16
    out = torch.zeros(6, count, device=DEVICE)
    draw_scalars[(count // 1024,)](out, torch.tensor([dim], device=DEVICE), dim, BLOCK=1024)
    out = out.double().cpu().numpy()
    p = [stats.kstest(row, "norm").pvalue for row in out[:5]] + [stats.kstest(out[5], stats.chi2(dim - 1).cdf).pvalue]
    assert min(p) > 1e-4
    assert np.abs(np.corrcoef(out) - np.eye(6)).max() < 4.5 / count**0.5
    assert np.abs([np.corrcoef(row[1:], row[:-1])[0, 1] for row in out]).max() < 4.5 / count**0.5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "zero"])
@pytest.mark.parametrize("k", [2, 64])
def test_same_distribution_as_the_operations(k, kind):
    p = []
    for dim in (1, 64, 65, 3072):
        x = torch.randn(dim, generator=seeded(dim, "cpu")) * (kind == "plain")
        ours = one_kernel(x.to(DEVICE).expand(ROWS, dim), k, seeded(k))
        assert dim == 1 or len(ours.unique(dim=0)) == ROWS  # single numbers repeat in 20,000
        theirs = KNN(k)(x.expand(4000, dim), generator=seeded(k, "cpu"))
        p += [stats.ks_2samp(*pair).pvalue for pair in zip(scalars(ours, x), scalars(theirs, x), strict=True)]
    assert min(p) > 1e-3 / len(p)
    assert 0.25 < np.mean(p) < 0.75


@pytest.mark.parametrize(("dim", "in_registers"), [(2, 1 << 14), (70, 1 << 14), (5000, 0)])
def test_survival_of_the_winner_is_the_largest_of_k_uniforms(dim, in_registers, monkeypatch):
    """Also of more rivals than are drawn at a time, and of noise that is drawn twice."""
    monkeypatch.setattr(_knn_triton, "IN_REGISTERS", in_registers)
    k, x = 300, torch.randn(dim, generator=seeded(dim, "cpu"))
    noise = one_kernel(x.to(DEVICE).expand(20, dim), k, seeded(1)).cpu()
    square = (noise - x).double().square().sum(dim=1).numpy()
    survival = stats.ncx2(dim, float(x.double().square().sum())).sf(square)
    assert stats.kstest(survival**k, "uniform").pvalue > 1e-4
    assert abs(np.mean(math.log(k) + (k - 1) * np.log(survival)) - (math.log(k) - 1)) < 4 / 20**0.5


def test_noise_drawn_twice_is_noise_that_was_kept(monkeypatch):
    data = torch.randn(20, 1500, generator=seeded(0, "cpu")).to(DEVICE)
    kept = one_kernel(data, 4, seeded(1))
    monkeypatch.setattr(_knn_triton, "IN_REGISTERS", 0)
    torch.testing.assert_close(one_kernel(data, 4, seeded(1)), kept)


def test_the_generator_decides_and_dtypes_and_layouts_stay():
    data = torch.randn(3, 2, 5, 3, generator=seeded(0, "cpu")).to(DEVICE)
    noise = one_kernel(data, 4, seeded(1))
    assert torch.equal(noise, one_kernel(data, 4, seeded(1)))
    assert not torch.equal(noise, one_kernel(data, 4, seeded(2)))
    assert torch.equal(noise, one_kernel(data.to(memory_format=torch.channels_last), 4, seeded(1)))
    for dtype in (torch.float16, torch.bfloat16):
        half, single = (one_kernel(x, 4, seeded(1)) for x in (data.to(dtype), data.to(dtype).float()))
        assert half.dtype == dtype
        assert torch.allclose(half.float(), single, rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
def test_the_coupling_is_the_kernel_where_that_can_run():
    data = torch.randn(3, 2, 5, 3, generator=seeded(0, "cpu")).to(DEVICE, memory_format=torch.channels_last)
    noise = KNN(4)(data, generator=seeded(1))
    assert torch.equal(noise, one_kernel(data, 4, seeded(1)))
    assert noise.stride() == data.stride()
    mask = torch.tensor([True, True, False], device=DEVICE).view(1, 1, 1, 3)
    assert not torch.equal(KNN(4)(data, mask=mask, generator=seeded(1)), noise)
    assert not torch.equal(KNN(4).pair(data, torch.randn_like(data), generator=seeded(1)), noise)
    assert KNN(4)(data.double(), generator=seeded(1)).dtype == torch.float64
    tangent = torch.func.jvp(lambda x: x + KNN(4)(x), (data,), (torch.ones_like(data),))[1]
    assert torch.equal(tangent, torch.ones_like(data))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_row_that_is_not_finite_gets_nan(value):
    data = torch.zeros(3, 70, device=DEVICE)
    data[1, 5] = value
    assert one_kernel(data, 4, seeded(0)).isnan().all(dim=1).tolist() == [False, True, False]
