import json
import math
from dataclasses import dataclass, field

import pytest
import torch

from immiscible_diffusion.analysis import cache as parts
from immiscible_diffusion.analysis import coupling_analysis as subject
from immiscible_diffusion.analysis.config import Settings
from immiscible_diffusion.analysis.miscibility import miscibility
from immiscible_diffusion.analysis.noise_density import density_of, log_density
from immiscible_diffusion.analysis.noncentral_chi2 import log_survival
from immiscible_diffusion.analysis.run import analyze
from immiscible_diffusion.couplings import KNN, Calibrated, NoiseDistribution
from immiscible_diffusion.couplings.moments import Moments
from immiscible_diffusion.diffusion.paths import VPPath
from immiscible_diffusion.utils.batch import Batch

GENERATOR = torch.Generator().manual_seed(0)
LABEL = torch.arange(60) % 3
DATA = torch.randn(60, 1, 3, 3, generator=GENERATOR) * 0.3 + LABEL.view(-1, 1, 1, 1) * 0.2
SMALL = Settings(levels=(0.5, 0.9), probes=20, pairs=40, show=1)
COUPLINGS = ["independent", "knn:k=4"]


@dataclass(frozen=True)
class Mine:
    """KNN under another name, with its density stated."""

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


def plain(values):
    """Without what may differ from run to run."""
    if isinstance(values, dict):
        left = ("seconds", "date")
        return {name: plain(value) for name, value in values.items() if name not in left}
    return [plain(value) for value in values] if isinstance(values, list) else values


def test_the_values_are_those_of_miscibility():
    values = analyze(DATA, COUPLINGS, cond={"label": LABEL}, settings=SMALL)
    entry = values["couplings"][1]
    settings = {"levels": SMALL.levels, "probes": SMALL.probes, "cond": {"label": LABEL}}
    whole = miscibility(DATA, KNN(4), **settings)
    within = miscibility(DATA, KNN(4), labels=LABEL, **settings)
    assert entry["miscibility"]["levels"] == json.loads(json.dumps(whole.to_json()["levels"]))
    assert entry["given"][0]["levels"] == json.loads(json.dumps(within.to_json()["levels"]))
    assert entry["given"][0]["candidates"]["value"] == 20
    assert set(entry["noise"]["per_label"]) == {"0", "1", "2"}
    assert (entry["k"], values["couplings"][0]["k"]) == (4, None)
    assert entry["removable"] == pytest.approx(math.log(4) - 1 + 1 / 4)
    assert values["data"]["cond"] == ["label"]
    assert "log 20 = 3.00 nats" in values["given_summary"]
    json.dumps(values, allow_nan=False)


def test_conditions_of_couplings_need_not_be_given():
    values = analyze(DATA, COUPLINGS, cond={"label": LABEL}, given=(), settings=SMALL)
    assert values["couplings"][1]["given"] == []
    assert set(values["couplings"][1]["noise"]["per_label"]) == {"0", "1", "2"}
    assert values["given_summary"] == ""


def test_a_continuous_condition_comes_at_three_bandwidths():
    obs = torch.randn(60, 2, generator=GENERATOR)
    values = analyze(DATA, ["knn:k=4"], cond={"obs": obs}, settings=SMALL)
    counts = [one["candidates"]["value"] for one in values["couplings"][0]["given"]]
    assert counts[1] < counts[0] < counts[2] < 60
    assert "at the other bandwidths" in values["given_summary"]


def test_a_killed_analysis_goes_on_and_ends_as_one_that_was_not(tmp_path, monkeypatch):
    whole = analyze(DATA, COUPLINGS, settings=SMALL, folder=tmp_path / "whole")
    kill, seen = tmp_path / "killed", []
    measure = subject.measure_noise

    def killed(*arguments, **options):
        seen.append(arguments)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return measure(*arguments, **options)

    monkeypatch.setattr(subject, "measure_noise", killed)
    with pytest.raises(KeyboardInterrupt):
        analyze(DATA, COUPLINGS, settings=SMALL, folder=kill)
    assert not (kill / "analysis.json").exists()
    assert len(list((kill / "parts").iterdir())) == 3
    again = analyze(DATA, COUPLINGS, settings=SMALL, folder=kill)
    assert len(seen) == 3
    assert plain(again) == plain(whole)
    written = json.loads((kill / "analysis.json").read_text())
    assert written == again
    for shown in again["couplings"][1]["pictures"]:
        for name in [shown["truth"], *(f[k] for f in shown["files"] for k in ("x_t", "denoised"))]:
            ours, theirs = (tmp_path / one / name for one in ("whole", "killed"))
            assert ours.read_bytes() == theirs.read_bytes()


