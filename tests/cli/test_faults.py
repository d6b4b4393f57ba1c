"""A full disk, and a second copy of a command: one line, exit code 2, and nothing lost."""

import contextlib
import sys

import pytest

from helpers import assert_same_weights
from immiscible_diffusion.cli.main import main
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.utils import folder_lock as locks
from immiscible_diffusion.utils.folder_lock import folder_lock

TRAIN = ["train", "digits-flow", "--tiny", "--device", "cpu", "--model.width", "64", "--preview-every", "0"]


@contextlib.contextmanager
def limit(size):
    """Let files grow to ``size`` bytes: writing more is an error, as on a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def error_of(capsys, arguments):
    assert main(arguments) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("immiscible: error: ")
    return line


@pytest.mark.skipif(sys.platform == "win32", reason="resource limits")
def test_training_on_a_full_disk_keeps_the_last_checkpoint_and_goes_on(tmp_path, capsys):
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert main([*TRAIN, "--out", str(whole)]) == 0
    words = [*TRAIN, "--out", str(run)]
    with limit(100_000):
        line = error_of(capsys, words)
    assert "weights/model.safetensors" in line
    with limit(200_000):  # of about 560,000
        line = error_of(capsys, words)
    assert "checkpoint.pt" in line
    assert "MiB are missing" in line
    assert not (run / "checkpoint.pt").exists()
    assert main([*words, "--steps", "4"]) == 0
    with limit(200_000):
        error_of(capsys, words)
    assert RunDir(run).load_checkpoint()["step"] == 4
    assert not list(run.rglob("*.tmp"))
    assert main(words) == 0
    assert_same_weights(whole, run)


@pytest.mark.parametrize(
    "arguments",
    [
        TRAIN,
        ["compare", "digits-flow", "--tiny", "--device", "cpu"],
        ["analyze", "--data", "digits", "--max-images", "50"],
        ["pilot", "--data", "digits", "--device", "cpu"],
    ],
    ids=lambda words: words[0],
)
def test_a_second_copy_of_a_command_is_refused(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.setattr(locks, "WAIT", 0.0)
    with folder_lock(tmp_path):
        line = error_of(capsys, [*arguments, "--out", str(tmp_path)])
    assert "in use by process" in line
    assert not list(tmp_path.iterdir())


def test_sampling_and_trials_are_refused_where_another_is_at_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(locks, "WAIT", 0.0)
    run, to = str(tmp_path / "run"), tmp_path / "images"
    assert main([*TRAIN, "--out", run]) == 0
    sample = ["sample", run, "--count", "6", "--format", "tar", "--shard-size", "3", "--to", str(to)]
    with folder_lock(to):
        assert "in use" in error_of(capsys, sample)
    assert main(sample) == 0
    assert sorted(file.name for file in to.iterdir()) == ["images-00000.tar", "images-00001.tar", "sampling.json"]
    out = tmp_path / "compare"
    trial = ["compare", "digits-flow", "--tiny", "--device", "cpu", "--trial", "0", "--out", str(out)]
    with folder_lock(out / "trials" / "independent" / "seed0"):
        assert "in use" in error_of(capsys, trial)
    assert main(trial) == 0
