import pytest
import torch

from immiscible_diffusion.metrics import kid as kernel
from immiscible_diffusion.metrics.kid import kernel_distance


def features(count, generator, dim=5):
    return torch.randn(count, dim, dtype=torch.float64, generator=generator)


def brute_force(a, b):
    def k(x, y):
        return float((x @ y / len(x) + 1) ** 3)

    within = [
        sum(k(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j) / (len(s) * (len(s) - 1))
        for s in (a, b)
    ]
    between = sum(k(x, y) for x in a for y in b) / (len(a) * len(b))
    return sum(within) - 2 * between


@pytest.mark.parametrize("block", [1, 20, 2**20])
def test_whole_sets_equal_double_loops(generator, monkeypatch, block):
    monkeypatch.setattr(kernel, "_BLOCK", block)
    a, b = features(11, generator), features(7, generator) + 0.5
    result = kernel_distance(a, b)
    assert result.mean == pytest.approx(brute_force(a, b), rel=1e-10)
    assert result.standard_error is None


def test_zero_within_its_error_on_equal_laws(generator):
    # Independent pairs of sets give independent unbiased estimates: their mean is zero.
    values = torch.tensor([kernel_distance(features(40, generator), features(60, generator)).mean for _ in range(200)])
    assert values.mean().abs() < 4 * values.std() / 200**0.5
    assert (values < 0).any()


def test_shift_of_the_mean_equals_its_expectation(generator):
    # For N(0, I) and N(m, I) the kernel is a polynomial, so the expectation is known: with
    # s = x.y / F, E[(s + 1)^3] = 1 + 3 E[s] + 3 E[s^2] + E[s^3].
    dim, shift = 4, 1.0
    square = dim * shift**2

    def expected(mu_nu, mu2, nu2):
        s1 = mu_nu / dim
        s2 = (dim + mu2 + nu2 + mu_nu**2) / dim**2
        # x.y given y is N(mu.y, |y|^2): E = mu_nu^3 + 3 mu2 mu_nu + 3 E[(mu.y) |y|^2]
        s3 = mu_nu**3 + 3 * mu2 * mu_nu + 3 * (mu_nu * (dim + nu2) + 2 * mu_nu)
        return 1 + 3 * s1 + 3 * s2 + s3 / dim**3

    exact = expected(0, 0, 0) + expected(square, square, square) - 2 * expected(0, 0, square)
    values = torch.tensor(
        [kernel_distance(features(100, generator, dim), features(100, generator, dim) + 1).mean for _ in range(200)]
    )
    assert values.mean() == pytest.approx(exact, abs=float(4 * values.std() / 200**0.5))


def test_subsets_agree_with_the_whole_and_follow_the_seed(generator):
    a, b = features(300, generator), features(400, generator) + 0.3
    result = kernel_distance(a, b, subset=50, subsets=200)
    assert result == kernel_distance(a, b, subset=50, subsets=200)
    assert result != kernel_distance(a, b, subset=50, subsets=200, seed=1)
    whole = kernel_distance(a, b, subset=300).mean
    assert abs(result.mean - whole) < 4 * result.standard_error


@pytest.mark.parametrize("options", [{"subset": 1}, {"subsets": 1}])
def test_settings_below_two_are_an_error(generator, options):
    with pytest.raises(ValueError, match="at least 2"):
        kernel_distance(features(5, generator), features(5, generator), **options)


def test_one_feature_and_other_dimensions_are_errors(generator):
    with pytest.raises(ValueError, match="1 and 5 features"):
        kernel_distance(features(1, generator), features(5, generator))
    with pytest.raises(ValueError, match=r"\[B, 5\]"):
        kernel_distance(features(5, generator), features(5, generator, 4))