def test_couplings_and_parts_may_be_added(tmp_path, monkeypatch):
    first = analyze(DATA, COUPLINGS, settings=SMALL, folder=tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}
    monkeypatch.setattr(subject, "FIT_COUNT", 1000)
    more = Settings(levels=(0.5, 0.9), probes=20, pairs=40, show=1, gaussian_fit=True)
    added = analyze(DATA, ["knn:k=8,center=mean"], settings=more, folder=tmp_path)
    assert [one["name"] for one in added["couplings"]] == [*COUPLINGS, "knn:k=8,center=mean"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert added["couplings"][1]["miscibility"] == first["couplings"][1]["miscibility"]
    assert added["couplings"][1]["gaussian_fit"]


def shifted(by):
    table = torch.zeros(2000)
    table[1000] = 2000 * by
    return Shifted(table)


def test_objects_that_print_alike_are_told_apart(tmp_path):
    one, other = shifted(0.0), shifted(1.0)
    assert str(one) == str(other)
    first = analyze(DATA, [one], settings=SMALL, folder=tmp_path)["couplings"][0]
    with pytest.warns(UserWarning, match="measured anew"):
        again = analyze(DATA, [other], settings=SMALL, folder=tmp_path)["couplings"][0]
    fresh = analyze(DATA, [other], settings=SMALL)["couplings"][0]
    assert again["noise"] == fresh["noise"] != first["noise"]
    with pytest.raises(ValueError, match="two different couplings print as Shifted"):
        analyze(DATA, [one, other], settings=SMALL)
    assert len(analyze(DATA, [one, shifted(0.0)], settings=SMALL)["couplings"]) == 1


def test_a_center_by_a_word_prints_which_moments_it_is_of(tmp_path):
    near, far = (KNN(4, center="mean", moments=Moments.fit(DATA + by)) for by in (0, 3))
    assert str(near) != str(far)
    found = analyze(DATA, [near, far], settings=SMALL)["couplings"]
    assert found[0]["noise"]["kl"] != found[1]["noise"]["kl"]


def test_couplings_given_as_objects_stay(tmp_path):
    first = analyze(DATA, [KNN(4)], settings=SMALL, folder=tmp_path)["couplings"]
    added = analyze(DATA, ["independent"], settings=SMALL, folder=tmp_path)["couplings"]
    assert [one["name"] for one in added] == ["independent", "KNN(k=4)"]
    assert added[1] == first[0]
    written = json.loads((tmp_path / "analysis.json").read_text())
    written["versions"]["immiscible-diffusion"] = "0.0.0"
    (tmp_path / "analysis.json").write_text(json.dumps(written))
    with pytest.warns(UserWarning, match=r"another version: KNN\(k=4\)"):
        left = analyze(DATA, ["independent"], settings=SMALL, folder=tmp_path)["couplings"]
    assert [one["name"] for one in left] == ["independent"]


@pytest.mark.parametrize("changed", ["MEASURES", "version"])
def test_parts_of_another_version_are_measured_anew(changed, tmp_path, monkeypatch):
    analyze(DATA, COUPLINGS[1:], settings=SMALL, folder=tmp_path)
    before = {path: path.read_text() for path in (tmp_path / "parts").iterdir()}
    monkeypatch.setattr(parts, changed, 99 if changed == "MEASURES" else lambda name: "99.0")
    with pytest.warns(UserWarning, match="another version"):
        analyze(DATA, COUPLINGS[1:], settings=SMALL, folder=tmp_path)
    assert all(path.read_text() != text for path, text in before.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_data_of_half_precision(dtype):
    rough = analyze(DATA.to(dtype), COUPLINGS, settings=SMALL)["couplings"][1]["miscibility"]
    exact = analyze(DATA, COUPLINGS, settings=SMALL)["couplings"][1]["miscibility"]
    for ours, theirs in zip(rough["levels"], exact["levels"], strict=True):
        value, error = (theirs["effective"][name] for name in ("value", "error"))
        assert abs(ours["effective"]["value"] - value) < 6 * error


def test_other_data_or_settings_are_refused(tmp_path):
    analyze(DATA, COUPLINGS, settings=SMALL, folder=tmp_path, name="one")
    with pytest.raises(ValueError, match=r"other data than the one there.*another folder"):
        analyze(DATA + 1, COUPLINGS, settings=SMALL, folder=tmp_path)
    with pytest.raises(ValueError, match="other data"):
        analyze(DATA, COUPLINGS, cond={"label": LABEL}, given=(), settings=SMALL, folder=tmp_path)
    other = Settings(levels=(0.5, 0.9), probes=21, pairs=40, show=1)
    with pytest.raises(ValueError, match="probes: 20 -> 21"):
        analyze(DATA, COUPLINGS, settings=other, folder=tmp_path)


def test_a_lost_picture_is_made_again(tmp_path):
    values = analyze(DATA, COUPLINGS, settings=SMALL, folder=tmp_path)
    (tmp_path / values["couplings"][0]["pictures"][0]["truth"]).unlink()
    with pytest.warns(UserWarning, match="measured anew"):
        again = analyze(DATA, COUPLINGS, settings=SMALL, folder=tmp_path)
    assert plain(again) == plain(values)
    assert (tmp_path / values["couplings"][0]["pictures"][0]["truth"]).is_file()


def test_a_users_coupling_is_exact_where_it_states_its_density():
    mine, own = analyze(DATA, [Mine(), "knn:k=4"], settings=SMALL)["couplings"]
    assert mine["name"] == "Mine(k=4)"
    assert mine["miscibility"]["estimate"] == ""
    for ours, theirs in zip(
        mine["miscibility"]["levels"], own["miscibility"]["levels"], strict=True
    ):
        assert ours["effective"]["value"] == pytest.approx(theirs["effective"]["value"], rel=1e-6)


def test_masked_data_and_what_takes_no_mask(tmp_path):
    mask = torch.ones(60, 1, 3, 3, dtype=torch.bool)
    mask[::2, :, 2] = False
    values = analyze(DATA, COUPLINGS, mask=mask, settings=SMALL, folder=tmp_path)
    assert values["data"]["masked"]
    rms = float(DATA[mask].square().mean().sqrt())
    assert values["data"]["rms"] == pytest.approx(rms)
    with pytest.raises(ValueError, match="assignment cannot be analyzed on data with a mask"):
        analyze(DATA, ["assignment"], mask=mask, settings=SMALL)
    fit = Settings(gaussian_fit=True)
    with pytest.raises(ValueError, match="takes no mask"):
        analyze(DATA, COUPLINGS, mask=mask, settings=fit)


def test_calibrated_pairs_what_a_mask_leaves_whole():
    mask = torch.ones(60, 1, 3, 3, dtype=torch.bool)
    mask[::2, :, 2] = False
    law = NoiseDistribution.measure(KNN(4), [DATA], Moments.fit(DATA), generator=GENERATOR)
    density, noise = density_of(Calibrated(KNN(4), law)), torch.randn(5, 1, 3, 3).double()
    within, whole = (log_density(density, noise, Batch(DATA, None, m)) for m in (mask, None))
    torch.testing.assert_close(within[:, 1::2], whole[:, 1::2])
    normal = -noise.flatten(1).square().sum(dim=1, keepdim=True) / 2
    torch.testing.assert_close(within[:, ::2], normal.expand(5, 30))
    settings = Settings(levels=(0.5, 0.9), probes=60, pairs=40, show=0)
    [found] = analyze(DATA, ["calibrated:knn:k=4"], mask=mask, settings=settings)["couplings"]
    assert found["miscibility"]["estimate"] == ""
    for level in found["miscibility"]["levels"]:
        surprise, entropy = level["surprise"], level["entropy"]
        assert abs(surprise["value"] - entropy["value"]) < 4 * surprise["error"]


def test_what_is_wrong_is_said_before_anything_is_written(tmp_path):
    folder = tmp_path / "out"
    for couplings, expected in (
        ([], "which couplings"),
        (["knn:k=4", "knm"], "unknown coupling 'knm'"),
        (["knn:k=4,center=label"], "label"),
        ([Wrong()], "noise"),
    ):
        with pytest.raises(ValueError, match=expected):
            analyze(DATA, couplings, settings=SMALL, folder=folder)
    with pytest.raises(ValueError, match="at least 2 data"):
        analyze(DATA[:1], COUPLINGS, settings=SMALL, folder=folder)
    with pytest.raises(ValueError, match="bandwidth is for continuous"):
        analyze(DATA, COUPLINGS, settings=Settings(bandwidth=1.0), folder=folder)
    assert not folder.exists()


def test_other_paths():
    path = VPPath(schedule="cosine", prediction="v")
    settings = Settings(path=path, levels=(0.3, 0.9), probes=10, pairs=20)
    values = analyze(DATA, COUPLINGS, settings=settings)
    assert values["path"]["kind"] == "VPPath"
    assert values["path"]["prediction"] == "v"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"probes": 1}, "probes must be at least 2"),
        ({"levels": (0.0, 0.5)}, "levels must be times above 0"),
        ({"levels": (0.5, 0.5)}, "given twice"),
        ({"bandwidth": 0.0}, "bandwidth must be above 0"),
    ],
)
def test_bad_settings_are_refused(options, expected):
    with pytest.raises(ValueError, match=expected):
        Settings(**options)
