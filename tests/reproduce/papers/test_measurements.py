"""The papers' measurements: against closed forms, and in the form that pages show."""

import json
import math
import re

import pytest
import torch

from immiscible_diffusion import KNN, Independent, LinearAssignment, Moments, Shuffled
from immiscible_diffusion.analysis.estimates import Mean
from immiscible_diffusion.analysis.noise_statistics import gaussian_fit
from immiscible_diffusion.couplings.calibrated import Calibrated
from immiscible_diffusion.couplings.noise_distribution import NoiseDistribution
from immiscible_diffusion.couplings.theory import knn_expectation
from reproduce.papers.cluster_map import cluster_map
from reproduce.papers.clusters import cluster_distance, looks_at_one, points_for
from reproduce.papers.distance_reduction import distance_reduction, expected_reduction
from reproduce.papers.measurements import Extent, papers_measurements
from reproduce.papers.table import Row

SMALL = Extent(batch_sizes=(16, 32), count=200, images=6, points=60)


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(1)
    size = 0.3 + torch.rand(300, 1, 1, 1, generator=generator)
    return size * torch.randn(300, 1, 6, 8, generator=generator)


def near(mean, value, errors=3.0):
    return abs(mean.value - value) < errors * mean.error


class Own:
    """A user's coupling, which cannot pair noise of the caller's."""

    def __call__(self, data, *, cond=None, generator=None):
        return KNN(4)(data, generator=generator)


@pytest.mark.parametrize("k", [2, 8, 64])
def test_reduction_of_knn_is_the_closed_form(data, k):
    found = distance_reduction(data, KNN(k), batch_size=64, count=3000)
    assert near(found, expected_reduction(data, KNN(k)))
    assert found.error < 0.1 * found.value


def test_reduction_without_a_pair_method(data):
    found = distance_reduction(data, Own(), batch_size=64, count=6000)
    assert near(found, expected_reduction(data, KNN(4)))


def test_reduction_is_zero_without_pairing_and_grows_with_the_batch(data):
    assert distance_reduction(data, Independent(), count=300) == Mean(0.0, 0.0)
    sizes = [distance_reduction(data, LinearAssignment(), batch_size=size) for size in (8, 32, 256)]
    assert 0 < sizes[0].value < sizes[1].value < sizes[2].value
    assert expected_reduction(data, LinearAssignment()) is None
    assert expected_reduction(data, KNN(4, center=Moments.fit(data))) is None
    with pytest.raises(ValueError, match="from 1 to the 300 data, got 301"):
        distance_reduction(data, KNN(2), batch_size=301)


def test_clusters_without_pairing_are_apart_by_chance_alone(data):
    found = cluster_distance(data, Independent(), images=40, points=100)
    assert near(found.distance, math.sqrt(2 * 48 / 100))
    assert found.by_chance == pytest.approx(math.sqrt(2 * 48 / 100), rel=0.02)
    assert near(found.square, 0)
    assert points_for(found.by_chance, 48) == pytest.approx(100, rel=0.04)


def test_clusters_of_knn_lie_along_their_images(data):
    """The mean noise of an image x is ``pull x / |x|``, with the pull in closed form."""
    found = cluster_distance(data, KNN(16), images=12, points=4000)
    order = torch.randperm(len(data), generator=_rows_generator())[:12]
    flat = data[order].flatten(1).double()
    length = flat.norm(dim=1)
    pull = torch.tensor([knn_expectation(16, 48, float(s) / 48**0.5).pull for s in length])
    centers = flat / length[:, None] * pull[:, None]
    expected = torch.cdist(centers, centers)
    measured = found.squares.clamp_min(0).sqrt()
    assert (measured - expected).abs().max() < 5 * math.sqrt(2 / 4000)
    # With chance taken out, the number of points does not matter.
    few = cluster_distance(data, KNN(16), images=12, points=300, seed=0)
    assert few.corrected.value == pytest.approx(found.corrected.value, rel=0.05)
    assert few.at(4000).value == pytest.approx(found.distance.value, rel=0.05)


def _rows_generator():
    from immiscible_diffusion.utils.random import keyed_generator

    return keyed_generator(0, "rows")


def test_shuffled_noise_has_no_clusters(data):
    found = cluster_distance(data, Shuffled(KNN(64)), images=24, points=300, batch_size=128, seed=2)
    assert near(found.square, 0)
    paired = cluster_distance(data, KNN(64), images=24, points=300)
    assert paired.square.value > 8 * paired.square.error


