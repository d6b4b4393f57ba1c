import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from immiscible_diffusion import LinearAssignment
from immiscible_diffusion.analysis.config import AnalysisConfig
from immiscible_diffusion.analysis.noise_statistics import measure_noise
from immiscible_diffusion.analysis.run import Setup, build_couplings
from immiscible_diffusion.analysis.time_estimate import batches_by_label
from immiscible_diffusion.cli.analyze import Options, PathOptions
from immiscible_diffusion.cli.main import main
from immiscible_diffusion.data.in_memory import InMemoryData
from immiscible_diffusion.diffusion.paths import EDMPath, FlowMatchingPath, VPPath
from immiscible_diffusion.reporting.analysis.records import read_analysis
from immiscible_diffusion.utils.atomic_files import read_record
from immiscible_diffusion.utils.batch import Batch

pytest.importorskip("sklearn", reason="digits come with scikit-learn")
FEW = ["--max-images", "60", "--probes", "10", "--pairs", "20", "--levels", "0.5", "0.9"]
DIGITS = ["analyze", "--data", "digits", *FEW, "--thumbnails", "1", "--out", "out"]
MINE = """
import dataclasses
from immiscible_diffusion import KNN, Coupling, Independent

@dataclasses.dataclass(frozen=True)
class Mine(Coupling):
    k: int = 1

    def choose(self, data, noise, cond, mask, generator):
        return KNN(self.k)(data, generator=generator)

class Stated(Independent):
    def log_density(self, noise, data, *, cond=None):
        return -noise.flatten(1).square().sum(dim=1) / 2 - noise[0].numel() * 0.9189385332046727
"""


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_page(monkeypatch):
    """The page takes seconds and has tests of its own."""
    name = "immiscible_diffusion.cli.analyze.write_analysis_page"
    monkeypatch.setattr(name, lambda folder: folder / "analysis.html")


def outcome(capsys, *arguments):
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def written(folder):
    return read_record(folder / "analysis.json")


def lasting(values):
    """Without what may differ from run to run."""
    left = ("seconds", "date", "command")
    if isinstance(values, dict):
        return {name: lasting(value) for name, value in values.items() if name not in left}
    return [lasting(value) for value in values] if isinstance(values, list) else values


def test_digits_end_to_end(capsys, tmp_path):
    code, out, _ = outcome(capsys, *DIGITS, "--cond", "label", "--coupling", "knn:k=4")
    assert code == 0
    assert out.startswith("Given the label, a sample is mixed")
    assert out.endswith("page: out/analysis.html\n")
    record = read_analysis(tmp_path / "out" / "analysis.json")
    assert record.command.startswith("immiscible analyze --data digits")
    assert record.hardware
    assert record.versions["torch"]
    assert [one.name for one in record.couplings] == ["independent", "knn:k=4"]
    data = record.data
    assert (data.samples, data.shape, data.conditioned_on) == (60, (1, 8, 8), ("label",))
    assert "a random 60 of 1,797" in data.note
    for one in record.couplings:
        assert [level.t for level in one.miscibility.levels] == [0.5, 0.9]
        assert one.conditional[0].condition == "the label"
        assert (tmp_path / "out" / one.thumbnails[0].truth).is_file()
    assert "<h1>" in (tmp_path / "out" / "analysis.html").read_text()


@pytest.mark.subprocess
def test_a_killed_command_resumes_to_the_same_result(no_page, capsys, tmp_path):
    arguments = [*DIGITS[:-1], "killed", "--coupling", "knn:k=4"]
    process = subprocess.Popen([sys.executable, "-m", "immiscible_diffusion", *arguments])
    parts = tmp_path / "killed" / "parts"
    while process.poll() is None and len(list(parts.glob("*.json"))) < 2:
        time.sleep(0.05)
    process.kill()
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in parts.glob("*.json")}
    assert len(kept) >= 2
    assert outcome(capsys, *arguments)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    whole = [*DIGITS[:-1], "whole", "--coupling", "knn:k=4"]
    assert outcome(capsys, *whole)[0] == 0
    killed, never = (lasting(written(tmp_path / name)) for name in ("killed", "whole"))
    assert killed == never


def test_ctrl_c_says_what_is_kept(capsys, monkeypatch):
    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("immiscible_diffusion.cli.analyze.run", stopped)
    code, _, text = outcome(capsys, *DIGITS)
    assert code == 130
    assert "the same command resumes it" in text


def test_arrays_with_conditions_and_a_mask(no_page, capsys, tmp_path):
    random = np.random.default_rng(0)
    valid = np.ones((40, 6, 1), dtype=bool)
    valid[:5, 4:] = False
    np.savez(
        "windows.npz",
        action=random.normal(size=(40, 6, 2)),
        obs=random.normal(size=(40, 3)),
        task=np.array(["push", "lift"] * 20),
        valid=valid,
    )
    code, text, _ = outcome(
        capsys,
        *["analyze", "--data", "windows.npz", "--array", "action", "--cond", "obs"],
        *["--cond", "task", "--mask", "valid", "--coupling", "knn:k=4", *FEW, "--thumbnails", "1"],
    )
    assert code == 0
    assert "'task' and 'obs' (Gaussian kernel" in text
    folder = tmp_path / "runs" / "analyze" / "windows"
    record = read_analysis(folder / "analysis.json")
    assert record.data.masked
    assert record.data.classes == ("lift", "push")
    assert record.data.conditioned_on == ("obs", "task")
    assert "a curve for each column" in record.data.note
    entry = record.couplings[1]
    assert len(entry.conditional) == 3
    assert (folder / entry.thumbnails[0].levels[0].denoised).is_file()


