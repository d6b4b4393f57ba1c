import pytest
import torch

from immiscible_diffusion.metrics import prdc as neighbors
from immiscible_diffusion.metrics.prdc import Manifold, coverage, density, memorization, precision, recall


def line(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def brute_radii(points, k):
    return [sorted(float((p - q).norm()) for j, q in enumerate(points) if j != i)[k - 1] for i, p in enumerate(points)]


def brute_hits(queries, points, k):
    radii = brute_radii(points, k)
    return torch.tensor([[bool((q - p).norm() <= r) for p, r in zip(points, radii, strict=True)] for q in queries])


@pytest.mark.parametrize("block", [1, 50, 2**21])
@pytest.mark.parametrize("k", [1, 4])
def test_equal_to_brute_force(generator, monkeypatch, block, k):
    monkeypatch.setattr(neighbors, "_BLOCK", block)
    real = torch.randn(31, 3, dtype=torch.float64, generator=generator)
    samples = torch.randn(23, 3, dtype=torch.float64, generator=generator) + 0.5
    held = brute_hits(samples, real, k)
    assert precision(samples, real, k=k) == pytest.approx(float(held.any(1).double().mean()))
    assert coverage(samples, real, k=k) == pytest.approx(float(held.any(0).double().mean()))
    assert density(samples, real, k=k) == pytest.approx(float(held.sum()) / (k * len(samples)))
    back = brute_hits(real, samples, k)
    assert recall(samples, real, k=k) == pytest.approx(float(back.any(1).double().mean()))
    nearest = [min(float((s - r).norm()) for r in real) for s in samples]
    expected = torch.tensor(nearest).quantile(0.5) / torch.tensor(brute_radii(real, 1)).quantile(0.5)
    assert memorization(samples, real) == pytest.approx(float(expected), rel=1e-6)


def test_cases_by_hand():
    real = line(0, 1, 2, 10)  # k = 1: balls of radius 1, 1, 1 and 8
    samples = line(0.5, 2.5, 50)
    assert precision(samples, real, k=1) == pytest.approx(2 / 3)  # 50 is outside
    # 0.5 is in the balls of 0 and 1; 2.5 in those of 2 and 10.
    assert density(samples, real, k=1) == pytest.approx(4 / 3)
    assert coverage(samples, real, k=1) == 1
    assert coverage(line(50), real, k=1) == 0
    # Samples' balls: [-1.5, 2.5], [0.5, 4.5], [2.5, 97.5].
    assert recall(samples, real, k=1) == 1
    assert recall(line(0, 0.1), real, k=1) == 0.25


def test_equal_laws_give_the_known_expectations(generator):
    real = torch.randn(1000, 4, generator=generator)
    samples = torch.randn(1000, 4, generator=generator)
    assert density(samples, real) == pytest.approx(1, abs=0.08)
    # Naeem et al., lemma 2; the standard deviation at this size is about 0.007.
    assert coverage(samples, real) == pytest.approx(1 - 2**-5, abs=0.025)
    # A new point is as far from N points as these from the N - 1 others.
    assert memorization(samples, real) == pytest.approx(1, abs=0.1)


def test_lost_modes_show_in_recall_and_coverage_not_precision(generator):
    real = torch.randn(400, 4, generator=generator)
    real[200:] += 20
    samples = torch.randn(400, 4, generator=generator)
    assert precision(samples, real) > 0.8
    assert recall(samples, real) < 0.55
    assert coverage(samples, real) < 0.55


def test_copies_of_the_training_data_are_found(generator):
    real = torch.randn(200, 16, generator=generator)
    assert memorization(real[torch.randperm(200, generator=generator)], real) == 0
    assert memorization(real + 1e-3 * torch.randn(200, 16, generator=generator), real) < 0.01
    assert memorization(real[:80] * (1 + 1e-7), real) == 0  # float32 rounding is no difference


def test_copies_within_the_real_set_do_not_matter(generator):
    real = torch.randn(100, 8, generator=generator)
    samples = torch.randn(50, 8, generator=generator)
    twice = torch.cat([real, real])
    assert memorization(samples, twice) == pytest.approx(memorization(samples, real), rel=1e-6)


def test_balls_of_radius_zero_hold_copies():
    manifold = Manifold.of(line(5, 5, 5, 9), 2)
    assert manifold.radii.tolist() == [0, 0, 0, 4]
    balls, inside = manifold.hits(line(5, 5.5))
    assert balls.tolist() == [4, 1]
    assert inside.tolist() == [1, 1, 1, 2]


def test_a_manifold_made_before_gives_the_same(generator):
    real, samples = torch.randn(2, 60, 3, generator=generator)
    manifold = Manifold.of(real, 2)
    for metric in (precision, density, coverage):
        assert metric(samples, manifold) == metric(samples, real, k=2)
    assert recall(Manifold.of(samples, 2), real) == recall(samples, real, k=2)


def test_bad_input_is_named(generator):
    real = torch.randn(5, 3, generator=generator)
    with pytest.raises(ValueError, match=r"number of features \(5\), got k=5"):
        precision(real, real, k=5)
    with pytest.raises(ValueError, match="k=0"):
        Manifold.of(real, 0)
    with pytest.raises(ValueError, match="5 that are equal"):
        memorization(real, torch.ones(5, 3))
    for metric in (precision, density, coverage, memorization):
        with pytest.raises(ValueError, match="got none"):
            metric(real[:0], real, **({} if metric is memorization else {"k": 2}))
    with pytest.raises(ValueError, match=r"\[B, 3\]"):
        memorization(real[:, :2], real)