def test_assignment_pairs_alike_whatever_the_scale_and_mean(data):
    options = {"images": 8, "points": 40, "batch_size": 32}
    one = cluster_distance(data.double(), LinearAssignment(), **options)
    other = cluster_distance(3 * data.double() + 2, LinearAssignment(), **options)
    torch.testing.assert_close(one.squares, other.squares)
    assert one.corrected.value > 1


def test_who_looks_at_one_datum(data):
    law = NoiseDistribution.measure(KNN(4), [data], Moments.fit(data))
    assert looks_at_one(KNN(4))
    assert looks_at_one(Calibrated(KNN(4), law))
    assert not any(map(looks_at_one, [LinearAssignment(), Shuffled(KNN(4)), Own()]))


def test_a_map_shows_no_clusters_where_there_are_none(data):
    none = cluster_map(data, Independent(), points=400, fit_points=400)
    assert none.points.shape == (5, 400, 2)
    assert near(none.own, none.chance, errors=4)
    some = cluster_map(data, KNN(64), points=400, fit_points=400)
    assert some.own.value > some.chance + 8 * some.own.error


@pytest.mark.parametrize(
    ("bad", "said"),
    [({"images": 1}, "from 2 to"), ({"images": 300, "batch_size": 40}, "40"), ({"points": 1}, "2")],
)
def test_bad_numbers_are_refused(data, bad, said):
    with pytest.raises(ValueError, match=said):
        cluster_distance(data, KNN(2), **bad)


def test_how_close():
    assert Row("", Mean(2.0, 0.1)).close == ""
    assert (
        Row("", Mean(2.3, 0.1), published=2.16).close == "+0.14 (+6%), within two standard errors"
    )
    assert "outside" in Row("", Mean(2.7, 0.1), published=2.16).close
    assert "within" in Row("", Mean(2.7, 0.1), published=2.16, spread=0.4).close
    assert Row("", Mean(2.0, math.nan), published=2.5).close == "-0.5 (-20%)"
    record = Row("", Mean(2.0, math.nan), expected=math.nan).to_json()
    assert record["measured"] == {"value": 2.0, "error": None}
    assert record["expected"] is None


def test_all_measurements_in_the_form_of_pages(data, tmp_path):
    seen = []
    found = papers_measurements(
        data,
        LinearAssignment(),
        name="assignment",
        extent=SMALL,
        folder=tmp_path,
        progress=lambda *part: seen.append(part),
    )
    json.dumps(found, allow_nan=False)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert all("arXiv" in section["stands_for"] for section in found)
    assert [len(section["rows"]) for section in found] == [4, 4, 1]
    picture = found[2]["pictures"][0]["file"]
    assert re.fullmatch(r"pictures/clusters_assignment-\w{6}\.png", picture)
    assert (tmp_path / picture).stat().st_size > 1000
    assert all(row["published"] is None for section in found for row in section["rows"])
    assert "not shown beside those of 48" in found[0]["note"]


def test_published_figures_stand_beside_data_of_their_size_and_coupling():
    images = torch.randn(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    extent = Extent(batch_sizes=(16,), count=64, images=4, points=4)

    def published(coupling):
        sections = papers_measurements(
            images, coupling, which=["distance", "clusters"], extent=extent
        )
        return [row["published"] for section in sections for row in section["rows"]]

    assert published(KNN(8)) == [1.58, 2.17, None, None, None]
    assert published(KNN(4)) == [1.10, None, None, None, None]
    assert published(KNN(64)) == [None] * 5
    assert published(KNN(8, center=Moments.fit(images))) == [None] * 5
    assert published(LinearAssignment())[-4:] == [4.11, None, None, None]
    assert published(Independent()) == [0.92, None, None, None]


def test_the_error_of_a_gaussian_fit():
    """Its standard deviation over fits of true Gaussian noise: D / (2 count)."""
    data = torch.zeros(1, 30)
    fits = [gaussian_fit(data, Independent(), count=1000, seed=1000 * i).raw for i in range(150)]
    assert torch.tensor(fits).std() == pytest.approx(30 / 2000, rel=0.25)


def test_the_gaussian_fit_is_on_request(data):
    few = data[:, :, :2, :2].contiguous()
    titles = [s["title"] for s in papers_measurements(few, Independent(), extent=SMALL)]
    assert not any("fit" in title for title in titles)
    (section,) = papers_measurements(few, Independent(), which=["gaussian_fit"])
    corrected = section["rows"][1]["measured"]
    assert abs(corrected["value"]) < 4 * corrected["error"]
    with pytest.raises(ValueError, match="of distance, clusters, map, gaussian_fit, got color"):
        papers_measurements(data, KNN(2), which=["color"])
