"""The law of paired noise is measured as it is, and calibration undoes it, on real data."""

import math

import pytest
import torch
from scipy import stats

from immiscible_diffusion import KNN, Independent, LinearAssignment, Moments, Shuffled
from immiscible_diffusion.couplings import Calibrated, NoiseDistribution
from immiscible_diffusion.couplings.noise_distribution import basis_of
from immiscible_diffusion.couplings.testing import check_coupling
from immiscible_diffusion.data import DataConfig, load_images

DIRECTIONS = 32


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def everything(dataset):
    batch = dataset.batch(torch.arange(len(dataset)))
    return batch.data, batch.cond["label"]


@pytest.fixture(scope="module")
def digits():
    return everything(load_images(DataConfig("digits")))


@pytest.fixture(scope="module")
def cifar(shared_data):
    path = str(shared_data / "cifar10")
    return everything(load_images(DataConfig("cifar10", path=path, max_samples=10_000)))


@pytest.fixture(params=["digits", "cifar"])
def images(request):
    return request.getfixturevalue(request.param)


def passes(data, labels, count, seed):
    """``count`` times over the data, in batches of 256."""
    for one in range(count):
        for rows in torch.randperm(len(data), generator=seeded(seed + one)).split(256):
            yield data[rows], labels[rows]


def draws(coupling, pairs, seed):
    """Noise ``[N, D]`` float32 and labels of one pass."""
    generator = seeded(seed)
    made = [(coupling(x, cond={"label": y}, generator=generator).flatten(1), y) for x, y in pairs]
    return torch.cat([noise for noise, _ in made]), torch.cat([y for _, y in made])


def worst_z(noise, directions, fitted):
    """Largest |z| of means and covariances along ``directions``, were the noise N(0, I).

    ``fitted`` noises were used to calibrate, and err as much as those looked at.
    """
    along = (noise @ directions.T).double()
    scale = (1 / len(noise) + 1 / fitted) ** 0.5
    mean = along.mean(dim=0)
    covariance = (along - mean).T @ (along - mean) / len(along)
    sd = torch.ones_like(covariance) + torch.eye(len(covariance))  # variances: 2, covariances: 1
    excess = (covariance - torch.eye(len(covariance))) / sd.sqrt()
    return max(float(mean.abs().max()), float(excess.abs().max())) / scale


def bound(tests):
    """What the largest of so many |z| exceeds once in ten thousand."""
    return float(stats.norm.isf(0.5e-4 / tests))


def test_calibrated_noise_has_mean_zero_and_covariance_one(images):
    data, labels = images
    moments = Moments.fit([(x, y) for x, y in passes(data, labels, 1, 0)])
    coupling = KNN(64)
    fit, look = (9, 4) if len(data) < 5000 else (2, 1)
    law = NoiseDistribution.measure(
        coupling, passes(data, labels, fit, 1), moments, by_label=False, generator=seeded(2)
    )
    tests = DIRECTIONS + DIRECTIONS * (DIRECTIONS + 1) // 2
    directions = moments.directions[:DIRECTIONS]
    raw, _ = draws(coupling, passes(data, labels, look, 100), 3)
    mended, _ = draws(Calibrated(coupling, law), passes(data, labels, look, 100), 3)
    assert worst_z(raw, directions, math.inf) > 3 * bound(tests)  # the test can fail
    assert worst_z(mended, directions, law.count) < bound(tests)


def class_shift_p(noise, labels, fitted):
    """Probability of class means so far from 0, were every class's noise N(0, I)."""
    p = []
    for label in labels.unique():
        mine = noise[labels == label]
        scale = 1 / len(mine) + 1 / (fitted * len(mine) / len(noise))
        square = float((mine.double().mean(dim=0).square() / scale).sum())
        p.append(stats.chi2.sf(square, noise.shape[1]))
    return min(p) * len(p)


