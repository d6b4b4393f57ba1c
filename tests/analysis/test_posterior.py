"""The closed-form posterior against drawing every candidate, the textbook, and itself."""

import math

import pytest
import torch

from immiscible_diffusion import KNN, Independent, LinearAssignment, Moments
from immiscible_diffusion.analysis.noise_density import ShareDensity, density_of, has_closed_form, log_density, take
from immiscible_diffusion.analysis.posterior import OptimalDenoiser, mixing, posterior
from immiscible_diffusion.couplings import Semidiscrete, SemidiscretePlan, Shuffled
from immiscible_diffusion.couplings.gaussian_ot import GaussianOT
from immiscible_diffusion.couplings.noise_distribution import NoiseDistribution
from immiscible_diffusion.couplings.wrappers import Calibrated
from immiscible_diffusion.diffusion.paths import FlowMatchingPath, PathSample
from immiscible_diffusion.utils.batch import Batch

POINTS = torch.tensor([[1.0, 0.2], [-0.5, 1.0], [0.1, -1.2], [0.6, 0.9], [-1.5, -0.4]])
LABELS = torch.tensor([0, 0, 1, 1, 0])
LEVELS = (0.2, 0.5, 0.8, 0.95, 1.0)


def nearest_of_all(x, center, k, generator):
    """The published algorithm on ``x - center``, all k candidates drawn."""
    candidates = torch.randn(len(x), k, 2, generator=generator)
    nearest = (candidates - (x - center)[:, None]).square().sum(dim=2).argmin(dim=1)
    return candidates[torch.arange(len(x)), nearest]


def couplings():
    moments = Moments.fit([(POINTS, LABELS)], directions=2)
    label_means = moments.label_mean[LABELS]
    return {
        "independent": (Independent(), lambda i, g: torch.randn(len(i), 2, generator=g)),
        "knn": (KNN(4), lambda i, g: nearest_of_all(POINTS[i], 0, 4, g)),
        "knn 16 centerd": (KNN(16, center=moments), lambda i, g: nearest_of_all(POINTS[i], moments.mean, 16, g)),
        "knn by label": (
            KNN(4, center="label", moments=moments),
            lambda i, g: nearest_of_all(POINTS[i], label_means[i], 4, g),
        ),
        "transport": (GaussianOT(moments, eps=2.0), None),
        "calibrated": (calibrated(moments, None), None),
        "calibrated by label": (calibrated(moments, LABELS), None),
    }


def calibrated(moments, labels):
    inner = KNN(8)
    batch = POINTS.repeat(2000, 1)
    batches = [batch if labels is None else (batch, labels.repeat(2000))]
    generator = torch.Generator().manual_seed(3)
    return Calibrated(inner, NoiseDistribution.measure(inner, batches, moments, generator=generator))


@pytest.mark.parametrize("name", list(couplings()))
def test_posterior_is_what_drawing_gives(name):
    """Among points near a probe, each sample as often as the closed form says at those points."""
    coupling, drawing = couplings()[name]
    generator = torch.Generator().manual_seed(7)
    row = torch.randint(5, (1_000_000,), generator=generator)
    if drawing is None:
        noise = coupling(POINTS[row], cond={"label": LABELS[row]}, generator=generator)
    else:
        noise = drawing(row, generator)
    images, density = Batch(POINTS, {"label": LABELS}), density_of(coupling)
    for t in LEVELS:
        x_t = (1 - t) * POINTS[row] + t * noise
        for probe in x_t[:2]:
            near = ((x_t - probe).abs().amax(dim=1) < 0.2).nonzero()[:5000, 0]
            found = posterior(density, images, x_t[near], 1 - t, t)
            p = found.log_probability.exp()
            drawn = torch.nn.functional.one_hot(row[near], 5)
            error = (p * (1 - p)).sum(dim=0).sqrt()
            assert ((drawn - p).sum(dim=0).abs() <= 3 * error + 1e-3).all(), t


