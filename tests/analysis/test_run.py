import json
import math
from dataclasses import dataclass, field, replace

import pytest
import torch

from immiscible_diffusion.analysis import cache
from immiscible_diffusion.analysis import run as analysis_run
from immiscible_diffusion.analysis.config import AnalysisConfig
from immiscible_diffusion.analysis.miscibility import miscibility
from immiscible_diffusion.analysis.noise_density import KNNDensity, density_of, log_density
from immiscible_diffusion.analysis.noncentral_chi2 import log_survival
from immiscible_diffusion.analysis.run import analyze
from immiscible_diffusion.couplings import KNN, Calibrated, LinearAssignment, NoiseDistribution
from immiscible_diffusion.couplings.moments import Moments
from immiscible_diffusion.diffusion.paths import VPPath
from immiscible_diffusion.reporting.analysis.records import read_analysis
from immiscible_diffusion.reporting.analysis.summary import summary_lines
from immiscible_diffusion.utils.atomic_files import read_record, write_record
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.serialization import to_dict

GENERATOR = torch.Generator().manual_seed(0)
LABEL = torch.arange(60) % 3
DATA = torch.randn(60, 1, 3, 3, generator=GENERATOR) * 0.3 + LABEL.view(-1, 1, 1, 1) * 0.2
SMALL = AnalysisConfig(levels=(0.5, 0.9), probes=20, pairs=40, thumbnails=1)
COUPLINGS = ["independent", "knn:k=4"]


@dataclass(frozen=True)
class Mine:
    """KNN under another name, with its density."""

    k: int = 4

    def __call__(self, data, *, cond=None, generator=None):
        return KNN(self.k)(data, generator=generator)

    def log_density(self, noise, data, *, cond=None):
        noise, data = noise.flatten(1).double(), data.flatten(1).double()
        dim = noise.shape[1]
        normal = -noise.square().sum(dim=1) / 2 - dim / 2 * math.log(2 * math.pi)
        distance, length = (noise - data).square().sum(dim=1), data.square().sum(dim=1)
        survival = log_survival(distance[None], torch.tensor(float(dim)), length)[0]
        return math.log(self.k) + normal + (self.k - 1) * survival


@dataclass(frozen=True)
class Shifted:
    """Noise shifted by the mean of a table, which is too long to be printed whole."""

    table: torch.Tensor = field(default_factory=lambda: torch.zeros(2000))

    def __call__(self, data, *, cond=None, generator=None):
        return torch.randn(data.shape, generator=generator) + self.table.mean()

    def log_density(self, noise, data, *, cond=None):
        square = (noise - self.table.mean()).flatten(1).square().sum(dim=1)
        return -square / 2 - noise[0].numel() / 2 * math.log(2 * math.pi)


class Wrong:
    def __call__(self, data, *, cond=None, generator=None):
        return data[:, :, :1]


def lasting(record):
    """Without what may differ from run to run."""
    couplings = tuple(replace(one, seconds=0.0) for one in record.couplings)
    return replace(record, date="", couplings=couplings)


def test_the_values_are_those_of_miscibility():
    record = analyze(DATA, COUPLINGS, cond={"label": LABEL}, config=SMALL)
    entry = record.couplings[1]
    options = {"levels": SMALL.levels, "probes": SMALL.probes, "cond": {"label": LABEL}}
    assert entry.miscibility == miscibility(DATA, KNN(4), **options)
    assert entry.conditional == (miscibility(DATA, KNN(4), labels=LABEL, **options),)
    assert entry.conditional[0].effective_count.value == 20
    assert set(entry.noise.per_label) == {"0", "1", "2"}
    assert (entry.k, record.couplings[0].k) == (4, None)
    assert entry.spent == pytest.approx(math.log(4) - 1 + 1 / 4)
    assert record.data.conditioned_on == ("label",)
    assert "log 20 = 3.00 nats" in summary_lines(record)[0]


def test_conditions_of_couplings_need_not_be_those_of_the_model():
    record = analyze(DATA, COUPLINGS, cond={"label": LABEL}, conditioned_on=(), config=SMALL)
    assert record.couplings[1].conditional == ()
    assert set(record.couplings[1].noise.per_label) == {"0", "1", "2"}


