"""The papers' measurements: against closed forms, and as sections of the report."""

import json
import math

import pytest
import torch

from helpers import generator
from immiscible_diffusion import KNN, Independent, LinearAssignment, Moments, Shuffled
from immiscible_diffusion.analysis.estimates import Mean
from immiscible_diffusion.analysis.noise_statistics import gaussian_fit
from immiscible_diffusion.couplings.noise_distribution import NoiseDistribution
from immiscible_diffusion.couplings.theory import knn_expectation
from immiscible_diffusion.couplings.wrappers import Calibrated
from immiscible_diffusion.utils.random import keyed_generator
from reproduce.papers import distance_reduction as distance_reduction_module
from reproduce.papers.cluster_map import cluster_map
from reproduce.papers.clusters import cluster_distance, points_for, uses_one_sample
from reproduce.papers.distance_reduction import (
    assignment_reduction_by_scale,
    distance_reduction,
    expected_reduction,
    scales_with_reduction,
)
from reproduce.papers.measurements import PaperMeasurements
from reproduce.papers.table import Row, Section, published_table

SMALL = {"batch_sizes": (16, 32), "count": 200, "images": 6, "points": 60, "fit_count": 2000}


@pytest.fixture(scope="module")
def data():
    random = generator(1)
    size = 0.3 + torch.rand(300, 1, 1, 1, generator=random)
    return size * torch.randn(300, 1, 6, 8, generator=random)


def near(mean, value, errors=3.0):
    return abs(mean.value - value) < errors * mean.error


class Own:
    """A user's coupling, which cannot pair noise of the caller's."""

    def __call__(self, data, *, cond=None, generator=None):
        return KNN(4)(data, generator=generator)


@pytest.mark.parametrize("k", [2, 8, 64])
def test_reduction_of_knn_is_the_closed_form(data, k):
    reduction = distance_reduction(data, KNN(k), batch_size=64, count=3000)
    assert near(reduction, expected_reduction(data, KNN(k)))
    assert reduction.error < 0.1 * reduction.value


def test_reduction_without_a_pair_method(data):
    reduction = distance_reduction(data, Own(), batch_size=64, count=6000)
    assert near(reduction, expected_reduction(data, KNN(4)))


def test_reduction_is_zero_without_pairing_and_grows_with_the_batch(data):
    assert distance_reduction(data, Independent(), count=300) == Mean(0.0, 0.0)
    sizes = [distance_reduction(data, LinearAssignment(), batch_size=size) for size in (8, 32, 256)]
    assert 0 < sizes[0].value < sizes[1].value < sizes[2].value
    assert expected_reduction(data, LinearAssignment()) is None
    assert expected_reduction(data, KNN(4, center=Moments.fit(data))) is None
    with pytest.raises(ValueError, match="from 1 to the 300 data, got 301"):
        distance_reduction(data, KNN(2), batch_size=301)


def test_scales_at_which_a_curve_has_a_value():
    def curve(scale):
        return scale / (1 + scale**2)

    assert scales_with_reduction(curve, 0.4)[0] == pytest.approx([0.5, 2])
    scales, nearest = scales_with_reduction(curve, 0.6)
    assert scales == []
    assert nearest == pytest.approx(1, rel=0.05)


def test_reduction_by_assignment_at_any_scale_is_that_of_scaled_data():
    data = torch.rand(64, 3, 4, 4, generator=generator())
    data = (data - data.mean()) / data.std()
    curve = assignment_reduction_by_scale(data, 32)
    assert assignment_reduction_by_scale(0.5 * data, 32)(2.0) == pytest.approx(curve(1.0), rel=1e-4)
    assert 0 < curve(0.1) < curve(1.0)


def test_clusters_without_pairing_are_apart_by_chance_alone(data):
    apart = cluster_distance(data, Independent(), images=40, points=100)
    chance = math.sqrt(2 * 48 / 100)
    assert near(apart.at(100), chance)
    assert near(apart.square, 0)
    assert points_for(chance, 48) == pytest.approx(100)


def test_clusters_of_knn_lie_along_their_images(data):
    """The mean noise of an image x is ``pull x / |x|``, with the pull in closed form."""
    apart = cluster_distance(data, KNN(16), images=12, points=4000)
    order = torch.randperm(len(data), generator=keyed_generator(0, "rows"))[:12]
    flat = data[order].flatten(1).double()
    length = flat.norm(dim=1)
    pull = torch.tensor([knn_expectation(16, 48, float(s) / 48**0.5).pull for s in length])
    centers = flat / length[:, None] * pull[:, None]
    expected = torch.cdist(centers, centers)
    assert (apart.squares.clamp_min(0).sqrt() - expected).abs().max() < 5 * math.sqrt(2 / 4000)
    # With chance taken out, the number of points does not matter.
    few = cluster_distance(data, KNN(16), images=12, points=300, seed=0)
    assert few.corrected.value == pytest.approx(apart.corrected.value, rel=0.05)
    assert few.at(4000).value == pytest.approx(apart.at(4000).value, rel=0.05)


def test_shuffled_noise_has_no_clusters(data):
    apart = cluster_distance(data, Shuffled(KNN(64)), images=24, points=300, batch_size=128, seed=2)
    assert near(apart.square, 0)
    paired = cluster_distance(data, KNN(64), images=24, points=300)
    assert paired.square.value > 8 * paired.square.error