def test_textbook_without_pairing():
    x_t = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)).double()
    for t in LEVELS:
        distance = (x_t[:, None] - (1 - t) * POINTS.double()).square().sum(dim=2)
        p = torch.softmax(-distance / (2 * t * t), dim=1)
        for coupling in (Independent(), KNN(1), Shuffled(KNN(1))):
            found = posterior(density_of(coupling), Batch(POINTS), x_t, 1 - t, t)
            torch.testing.assert_close(found.log_probability.exp(), p)
            mean = p @ POINTS.double()
            torch.testing.assert_close(found.mean, mean)
            spread = (p @ POINTS.double().square() - mean.square()).mean(dim=1)
            torch.testing.assert_close(found.variance, spread)


@pytest.mark.parametrize("name", list(couplings()))
def test_densities_integrate_to_one(name):
    coupling, _ = couplings()[name]
    axis = torch.linspace(-7, 7, 141)
    grid = torch.cartesian_prod(axis, axis)
    images = Batch(POINTS, {"label": LABELS})
    density = log_density(density_of(coupling), grid, images) - math.log(2 * math.pi)
    total = density.exp().sum(dim=0) * float(axis[1] - axis[0]) ** 2
    torch.testing.assert_close(total, torch.ones(5).double(), atol=1e-4, rtol=0)


def test_a_mask_leaves_the_rest_independent():
    data = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1, 1, 1, 0, 0]] * 3 + [[1, 0, 1, 0, 1]] * 3).bool()
    points = torch.randn(4, 5).double()
    found = log_density(density_of(KNN(8)), points, Batch(data, mask=mask), 0.3)
    for i in range(6):
        inside = mask[i]
        own = Batch(data[i : i + 1, inside])
        alone = log_density(density_of(KNN(8)), points[:, inside], own, 0.3)[:, 0]
        expected = alone - points[:, ~inside].square().sum(dim=1) / 2
        torch.testing.assert_close(found[:, i], expected)
    broken = data.masked_fill(~mask, math.nan)
    again = log_density(density_of(KNN(8)), points, Batch(broken, mask=mask), 0.3)
    torch.testing.assert_close(found, again)
    assert take(Batch(broken, mask=mask), slice(0, 2)).data.isfinite().all()


def test_a_coupling_of_ones_own_states_its_density():
    class Mine:
        def __call__(self, data, *, cond=None, generator=None):
            return data + torch.randn(data.shape, generator=generator)

        def log_density(self, noise, data, *, cond=None):
            square = (noise - data).flatten(1).square().sum(dim=1)
            return -square / 2 - data[0].numel() / 2 * math.log(2 * math.pi)

    points = torch.randn(3, 2).double()
    found = log_density(density_of(Mine()), points, Batch(POINTS), 0.5)
    expected = -(points[:, None] - 1.5 * POINTS).square().sum(dim=2) / 2
    torch.testing.assert_close(found, expected.double(), atol=1e-6, rtol=1e-6)


def test_no_closed_form():
    for coupling in (LinearAssignment(), Shuffled(KNN(4))):
        with pytest.raises(ValueError, match="estimate it from pairs"):
            density_of(coupling)


def test_parts_and_blocks_do_not_matter(monkeypatch):
    from immiscible_diffusion.analysis import noise_density as density

    generator = torch.Generator().manual_seed(2)
    images, x_t = Batch(torch.randn(300, 20, generator=generator)), torch.randn(9, 20)
    whole = posterior(density_of(KNN(8)), images, x_t, 0.3, 0.7)
    monkeypatch.setattr(density, "IMAGE_ELEMENTS", 900)
    parts = posterior(density_of(KNN(8)), images, x_t, 0.3, 0.7)
    for name in ("log_probability", "mean", "variance"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))


def test_mixing_asks_the_path():
    mix = mixing(FlowMatchingPath(), 0.25)
    assert (mix.alpha, mix.sigma) == (0.75, 0.25)
    assert mix.slope == pytest.approx(-4)  # noise - data = x_t / t - data / t
    assert mix.own == pytest.approx(4)
    with pytest.raises(ValueError, match="no noise"):
        mixing(FlowMatchingPath(), 0.0)

    class Bent(FlowMatchingPath):
        def sample(self, data, noise, t):
            return PathSample(data, t, data.square())

    with pytest.raises(ValueError, match="not linear"):
        mixing(Bent(), 0.5)


