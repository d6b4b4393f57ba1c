"""KNN is the published selection: two-sample tests against drawing all candidates, and laws."""

import math
import operator
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from torch.profiler import ProfilerActivity, profile

from immiscible_diffusion import KNN, Moments
from immiscible_diffusion.couplings import _validation as inputs
from immiscible_diffusion.couplings import knn
from immiscible_diffusion.couplings._knn_kernels import _chi_square, _many_gammas

ROWS = {1: 4000, 2: 4000, 5: 4000, 64: 3000, 3072: 400}


def seeded(*parts):
    return torch.Generator().manual_seed(hash(parts) % 2**31)  # of integers: the same everywhere


def brute_force(x, k, rows, generator):
    """The nearest to ``x`` [D] of k noises, ``rows`` times: [rows, D] float64."""
    nearest = []
    for part in torch.arange(rows).split(max(1, 2_000_000 // (k * len(x)))):
        noise = torch.randn(len(part), k, len(x), generator=generator, dtype=torch.float64)
        index = (noise - x).square().sum(dim=2).argmin(dim=1)
        nearest.append(noise[torch.arange(len(part)), index])
    return torch.cat(nearest)


def statistics(noise, x):
    """Scalars [rows] whose laws are compared; the first is the squared distance less |x|^2."""
    noise, dim = noise.double(), len(x)
    u = x / x.norm() if x.norm() > 0 else torch.eye(dim, dtype=x.dtype)[0]
    across = noise - (noise @ u)[:, None] * u
    named = [noise.square().sum(dim=1) - 2 * noise @ x, noise.norm(dim=1), noise @ u]
    if dim > 1:
        named.append(across.norm(dim=1))
    return [*named, noise[:, 0], noise[:, dim // 2], noise[:, -1]]


def p_values(ours, theirs, x):
    pairs = zip(statistics(ours, x), statistics(theirs, x), strict=True)
    return [stats.ks_2samp(a.numpy(), b.numpy()).pvalue for a, b in pairs]


def assert_same_law(p):
    """No p-value too small for so many tests, and no heap of small ones."""
    p = np.array(p)
    assert p.min() > 1e-4 / len(p)
    assert 0.35 < p.mean() < 0.7
    assert (p < 0.1).mean() < 0.25


def sample(kind, dim):
    """The offset [D] float64 that selection is by."""
    x = torch.randn(dim, generator=seeded(dim), dtype=torch.float64)
    return {"plain": x, "zero": 0 * x, "long": 1e5 * x / x.norm(), "centered": 0.5 * x}[kind]


@pytest.mark.parametrize("kind", ["plain", "zero", "long", "centered"])
def test_same_law_as_drawing_all_candidates(kind):
    p = []
    for dim, rows in ROWS.items():
        x = sample(kind, dim)
        mean = torch.full((dim,), 2.0) if kind == "centered" else torch.zeros(dim)
        data = (x + mean).float().expand(rows, dim)
        center = Moments(mean, 1.0, 10) if kind == "centered" else None
        for k in (1, 2, 4, 64):
            ours = KNN(k, center=center)(data, generator=seeded(dim, k, 0))
            p += p_values(ours, brute_force(x, k, rows, seeded(dim, k, 1)), x)
    assert_same_law(p)


def test_the_comparison_tells_four_candidates_from_five():
    x = sample("plain", 5)
    ours = KNN(4)(x.expand(4000, 5), generator=seeded(0))
    assert min(p_values(ours, brute_force(x, 5, 4000, seeded(1)), x)) < 1e-6


def test_same_law_whatever_the_blocks(monkeypatch):
    x, p = sample("plain", 5), []
    for rows_of_block in (0, 1, 7, 64, 1000, 10_000):
        monkeypatch.setattr(inputs, "BLOCK_ELEMENTS", 5 * rows_of_block)
        noise = KNN(4)(x.expand(1003, 5), generator=seeded(rows_of_block))
        assert bool(noise.isfinite().all())
        assert len(noise.unique(dim=0)) == 1003  # every row written, none twice
        p += p_values(noise, brute_force(x, 4, 1003, seeded(rows_of_block, 1)), x)
    assert_same_law(p)


def test_blocks_cover_every_row_once(monkeypatch):
    monkeypatch.setattr(inputs, "BLOCK_ELEMENTS", 6)
    covered = [row for block in inputs.row_blocks(torch.zeros(10, 2)) for row in range(10)[block]]
    assert covered == list(range(10))


@pytest.mark.parametrize("kind", ["zero", "plain"])
@pytest.mark.parametrize("dim", [5, 64])
@pytest.mark.parametrize("k", [2, 16, 100_000])
def test_survival_of_the_winner_is_the_largest_of_k_uniforms(kind, dim, k):
    rows = 4000 if k < 1000 else 30
    x = sample(kind, dim)
    noise = KNN(k)(x.expand(rows, dim), generator=seeded(dim, k))
    square = (noise - x).square().sum(dim=1).numpy()
    length = float(x.square().sum())
    law = stats.ncx2(dim, length) if length else stats.chi2(dim)
    survival = law.sf(square)
    assert stats.kstest(survival**k, "uniform").pvalue > 1e-4
    # KL(noise | sample, N(0, I)) = log k - 1 + 1/k; its summand has standard deviation 1 - 1/k.
    divergence = np.mean(math.log(k) + (k - 1) * np.log(survival))
    error = (1 - 1 / k) / math.sqrt(rows)
    assert abs(divergence - (math.log(k) - 1 + 1 / k)) < 4 * error


def test_direction_across_the_datum_is_uniform():
    x = torch.tensor([1.0, 2.0, -2.0], dtype=torch.float64)
    noise = KNN(8)(x.expand(20_000, 3), generator=seeded(3))
    one = torch.tensor([2.0, -1.0, 0.0], dtype=torch.float64) / 5**0.5
    two = torch.linalg.cross(x / 3, one)
    angle = torch.atan2(noise @ two, noise @ one) / (2 * math.pi) + 0.5
    assert stats.kstest(angle.numpy(), "uniform").pvalue > 1e-4
    along, radius = noise @ x / 3, (noise @ one).hypot(noise @ two)
    for other in (along, radius):  # and independent of both lengths
        assert abs(np.corrcoef(angle.numpy(), other.numpy())[0, 1]) < 4 / 20_000**0.5


def test_rows_are_independent():
    x = sample("plain", 5)
    noise = KNN(8)(x.expand(20_000, 5), generator=seeded(4))
    noise = noise - noise.mean(dim=0)
    neighbors = noise[:-1].T @ noise[1:] / len(noise)
    assert neighbors.abs().max() < 4.5 / 20_000**0.5


def test_every_row_is_paired_with_its_own_datum():
    data = torch.cat([torch.zeros(1, 4), torch.eye(4), -torch.eye(4)]).repeat(2000, 1)
    noise = KNN(16)(data, generator=seeded(5)).view(2000, 9, 4).mean(dim=0)
    expected = float(noise[1, 0])
    assert expected > 0.2
    want = torch.cat([torch.zeros(1, 4), torch.eye(4), -torch.eye(4)]) * expected
    assert (noise - want).abs().max() < 0.12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_one_candidate_is_randn_bit_for_bit(dtype):
    data = torch.ones(3, 2, 5, 7, dtype=dtype)
    noise = KNN(1)(data, generator=seeded(6))
    assert torch.equal(noise, torch.randn(3, 2, 5, 7, dtype=dtype, generator=seeded(6)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_selects_in_single(dtype):
    data = (3 * torch.randn(20, 40_000, generator=seeded(7))).to(dtype)  # |x|^2 overflows float16
    noise = KNN(64)(data, generator=seeded(8))
    single = KNN(64)(data.float(), generator=seeded(8))
    assert torch.equal(noise, single.to(dtype))


def test_distances_are_taken_from_the_center():
    mean = torch.randn(2, 3, generator=seeded(9))
    data = torch.randn(6, 2, 3, generator=seeded(10)).double()
    centered = KNN(4, center=Moments(mean, 1.0, 10))(data, generator=seeded(11))
    assert torch.equal(centered, KNN(4)(data - mean, generator=seeded(11)))


@pytest.mark.parametrize("scale", [1e-45, 1e-30, 1e-20, 1e-10, 1e10, 1e18])
def test_data_of_any_length(scale):
    data = (scale * torch.randn(500, 4, generator=seeded(12), dtype=torch.float64)).float()
    noise = KNN(4)(data, generator=seeded(13))
    assert bool(noise.isfinite().all())
    assert 0.2 < float(noise.square().mean()) < 2


def peak_bytes(draw):
    """Most memory that torch held at a time inside ``draw``."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        draw()
    events = profiler.profiler.kineto_results.events()
    start = operator.methodcaller("start_ns" if hasattr(events[0], "start_ns") else "start_us")
    changes = sorted((start(e), e.nbytes()) for e in events if e.name() == "[memory]")
    return int(np.cumsum([change for _, change in changes]).max())


@pytest.mark.parametrize("k", [4, 65_536])
def test_memory_does_not_depend_on_k(k):
    data = torch.randn(64, 3072, generator=seeded(14))
    assert data.nbytes <= peak_bytes(lambda: KNN(k)(data)) < 4 * data.nbytes


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_is_named(value):
    data = torch.zeros(6, 2, 2)
    data[3, 1, 0] = data[5, 0, 0] = value
    with pytest.raises(ValueError, match="data row 3 is not finite"):
        KNN(2)(data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KNN(0), "k must be a whole number >= 1, got 0"),
        (lambda: KNN(True), "k must be a whole number >= 1, got True"),
        (lambda: KNN(2.0), "k must be a whole number >= 1, got 2.0"),
        (lambda: KNN("4"), "k must be a whole number >= 1, got '4'"),
        (lambda: KNN(2, center=torch.zeros(3)), "center must be fitted Moments"),
        (lambda: KNN(2)([1.0]), "floating-point tensor .*, got list"),
        (lambda: KNN(2)(torch.zeros(3, 3, dtype=torch.int64)), "got torch.int64"),
        (lambda: KNN(2)(torch.zeros(3)), r"all sizes >= 1, got torch.float32 \(3,\)"),
        (lambda: KNN(2)(torch.zeros(0, 3)), r"with B and all sizes >= 1, got .*\(0, 3\)"),
        (lambda: KNN(1)(torch.zeros(3, 0)), r"got .*\(3, 0\)"),
        (
            lambda: KNN(2, center=Moments(torch.zeros(3), 1.0, 1))(torch.zeros(2, 4)),
            r"center was fitted on data of shape \(3,\), got \(4,\)",
        ),
    ],
)
def test_errors_say_what_came_and_what_to_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_frozen_and_equal_by_value():
    assert KNN(4) == KNN(4) != KNN(5)
    assert hash(KNN(4)) == hash(KNN(4))
    with pytest.raises(AttributeError):
        KNN(4).k = 5


@pytest.mark.parametrize("valid", [1, 2, 3, 5])
def test_few_valid_positions_of_many_have_the_law_of_few(valid):
    """In float32 a noise may lie so nearly along its sample that no digit of the rest is left."""
    generator = torch.Generator().manual_seed(valid)
    data = torch.zeros(64)
    data[:valid] = torch.randn(valid, generator=generator)
    mask = torch.arange(64) < valid
    noise = KNN(8)(data.expand(30_000, 64), mask=mask[None], generator=generator)[:, :valid]
    drawn = torch.randn(30_000, 8, valid, generator=generator)
    nearest = (drawn - data[:valid]).square().sum(2).argmin(1)
    brute = drawn[torch.arange(30_000), nearest]
    for one, other in ((noise.norm(dim=1), brute.norm(dim=1)), (noise[:, 0], brute[:, 0])):
        assert stats.ks_2samp(one, other).pvalue > 1e-3


def test_no_noise_is_ever_huge():
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(64) < 2)[None]
    for _ in range(8):
        data = torch.randn(50_000, 64, generator=generator)
        noise = KNN(4)(data, mask=mask, generator=generator)
        assert float(noise.abs().max()) < 8
    x = torch.randn(1000, 64, generator=generator)
    assert float(KNN(64).pair(x, -x, generator=generator).abs().max()) < 1e4


@pytest.mark.parametrize("dim", [33, 3072, 1 << 18])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_gammas_are_gammas(dim, dtype):
    shape = torch.full((300, 1000), (dim - 1) / 2, dtype=dtype)
    draws = _many_gammas(shape, seeded(17, dim)).double()
    assert stats.kstest(draws.flatten().numpy(), stats.gamma((dim - 1) / 2).cdf).pvalue > 1e-3
    assert np.abs(np.corrcoef(draws[:4].numpy()) - np.eye(4)).max() < 4.5 / 1000**0.5
    assert torch.equal(draws, _many_gammas(shape, seeded(17, dim)).double())


def test_gammas_of_few_and_many_degrees_at_once_are_right():
    """Masked rows have degrees of their own."""
    degrees = torch.tensor([[1.0], [40.0], [3000.0]])
    for row, draws in zip(degrees, _chi_square((degrees / 2).expand(3, 40_000), seeded(18)), strict=True):
        assert stats.kstest(draws.double().numpy(), stats.chi2(float(row)).cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    "fault", [ImportError("no Triton"), RuntimeError("no C compiler"), torch.cuda.OutOfMemoryError()]
)
def test_where_the_one_kernel_cannot_run_operations_do(fault, monkeypatch, recwarn):
    def fails(*args):
        raise fault

    module = None if isinstance(fault, ImportError) else SimpleNamespace(knn_in_one_kernel=fails)
    monkeypatch.setitem(sys.modules, "immiscible_diffusion.couplings._knn_triton", module)
    if isinstance(fault, torch.cuda.OutOfMemoryError):
        with pytest.raises(torch.cuda.OutOfMemoryError):
            knn._one_kernel(torch.device("cpu"))
        return
    assert knn._one_kernel(torch.device("cpu")) is None
    assert [str(warning.message).endswith("no C compiler") for warning in recwarn] == [True] * (module is not None)


class Wrapping(torch.Tensor):
    """As DTensor is."""


def test_what_wraps_a_tensor_takes_operations(monkeypatch):
    """Triton needs memory, which these have not; ``is_cuda`` is made up."""
    monkeypatch.setattr(knn, "_kernels", {torch.device("cpu"): lambda *args: None})
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
    data = torch.zeros(2, 3)
    assert knn._kernel_for(data) is not None
    assert knn._kernel_for(data.double()) is None
    assert knn._kernel_for(data.as_subclass(Wrapping)) is None
    found = []
    for transform in (torch.func.grad, torch.func.vmap):
        transform(lambda x: found.append(knn._kernel_for(x)) or x.sum())(data)
    assert found == [None, None]