def test_users_couplings_are_exact_or_estimated(no_page, capsys, tmp_path):
    (tmp_path / "my_couplings.py").write_text(MINE)
    names = ["my_couplings:Mine(k=4)", "my_couplings:Stated"]
    code, _, _ = outcome(capsys, *DIGITS, "--coupling", names[0], "--coupling", names[1])
    assert code == 0
    _, mine, stated = read_analysis(tmp_path / "out" / "analysis.json").couplings
    assert (mine.name, stated.name) == tuple(names)
    assert "estimated from" in mine.miscibility.estimate
    assert stated.miscibility.estimate == ""


def test_a_dry_run_writes_nothing(capsys, tmp_path):
    code, text, _ = outcome(capsys, *DIGITS, "--coupling", "knn:k=4", "--dry-run")
    assert code == 0
    for expected in ("60 of shape 1x8x8", "path: FlowMatchingPath(", "knn:k=4: about", "time: about", "memory: about"):
        assert expected in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["analyze"], "which data"),
        (["analyze", "--data", "nothing"], "no data set, folder or file 'nothing'"),
        ([*DIGITS, "--coupling", "knm"], "unknown coupling 'knm'"),
        ([*DIGITS, "--coupling", "knn:k=4", "--coupling", "knn:k=4"], "named twice: knn:k=4"),
        ([*DIGITS, "--cond", "text"], "the condition 'label' only"),
        ([*DIGITS, "--levels", "0", "0.5"], "levels must be > 0 and <= 1"),
        ([*DIGITS, "--probes", "1"], "probes must be >= 2"),
        ([*DIGITS, "--threads", "0"], "threads must be >= 1"),
        ([*DIGITS, "--path", "sigma"], "is --path.kind sigma"),
        (["analyze", "--data", "folder"], "no data set, folder or file 'folder'; known: digits"),
        ([*DIGITS, "--bandwidth", "1"], "bandwidth is for continuous conditions"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(capsys, tmp_path, arguments, expected):
    code, _, text = outcome(capsys, *arguments)
    assert code == 2
    assert expected in text
    assert text.strip().count("\n") == 0
    assert not list(tmp_path.iterdir())


def test_a_folder_named_folder_is_a_folder(capsys, tmp_path):
    (tmp_path / "folder").mkdir()
    for number in range(3):
        picture = np.full((8, 8), 40 * number, dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / "folder" / f"{number}.png")
    options = ["--coupling", "knn:k=2", "--dry-run", "--channels", "1", *FEW]
    for named in (["folder"], ["folder", "--path", "folder"]):
        code, text, _ = outcome(capsys, "analyze", "--data", *named, *options)
        assert code == 0
        assert "data: folder, 3 of shape 1x8x8" in text


def test_paths_by_option():
    assert PathOptions().build() == FlowMatchingPath()
    made = PathOptions(kind="diffusion", schedule="cosine", prediction="v").build()
    assert made == VPPath(schedule="cosine", prediction="v")
    assert PathOptions(kind="sigma", sigma_max=10).build() == EDMPath(sigma_max=10)


def test_the_baseline_is_always_first():
    assert Options(coupling=(("knn:k=4",), ("independent",))).couplings == ("independent", "knn:k=4")
    assert Options().couplings[0] == "independent"


def test_by_default_data_with_a_mask_have_no_coupling_that_takes_none():
    assert "assignment" in Options().couplings
    assert "assignment" not in Options(mask="valid").couplings


def test_help_begins_with_the_data(capsys):
    assert main(["analyze", "--help"]) == 0
    text = capsys.readouterr().out
    assert text.index("--data STR") < text.index("--coupling [STR") < text.index("--path.kind")
    assert "--path {None}|STR" in text


def test_the_dry_run_counts_the_calls_for_every_label():
    calls = []

    class Counted(LinearAssignment):
        def __call__(self, data, **options):
            calls.append(len(data))
            return super().__call__(data, **options)

    data, label = torch.randn(90, 3), torch.tensor([0] * 30 + [1] * 60)
    config = AnalysisConfig(pairs=50, batch_size=30)
    setup = Setup.of(InMemoryData("w", "", Batch(data, {"label": label})), (), config, None)
    [subject] = build_couplings(setup, [Counted()])
    density = subject.density
    options = {"moments": setup.builder.leading_moments, "density": density, "pairs": 50, "batch_size": 30}
    calls.clear()
    measure_noise(data, subject.coupling, **options)
    whole = len(calls)
    measure_noise(data, subject.coupling, labels=label, **options)
    assert len(calls) - 2 * whole == batches_by_label(subject) == 5 + 3