@pytest.mark.parametrize("coupling", [Independent(), KNN(4), KNN(64)])
def test_the_optimal_denoiser_is_the_mean(coupling):
    """At t = 1 without pairing it is the mean of the data; near the data it is the sample."""
    denoiser = OptimalDenoiser.of(POINTS, coupling, FlowMatchingPath())
    noise = coupling(POINTS, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(denoiser(POINTS + 1e-3 * noise, 1e-3), POINTS.double(), atol=1e-2, rtol=0)
    target = denoiser.target(0.5 * POINTS + 0.5 * noise, 0.5)
    expected = (0.5 * POINTS + 0.5 * noise - denoiser(0.5 * POINTS + 0.5 * noise, 0.5)) / 0.5
    torch.testing.assert_close(target, expected.double(), atol=1e-6, rtol=1e-6)
    if isinstance(coupling, Independent):
        mean = POINTS.double().mean(dim=0).expand(5, 2)
        torch.testing.assert_close(denoiser(noise, 1.0), mean)


@pytest.mark.parametrize("labels", [None, torch.tensor([0, 1, 0, 1, 0, 1, 0])])
def test_a_share_of_the_noise_is_a_density(labels):
    """Its integral is 1 for every sample, and over the samples (of a label) it is N(0, I)."""
    generator = torch.Generator().manual_seed(3)
    data = torch.randn(7, 2, generator=generator)
    data[5 if labels is not None else 6] = data[3]  # equal ones have their share in common
    batches = data if labels is None else [(data, labels)]
    plan = SemidiscretePlan.fit(batches, Moments.fit(data), tolerance=1e-4)
    density = ShareDensity(Semidiscrete(plan, cond_key=None if labels is None else "label"), moved=0.0)
    cond = None if labels is None else {"label": labels}
    line = torch.linspace(-6, 6, 481).double()
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=-1).view(-1, 2)
    found = (log_density(density, grid, Batch(data, cond)) - math.log(2 * math.pi)).exp()
    assert (found.sum(dim=0) * (line[1] - line[0]) ** 2).tolist() == pytest.approx([1.0] * 7, abs=0.03)
    normal = (-grid.square().sum(dim=1) / 2).exp() / (2 * math.pi)
    for rows in [torch.ones(7, dtype=torch.bool)] if labels is None else [labels == 0, labels == 1]:
        assert torch.allclose(found[:, rows].mean(dim=1), normal, atol=1e-6)


def test_of_a_table_the_noise_that_was_handed_on_is_counted(monkeypatch):
    """The posterior of noisy points is as unsure as it is wrong: negative log-likelihood and entropy agree."""
    made, table = [], SemidiscretePlan.table
    monkeypatch.setattr(SemidiscretePlan, "table", lambda *options: made.append(options) or table(*options))
    data = torch.randn(100, 3, generator=torch.Generator().manual_seed(4))
    coupling = Semidiscrete(SemidiscretePlan.fit(data, Moments.fit(data)), noises=64)
    density = ShareDensity.of(coupling)
    assert 0 < density.moved < 0.2
    assert has_closed_form(coupling)
    assert len(made) == 1
    index = torch.arange(100).repeat(20)
    noise = coupling(data[index], cond={"index": index}, generator=torch.Generator().manual_seed(5))
    logits = log_density(density, noise, Batch(data))
    logits += noise.double().square().sum(dim=1, keepdim=True) / 2
    posterior = logits.log_softmax(dim=1)
    wrong = -posterior.gather(1, index[:, None])[:, 0]
    unsure = -(posterior.exp() * posterior).sum(dim=1)
    assert float(wrong.mean()) == pytest.approx(float(unsure.mean()), rel=0.15)
    assert float(unsure.mean()) < 0.3 * math.log(100)
