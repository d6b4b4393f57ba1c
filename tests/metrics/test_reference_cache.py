import logging
from dataclasses import dataclass, replace

import pytest
import torch

from immiscible_diffusion.metrics import FeatureExtractor, FeatureStatistics, Floor, Reference, make_reference, measure
from immiscible_diffusion.metrics import evaluate as quality
from immiscible_diffusion.metrics.features.base import PixelFeatures
from immiscible_diffusion.metrics.reference_cache import StatisticsFile

pytest.importorskip("safetensors")
PIXELS = PixelFeatures((1, 8, 8))
ABOUT = {"data": "abc", "extractor": "pixels", "chosen": "all"}


@dataclass
class Counting(FeatureExtractor):
    """Pixels that count how many data they saw."""

    seen: int = 0
    name, dim, identity = "counting", 64, "counting v1"

    def __call__(self, data):
        self.seen += len(data)
        return data.flatten(1)


def statistics(generator, count=30, dim=4):
    return FeatureStatistics.of(torch.randn(count, dim, generator=generator))


def assert_same(one, other):
    assert one.count == other.count
    assert torch.equal(one.mean, other.mean)
    assert torch.equal(one.scatter, other.scatter)


@pytest.mark.parametrize("floor", [None, Floor(1.5, 1.0, 2.0, 15)])
def test_statistics_come_back_bit_for_bit(generator, tmp_path, floor):
    written, file = statistics(generator), StatisticsFile.of(ABOUT, tmp_path)
    file.write(written, floor)
    read, known = file.read()
    assert_same(read, written)
    assert known == floor
    assert list(tmp_path.iterdir()) == [file.path]


@pytest.mark.parametrize("field", sorted(ABOUT))
def test_statistics_of_something_else_are_refused(generator, tmp_path, caplog, field):
    StatisticsFile(tmp_path / "s", ABOUT).write(statistics(generator))
    assert StatisticsFile(tmp_path / "s", {**ABOUT, field: "other"}).read() is None
    assert f"{field}: '{ABOUT[field]}', not 'other'" in caplog.text


def test_damaged_statistics_are_refused(generator, tmp_path, caplog):
    file = StatisticsFile(tmp_path / "s", ABOUT)
    file.write(statistics(generator))
    whole = file.path.read_bytes()
    for damaged in (whole[:-8], b"", b"not safetensors"):
        file.path.write_bytes(damaged)
        assert file.read() is None
    assert caplog.text.count("computed again") == 3
    broken = statistics(generator)
    broken.scatter[0, 0] = torch.nan
    file.write(broken)
    assert file.read() is None
    assert "expected a finite scatter" in caplog.text


def test_the_second_reference_sees_no_data_until_asked(digits, tmp_path):
    first, second = Counting(), Counting()
    written = make_reference(digits, first, cache=tmp_path)
    read = make_reference(digits, second, cache=tmp_path)
    assert (first.seen, second.seen) == (len(digits), 0)
    assert_same(read.statistics, written.statistics)
    samples = digits.images[:500].flatten(1)
    one, two = (measure(samples, r, metrics=["frechet"]) for r in (written, read))
    assert one == two
    assert second.seen == 0
    assert torch.equal(read.real, written.real)
    assert second.seen == len(digits)


def test_the_floor_is_kept_with_them(digits, tmp_path, monkeypatch):
    floor = make_reference(digits, Counting(), cache=tmp_path).floor
    again = Counting()
    assert make_reference(digits, again, cache=tmp_path).floor == floor
    assert again.seen == 0
    assert len(list(tmp_path.iterdir())) == 1


def test_data_extractor_and_choice_have_files_of_their_own(digits, tmp_path):
    other = Counting()
    other.identity = "counting v2"
    for dataset, extractor, options in [
        (digits, Counting(), {}),
        (replace(digits, digest="other digits"), Counting(), {}),
        (digits, other, {}),
        (digits, Counting(), {"limit": 100}),
        (digits, Counting(), {"limit": 100, "seed": 1}),
        (digits, Counting(), {"limit": 101}),
    ]:
        make_reference(dataset, extractor, cache=tmp_path, **options)
        assert extractor.seen == min(options.get("limit", 1797), 1797)
    assert len(list(tmp_path.iterdir())) == 6


def test_a_file_under_a_wrong_name_is_said_and_replaced(digits, tmp_path, caplog):
    make_reference(digits, Counting(), cache=tmp_path)
    [file] = tmp_path.iterdir()
    StatisticsFile(file, ABOUT).write(FeatureStatistics.of(torch.randn(200, 64)))
    again = Counting()
    with caplog.at_level(logging.WARNING):
        assert make_reference(digits, again, cache=tmp_path).statistics.count == 1797
    assert "of other features" in caplog.text
    assert again.seen == 1797
    assert make_reference(digits, Counting(), cache=tmp_path).statistics.count == 1797


def test_what_cannot_be_told_apart_is_not_cached(digits, tmp_path):
    make_reference(replace(digits, digest=None), Counting(), cache=tmp_path)
    nameless = Counting()
    nameless.identity = None
    make_reference(digits, nameless, cache=tmp_path)
    make_reference(digits, Counting())
    assert not list(tmp_path.iterdir())


def test_an_unwritable_cache_costs_only_the_next_computation(digits, tmp_path, caplog):
    (tmp_path / "file").touch()
    reference = make_reference(digits, PIXELS, cache=tmp_path / "file" / "folder")
    assert reference.statistics.count == 1797
    assert "could not cache" in caplog.text


def test_large_sets_are_streamed_not_held(digits, monkeypatch):
    class Columns(Counting):
        dim = 8

        def __call__(self, data):
            return super().__call__(data)[:, 24:32]

    held = make_reference(digits, Columns())
    monkeypatch.setattr(quality, "_MAX_HELD", 0)
    counting = Columns()
    streamed = make_reference(digits, counting)
    torch.testing.assert_close(streamed.statistics.scatter, held.statistics.scatter)
    for name in ("mean", "low", "high", "size"):
        assert getattr(streamed.floor, name) == pytest.approx(getattr(held.floor, name), rel=1e-9)
    samples = FeatureStatistics.of(torch.randn(500, 8))
    frechet = [measure(samples, one, metrics=["frechet"]).frechet for one in (streamed, held)]
    assert frechet[0] == pytest.approx(frechet[1])
    assert counting.seen == 1797  # once, the floor included
    assert torch.equal(streamed.real, held.real)


def test_statistics_are_enough_for_the_frechet_distance_alone(generator):
    real, samples = torch.randn(2, 300, 4, generator=generator)
    reference = Reference.of(real, "gaussian (4-d)")
    whole = measure(samples, reference, metrics=["frechet"])
    assert measure(FeatureStatistics.of(samples), reference, metrics=["frechet"]) == whole
    with pytest.raises(ValueError, match="kid need features"):
        measure(FeatureStatistics.of(samples), reference, metrics=["frechet", "kid"])