def test_a_continuous_condition_comes_at_three_bandwidths():
    obs = torch.randn(60, 2, generator=GENERATOR)
    record = analyze(DATA, ["knn:k=4"], cond={"obs": obs}, config=SMALL)
    counts = [one.effective_count.value for one in record.couplings[0].conditional]
    assert counts[1] < counts[0] < counts[2] < 60
    assert "at the other bandwidths" in summary_lines(record)[0]


def test_an_interrupted_analysis_resumes_to_the_same_result(tmp_path, monkeypatch):
    whole = analyze(DATA, COUPLINGS, config=SMALL, folder=tmp_path / "whole")
    folder, calls = tmp_path / "interrupted", []
    measure = analysis_run.measure_noise

    def interrupted(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(*arguments, **options)

    monkeypatch.setattr(analysis_run, "measure_noise", interrupted)
    with pytest.raises(KeyboardInterrupt):
        analyze(DATA, COUPLINGS, config=SMALL, folder=folder)
    assert not (folder / "analysis.json").exists()
    assert len(list((folder / "parts").iterdir())) == 4
    again = analyze(DATA, COUPLINGS, config=SMALL, folder=folder)
    assert len(calls) == 3
    assert lasting(again) == lasting(whole)
    assert to_dict(read_analysis(folder / "analysis.json")) == to_dict(again)
    files = [file for c in again.couplings for one in c.thumbnails for file in one.files]
    assert len(files) == 2 * (1 + 2 * 2)
    for name in files:
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_kept_parts_need_no_estimate_of_the_density(tmp_path, monkeypatch):
    options = {"config": SMALL, "folder": tmp_path}
    first = analyze(DATA, ["assignment"], **options)
    monkeypatch.setattr(analysis_run, "density_for", None)
    assert lasting(analyze(DATA, ["assignment"], **options)) == lasting(first)


def test_couplings_and_parts_may_be_added(tmp_path):
    first = analyze(DATA, COUPLINGS, config=SMALL, folder=tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}
    more = replace(SMALL, gaussian_fit=True)
    added = analyze(DATA, ["knn:k=8,center=mean"], config=more, folder=tmp_path)
    assert [one.name for one in added.couplings] == [*COUPLINGS, "knn:k=8,center=mean"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert added.couplings[1].miscibility == first.couplings[1].miscibility
    assert all(one.gaussian_fit for one in added.couplings)


def shifted(by):
    table = torch.zeros(2000)
    table[1000] = 2000 * by
    return Shifted(table)


def test_objects_that_print_alike_are_told_apart(tmp_path):
    one, other = shifted(0.0), shifted(1.0)
    assert str(one) == str(other)
    first = analyze(DATA, [one], config=SMALL, folder=tmp_path).couplings[0]
    with pytest.warns(UserWarning, match="measured again"):
        again = analyze(DATA, [other], config=SMALL, folder=tmp_path).couplings[0]
    fresh = analyze(DATA, [other], config=SMALL).couplings[0]
    assert again.noise == fresh.noise != first.noise
    with pytest.raises(ValueError, match="two different couplings print as Shifted"):
        analyze(DATA, [one, other], config=SMALL)
    assert len(analyze(DATA, [one, shifted(0.0)], config=SMALL).couplings) == 1


@dataclass(frozen=True)
class Terse(KNN):
    """Prints the same whatever its moments."""

    def __repr__(self):
        return "Terse()"


@pytest.mark.parametrize("kind", [KNN, Terse])
def test_parts_of_a_knn_object_are_keyed_with_its_moments(kind, tmp_path):
    near, far = (kind(4, center="mean", moments=Moments.fit(DATA + by)) for by in (0, 3))
    fresh = analyze(DATA, [far], config=SMALL).couplings[0]
    first = analyze(DATA, [near], config=SMALL, folder=tmp_path).couplings[0]
    options = {"config": SMALL, "folder": tmp_path}
    if kind is Terse:
        with pytest.warns(UserWarning, match="measured again"):
            second = analyze(DATA, [far], **options)
    else:
        second = analyze(DATA, [far], **options)
    assert second.couplings[0].noise == fresh.noise != first.noise


def test_couplings_of_earlier_calls_given_as_objects_stay(tmp_path):
    first = analyze(DATA, [KNN(4)], config=SMALL, folder=tmp_path).couplings
    second = analyze(DATA, [KNN(8)], config=SMALL, folder=tmp_path).couplings
    assert [one.name for one in second] == ["KNN(k=8)", "KNN(k=4)"]
    assert second[1] == first[0]
    third = analyze(DATA, ["independent"], config=SMALL, folder=tmp_path).couplings
    assert [one.name for one in third] == ["independent", "KNN(k=8)", "KNN(k=4)"]
    written = read_record(tmp_path / "analysis.json")
    written["versions"]["immiscible-diffusion"] = "0.0.0"
    write_record(tmp_path / "analysis.json", written)
    with pytest.warns(UserWarning, match=r"another version: KNN\(k=8\), KNN\(k=4\)"):
        left = analyze(DATA, ["independent"], config=SMALL, folder=tmp_path).couplings
    assert [one.name for one in left] == ["independent"]


@pytest.mark.parametrize(("name", "value"), [("MEASURES", 99), ("SCHEMA", 99), ("version", lambda name: "99.0")])
def test_parts_of_another_release_are_measured_again(name, value, tmp_path, monkeypatch):
    analyze(DATA, COUPLINGS[1:], config=SMALL, folder=tmp_path)
    before = {path: path.read_text() for path in (tmp_path / "parts").iterdir()}
    monkeypatch.setattr(cache, name, value)
    with pytest.warns(UserWarning, match="another version"):
        analyze(DATA, COUPLINGS[1:], config=SMALL, folder=tmp_path)
    assert all(path.read_text() != text for path, text in before.items())


def test_analysis_json_of_another_schema_is_refused_in_one_line(tmp_path):
    analyze(DATA, [KNN(4)], config=SMALL, folder=tmp_path)
    path = tmp_path / "analysis.json"
    path.write_text(json.dumps({"format": 1, "couplings": []}))
    with pytest.raises(ValueError, match="has schema None, of another release") as error:
        read_analysis(path)
    assert "\n" not in str(error.value)
    with pytest.warns(UserWarning, match="left out: .* of another release"):
        analyze(DATA, ["independent"], config=SMALL, folder=tmp_path)


def test_an_estimate_that_failed_gives_no_figure(tmp_path, monkeypatch):
    class WrongDensity(KNNDensity):
        estimate = "estimated badly"

    options = {"config": SMALL, "cond": {"label": LABEL}}
    monkeypatch.setattr(analysis_run, "density_for", lambda *_, **__: WrongDensity(KNN(100)))
    record = analyze(DATA, [LinearAssignment()], folder=tmp_path, **options)
    [entry] = record.couplings
    assert entry.failed
    assert entry.noise.kl == (0, 0)  # by construction
    assert not entry.noise.information.is_known
    for mixed in (entry.miscibility, *entry.conditional):
        assert not any(level.effective.is_known for level in mixed.levels)
    assert entry.thumbnails == ()
    assert any("could not be estimated" in line for line in summary_lines(record))
    assert read_analysis(tmp_path / "analysis.json").couplings[0].failed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_data_of_half_precision(dtype):
    rough = analyze(DATA.to(dtype), COUPLINGS, config=SMALL).couplings[1].miscibility
    exact = analyze(DATA, COUPLINGS, config=SMALL).couplings[1].miscibility
    for ours, theirs in zip(rough.levels, exact.levels, strict=True):
        value, error = theirs.effective
        assert abs(ours.effective.value - value) < 6 * error


def test_other_data_or_settings_are_refused(tmp_path):
    analyze(DATA, COUPLINGS, config=SMALL, folder=tmp_path, name="one")
    with pytest.raises(ValueError, match=r"other data than the one there.*another folder"):
        analyze(DATA + 1, COUPLINGS, config=SMALL, folder=tmp_path)
    with pytest.raises(ValueError, match="other data"):
        analyze(DATA, COUPLINGS, cond={"label": LABEL}, config=SMALL, folder=tmp_path)
    with pytest.raises(ValueError, match="probes: 20 -> 21"):
        analyze(DATA, COUPLINGS, config=replace(SMALL, probes=21), folder=tmp_path)


def test_a_lost_thumbnail_is_written_again(tmp_path):
    record = analyze(DATA, COUPLINGS, config=SMALL, folder=tmp_path)
    truth = tmp_path / record.couplings[0].thumbnails[0].truth
    truth.unlink()
    with pytest.warns(UserWarning, match="measured again"):
        again = analyze(DATA, COUPLINGS, config=SMALL, folder=tmp_path)
    assert lasting(again) == lasting(record)
    assert truth.is_file()


def test_a_users_coupling_with_log_density_is_exact():
    mine, own = analyze(DATA, [Mine(), "knn:k=4"], config=SMALL).couplings
    assert mine.name == "Mine(k=4)"
    assert mine.miscibility.estimate == ""
    for ours, theirs in zip(mine.miscibility.levels, own.miscibility.levels, strict=True):
        assert ours.effective.value == pytest.approx(theirs.effective.value, rel=1e-6)


def test_masked_data_and_what_takes_no_mask(tmp_path):
    mask = torch.ones(60, 1, 3, 3, dtype=torch.bool)
    mask[::2, :, 2] = False
    data = analyze(DATA, COUPLINGS, mask=mask, config=SMALL, folder=tmp_path).data
    assert data.masked
    rms = float(DATA[mask].square().mean().sqrt())
    assert data.rms == pytest.approx(rms)
    with pytest.raises(ValueError, match="assignment cannot be analyzed on data with a mask"):
        analyze(DATA, ["assignment"], mask=mask, config=SMALL)
    fit = AnalysisConfig(gaussian_fit=True)
    with pytest.raises(ValueError, match="takes no mask"):
        analyze(DATA, COUPLINGS, mask=mask, config=fit)


def test_calibrated_pairs_what_a_mask_leaves_whole():
    mask = torch.ones(60, 1, 3, 3, dtype=torch.bool)
    mask[::2, :, 2] = False
    law = NoiseDistribution.measure(KNN(4), [DATA], Moments.fit(DATA), generator=GENERATOR)
    density, noise = density_of(Calibrated(KNN(4), law)), torch.randn(5, 1, 3, 3).double()
    within, whole = (log_density(density, noise, Batch(DATA, None, m)) for m in (mask, None))
    torch.testing.assert_close(within[:, 1::2], whole[:, 1::2])
    normal = -noise.flatten(1).square().sum(dim=1, keepdim=True) / 2
    torch.testing.assert_close(within[:, ::2], normal.expand(5, 30))
    config = AnalysisConfig(levels=(0.5, 0.9), probes=60, pairs=40, thumbnails=0)
    [found] = analyze(DATA, ["calibrated:knn:k=4"], mask=mask, config=config).couplings
    assert found.miscibility.estimate == ""
    for level in found.miscibility.levels:
        assert abs(level.consistency_error.value) < 4 * level.nll.error


def test_errors_come_before_anything_is_written(tmp_path):
    folder = tmp_path / "out"
    for couplings, expected in (
        ([], "which couplings"),
        (["knn:k=4", "knm"], "unknown coupling 'knm'"),
        (["knn:k=4,center=label"], "label"),
        ([Wrong()], "noise"),
    ):
        with pytest.raises(ValueError, match=expected):
            analyze(DATA, couplings, config=SMALL, folder=folder)
    with pytest.raises(ValueError, match="at least 2 samples"):
        analyze(DATA[:1], COUPLINGS, config=SMALL, folder=folder)
    with pytest.raises(ValueError, match="bandwidth is for continuous"):
        analyze(DATA, COUPLINGS, config=AnalysisConfig(bandwidth=1.0), folder=folder)
    assert not folder.exists()


def test_other_paths():
    path = VPPath(schedule="cosine", prediction="v")
    config = AnalysisConfig(path=path, levels=(0.3, 0.9), probes=10, pairs=20)
    settings = analyze(DATA, COUPLINGS, config=config).settings
    assert settings["path"]["kind"] == "VPPath"
    assert settings["path"]["prediction"] == "v"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"probes": 1}, "probes must be >= 2"),
        ({"levels": (0.0, 0.5)}, "levels must be > 0"),
        ({"levels": (0.5, 0.5)}, "levels must be distinct"),
        ({"bandwidth": 0.0}, "bandwidth must be > 0"),
    ],
)
def test_bad_settings_are_refused(options, expected):
    with pytest.raises(ValueError, match=expected):
        AnalysisConfig(**options)