def test_the_shift_of_classes_and_its_two_remedies(digits):
    data, labels = digits
    moments = Moments.fit([digits])

    def shift(coupling, fitted=math.inf):
        return class_shift_p(*draws(coupling, passes(data, labels, 6, 10), 11), fitted)

    assert shift(Independent()) > 1e-4
    assert shift(KNN(16)) < 1e-12
    assert shift(KNN(16, center=moments)) < 1e-12  # within a class the mean is not 0
    # Not null but too small to be seen here: the next test.
    assert shift(KNN(16, center="label", moments=moments)) > 1e-4
    coupling = KNN(16)
    law = NoiseDistribution.measure(coupling, passes(data, labels, 12, 20), moments, generator=seeded(21))
    assert shift(Calibrated(coupling, law), law.count) > 1e-4
    for_all = NoiseDistribution.measure(
        coupling, passes(data, labels, 12, 20), moments, by_label=False, generator=seeded(21)
    )
    assert shift(Calibrated(coupling, for_all), law.count) < 1e-12


def test_a_center_by_label_leaves_one_part_in_twenty_of_the_shift_at_most(digits):
    # E[noise | sample] = c(|x|) x / |x|: its mean over a class is 0 only where the class is even
    # about its mean. Integrated over digits the rms shift is 1.16 raw, 0.67 with one center, 0.013
    # with a center by label: more noises would show it, so what is claimed is the factor.
    data, labels = digits
    moments = Moments.fit([digits])

    def square(coupling, count=20):
        """Mean squared shift of the classes, unbiased: by two sets of noises."""
        means = []
        for seed in (50, 90):
            noise, kinds = draws(coupling, passes(data, labels, count, seed), seed)
            means.append(torch.stack([noise[kinds == c].double().mean(dim=0) for c in range(10)]))
        return float((means[0] * means[1]).sum(dim=1).mean())

    raw = square(KNN(16))
    assert raw == pytest.approx(1.16**2, rel=0.03)
    assert square(KNN(16, center=moments)) > raw / 4
    assert square(KNN(16, center="label", moments=moments)) < raw / 20**2


def some_law(labels=True, count=4000, dim=12):
    """A law of noise far from N(0, I), on data of few directions."""
    generator = seeded(30)
    data = torch.randn(count, dim, generator=generator) * torch.linspace(2, 0.1, dim) + 1
    kinds = torch.arange(count) % 3
    moments = Moments.fit([(data, kinds)], directions=4)
    pairs = [(data, kinds)]
    return NoiseDistribution.measure(KNN(64), pairs, moments, by_label=labels, generator=generator)