def test_assignment_pairs_alike_whatever_the_scale_and_mean(data):
    options = {"images": 8, "points": 40, "batch_size": 32}
    one = cluster_distance(data.double(), LinearAssignment(), **options)
    other = cluster_distance(3 * data.double() + 2, LinearAssignment(), **options)
    torch.testing.assert_close(one.squares, other.squares)
    assert one.corrected.value > 1


def test_couplings_that_use_one_sample_at_a_time(data):
    distribution = NoiseDistribution.measure(KNN(4), [data], Moments.fit(data))
    assert uses_one_sample(KNN(4))
    assert uses_one_sample(Calibrated(KNN(4), distribution))
    assert not any(map(uses_one_sample, [LinearAssignment(), Shuffled(KNN(4)), Own()]))


def test_a_map_shows_no_clusters_where_there_are_none(data):
    points, share = cluster_map(data, Independent(), points=400, fit_points=400)
    assert points.shape == (5, 400, 2)
    assert near(share, 1 / 5, errors=4)
    _, paired = cluster_map(data, KNN(64), points=400, fit_points=400)
    assert paired.value > 1 / 5 + 8 * paired.error


@pytest.mark.parametrize(
    ("options", "message"),
    [({"images": 1}, "from 2 to"), ({"images": 300, "batch_size": 40}, "40"), ({"points": 1}, "2")],
)
def test_bad_numbers_are_refused(data, options, message):
    with pytest.raises(ValueError, match=message):
        cluster_distance(data, KNN(2), **options)


def test_verdicts():
    assert Row("", Mean(2.0, 0.1)).verdict == ""
    within = Row("", Mean(2.3, 0.1), published=2.16).verdict
    assert within == "+0.14 (+6%), within two standard errors"
    assert "outside" in Row("", Mean(2.7, 0.1), published=2.16).verdict
    assert "within" in Row("", Mean(2.7, 0.1), published=2.16, spread=0.4).verdict
    assert Row("", Mean(2.0, math.nan), published=2.5).verdict == "-0.5 (-20%)"
    assert Row("", Mean(2.0, math.nan)).to_json()["measured"] == {"value": 2.0, "error": None}


def test_tables():
    rows = [Row("plain", Mean(1.0, 0.1)), Row("known", Mean(2.0, 0.1), "%", 2.1, expected=2.0)]
    section = Section("Title", "Fig. 1", rows, "A note.", [("images/a.png", "An image")])
    text = section.to_markdown()
    assert text.startswith("## Title\n")
    assert "![An image](images/a.png)" in text
    assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {6}
    assert published_table([section]).splitlines()[2:] == [
        "| Title: known (%) | Fig. 1 | 2 ± 0.1 | 2.1 | -0.1 (-5%), within two standard errors |"
    ]


def test_all_measurements(data, tmp_path):
    couplings = {"independent": Independent(), "assignment": LinearAssignment()}
    sections = list(PaperMeasurements(data, couplings, folder=tmp_path, **SMALL).sections())
    json.dumps([section.to_json() for section in sections], allow_nan=False)
    assert [section.title for section in sections] == [
        "Distance reduction",
        "Distance between noise clusters",
        "Map of noise clusters",
        "Gaussian fit of the noise",
    ]
    # Two batch sizes at two scales; three figures each, without pairing and of two batches;
    # a share each; the fit of what changes the distribution, and of true noise.
    assert [len(section.rows) for section in sections] == [4, 9, 2, 2]
    assert (tmp_path / "images" / "clusters.png").stat().st_size > 1000
    assert all(row.published is None for section in sections for row in section.rows)
    corrected = sections[3].rows[1].measured
    assert abs(corrected.value) < 4 * corrected.error
    with pytest.raises(ValueError, match="must be of distance, deviation, clusters, map, fit"):
        list(PaperMeasurements(data, couplings).sections(["color"]))


def test_published_figures_stand_beside_data_of_their_size_and_coupling(monkeypatch):
    monkeypatch.setattr(distance_reduction_module, "SCALES", [0.5, 1.5, 4.0])
    images = torch.randn(40, 3, 32, 32, generator=generator())
    extent = {"batch_sizes": (16,), "count": 64, "images": 4, "points": 4}

    def published(coupling):
        job = PaperMeasurements(images, {"": coupling}, **extent)
        sections = job.sections(["distance", "clusters"])
        return [row.published for section in sections for row in section.rows]

    assert published(KNN(8)) == [1.58, 2.17, 2.17, None]
    assert published(KNN(4)) == [1.10, None, None, None]
    assert published(KNN(64)) == [None] * 4
    assert published(KNN(8, center=Moments.fit(images))) == [None] * 4
    assert published(LinearAssignment())[-3:] == [4.11, 4.11, None]
    assert published(Independent()) == [0.92, 0.92, None]
    [section] = PaperMeasurements(images, {}, **extent).sections(["deviation"])
    assert all(0.5 <= row.measured.value <= 4 for row in section.rows)
    assert any("DDIM" in row.label for row in section.rows)


def test_the_error_of_a_gaussian_fit():
    """Its standard deviation over fits of true Gaussian noise: D / (2 count)."""
    data = torch.zeros(1, 30)
    fits = [gaussian_fit(data, Independent(), count=1000, seed=1000 * i).raw for i in range(150)]
    assert torch.tensor(fits).std() == pytest.approx(30 / 2000, rel=0.25)