@pytest.mark.parametrize("by_label", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_color_undoes_whiten(by_label, dtype):
    law, labels = some_law(by_label), (torch.arange(50) % 3 if by_label else None)
    noise = torch.randn(50, 12, generator=seeded(31)).to(dtype)
    back = law.color(law.whiten(noise, labels), labels)
    assert back.dtype == dtype
    tolerance = {torch.float64: 1e-13, torch.float32: 1e-4, torch.float16: 1e-2}[dtype]
    assert torch.allclose(back, noise, rtol=0, atol=tolerance)
    again = law.whiten(law.color(noise, labels), labels)
    assert torch.allclose(again, noise, rtol=0, atol=tolerance)


def test_color_gives_white_noise_the_moments_that_were_measured():
    law = some_law(labels=False)
    noise = law.color(torch.randn(200_000, 12, generator=seeded(32))).double()
    inside = noise @ law.basis.double().T
    assert torch.allclose(inside.mean(dim=0), law.mean.double(), atol=0.01)
    assert torch.allclose(torch.cov(inside.T), law.covariance.double(), atol=0.02)
    outside = noise - inside @ law.basis.double()
    per_dimension = float(outside.square().sum(dim=1).mean()) / (12 - len(law.basis))
    assert per_dimension == pytest.approx(law.scale**2, rel=0.01)


def test_color_by_label_gives_every_label_its_own_moments():
    law = some_law()
    labels = torch.arange(240_000) % 3
    inside = law.color(torch.randn(240_000, 12, generator=seeded(41)), labels) @ law.basis.T
    for label in range(3):
        mine = inside[labels == label].double()
        assert torch.allclose(mine.mean(dim=0), law.label_mean[label].double(), atol=0.02)
        assert torch.allclose(torch.cov(mine.T), law.label_covariance[label].double(), atol=0.03)
    assert not torch.allclose(law.label_mean[0], law.label_mean[1], atol=0.02)


def test_covariance_of_a_label_is_drawn_to_that_within_labels():
    generator = seeded(42)
    data = torch.randn(2000, 8, generator=generator) * torch.linspace(2, 0.5, 8)
    labels = (torch.arange(2000) % 2).where(torch.arange(2000) >= 3, 3)  # of label 3 three, 2 none
    moments = Moments.fit([(data, labels)], directions=4)
    law = NoiseDistribution.measure(KNN(16), [(data, labels)], moments, generator=seeded(43))
    noise = KNN(16)(data, generator=seeded(43)).double() @ law.basis.double().T
    r, groups = len(law.basis), {c: noise[labels == c] for c in (0, 1, 3)}
    scatter = {c: torch.cov(rows.T, correction=0) * len(rows) for c, rows in groups.items()}
    within = sum(scatter.values()) / len(data)
    for c, rows in groups.items():
        expected = (scatter[c] + r * within) / (len(rows) + r)
        assert torch.allclose(law.label_covariance[c].double(), expected, atol=1e-5)
    assert torch.allclose(law.label_covariance[2].double(), within, atol=1e-5)
    assert torch.allclose(law.label_mean[2], law.mean)


def test_noise_without_spread_does_not_explode():
    def constant(data, *, cond=None, generator=None):
        return torch.ones_like(data)

    data = torch.randn(100, 6, generator=seeded(44))
    law = NoiseDistribution.measure(constant, [data], Moments.fit(data))
    assert bool(law.whiten(torch.randn(9, 6, generator=seeded(45))).isfinite().all())
    assert torch.allclose(law.whiten(torch.ones(1, 6)), torch.zeros(1, 6), atol=1e-2)


def test_labels_under_a_name_of_ones_own():
    data, labels = torch.randn(300, 5, generator=seeded(46)), torch.arange(300) % 3
    moments = Moments.fit([(data, labels)])
    coupling = KNN(4, center="label", moments=moments, label_key="kind")
    law = NoiseDistribution.measure(coupling, [(data, labels)], moments, label_key="kind")
    noise = Calibrated(coupling, law, label_key="kind")(data, cond={"kind": labels})
    assert noise.shape == data.shape


def test_mixed_precision_leaves_the_law_alone():
    law, labels = some_law(), torch.arange(50) % 3
    noise = torch.randn(50, 12, generator=seeded(47))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = [law.whiten(noise, labels), law.color(noise)]
    assert torch.equal(inside[0], law.whiten(noise, labels))
    assert torch.equal(inside[1], law.color(noise))


def test_measured_moments_are_those_of_the_noise():
    generator = seeded(33)
    data = torch.randn(3000, 6, generator=generator) * torch.tensor([3.0, 2, 1, 1, 1, 1]) + 0.5
    moments = Moments.fit(data, directions=6)
    law = NoiseDistribution.measure(KNN(8), data.split(500), moments, generator=seeded(34))
    generator = seeded(34)
    noise = torch.cat([KNN(8)(part, generator=generator) for part in data.split(500)]).double()
    along = noise @ law.basis.double().T
    assert torch.allclose(law.mean.double(), along.mean(dim=0), atol=1e-5)
    assert torch.allclose(law.covariance.double(), torch.cov(along.T, correction=0), atol=1e-5)
    kurtosis = stats.kurtosis(along.numpy(), axis=0)
    assert torch.allclose(law.kurtosis.double(), torch.from_numpy(kurtosis), atol=1e-4)


def test_the_law_without_pairing_and_of_assignment_is_exact():
    moments = Moments.fit(torch.randn(100, 8, generator=seeded(35)))
    for coupling in (Independent(), LinearAssignment(), Shuffled(Independent()), KNN(1)):
        law = NoiseDistribution.measure(coupling, [], moments)
        noise = torch.randn(5, 8, generator=seeded(36))
        assert torch.allclose(law.whiten(noise), noise, atol=1e-6)
        assert torch.allclose(law.color(noise), noise, atol=1e-6)


def test_the_basis_holds_the_mean_and_the_labels_means():
    generator = seeded(37)
    labels = torch.arange(300) % 3
    data = torch.randn(300, 40, generator=generator) + 5 * torch.eye(3, 40)[labels] + 2
    moments = Moments.fit([(data, labels)], directions=4)
    basis = basis_of(moments).double()
    assert torch.allclose(basis @ basis.T, torch.eye(len(basis)).double(), atol=1e-5)
    for row in (moments.mean, *moments.label_mean):
        rest = row.double() - (row.double() @ basis.T) @ basis
        assert rest.norm() < 1e-2 * row.norm()


def test_saved_and_loaded(tmp_path):
    law = some_law()
    law.save(tmp_path / "law.safetensors")
    again = NoiseDistribution.load(tmp_path / "law.safetensors")
    assert again == law
    assert hash(again) == hash(law)
    assert again != some_law(labels=False)
    (tmp_path / "law.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="does not hold a noise distribution"):
        NoiseDistribution.load(tmp_path / "law.safetensors")
    with pytest.raises(ValueError, match="does not exist"):
        NoiseDistribution.load(tmp_path / "other")


def test_what_is_refused():
    data = torch.randn(20, 12, generator=seeded(38))
    moments = Moments.fit(data)
    with pytest.raises(ValueError, match="20 noises are too few"):
        NoiseDistribution.measure(KNN(4), [data], moments)
    with pytest.raises(ValueError, match="moments with directions"):
        NoiseDistribution.measure(KNN(4), [data], Moments(torch.zeros(12), 1.0, 1))
    with pytest.raises(ValueError, match=r"shape \(12,\), got \(3, 4\)"):
        NoiseDistribution.measure(KNN(4), [data.view(20, 3, 4)], moments)
    with pytest.raises(ValueError, match="not finite; it has no moments"):
        NoiseDistribution.measure(lambda data, **_: data / 0, [data], moments)
    with pytest.raises(ValueError, match="0 or more, got -1"):
        NoiseDistribution.measure(KNN(4), [(data, torch.arange(20) - 1)], moments)
    with pytest.raises(ValueError, match="some without"):
        NoiseDistribution.measure(KNN(4), [(data, torch.arange(20)), data], moments)
    law = some_law()
    with pytest.raises(ValueError, match=r"data of shape \(12,\), got \(13,\)"):
        law.whiten(torch.zeros(2, 13))
    for labels, message in [
        (torch.tensor([0, -1]), "must be 0 to 2, as fitted, got -1"),
        (torch.tensor([0, 3]), "must be 0 to 2, as fitted, got 0 to 3"),
        (torch.zeros(2), r"whole numbers \[2\], got torch.float32"),
        (torch.zeros(3).long(), r"whole numbers \[2\], got torch.int64 \(3,\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            law.color(torch.zeros(2, 12), labels)
    calibrated = Calibrated(KNN(64), law)
    with pytest.raises(ValueError, match="the mask cuts every sample"):
        calibrated(data, cond={"label": torch.zeros(20).long()}, mask=torch.arange(12) < 6)
    with pytest.raises(ValueError, match=r'needs cond."label".; conditions given: text'):
        calibrated(data, cond={"text": data})
    with pytest.raises(ValueError, match="needs the NoiseDistribution of its coupling"):
        Calibrated(KNN(64), moments)


def test_calibrated_keeps_the_promises_of_a_coupling():
    check_coupling(Calibrated(KNN(64), some_law(labels=False)), shape=(12,))
    coupling = Calibrated(KNN(64), some_law(), label_key="kind")
    check_coupling(coupling, shape=(12,), conditions=lambda n: {"kind": torch.arange(n) % 3})
    noise = torch.randn(5, 12, generator=seeded(39))
    data = torch.randn(5, 12, generator=seeded(40))
    plain = Calibrated(KNN(1), some_law(labels=False))
    assert torch.allclose(plain.pair(data, noise), plain.distribution.whiten(noise))


def test_data_that_a_mask_cuts_get_independent_noise_and_whole_data_theirs():
    law = some_law(labels=False)
    calibrated = Calibrated(KNN(64), law)
    data = torch.randn(4000, 12, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(4000, 12).bool()
    mask[::2, 6:] = False
    noise = calibrated(data, mask=mask, generator=torch.Generator().manual_seed(1))
    cut, whole = noise[::2], noise[1::2]
    assert abs(float((cut * data[::2]).mean())) < 0.02  # tells nothing of its sample
    assert cut.var(dim=0).sub(1).abs().max() < 0.12
    assert float((whole * data[1::2]).mean()) > 0.1
    other = data.masked_fill(~mask, 100.0)
    again = calibrated(other, mask=mask, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(again[1::2], whole)
    own = torch.randn(4000, 12, generator=torch.Generator().manual_seed(2))
    paired = calibrated.pair(data, own, mask=mask, generator=torch.Generator().manual_seed(3))
    assert torch.equal(paired[::2], own[::2])
    assert not torch.equal(paired[1::2], own[1::2])
