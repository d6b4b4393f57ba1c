"""``immiscible bulk`` on a run of ours and on a pipeline of diffusers."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fixtures.diffusers_checkpoint import save_pipeline
from fixtures.tiny_clip import save_clip
from immiscible_diffusion.cli.main import main
from immiscible_diffusion.evaluation.bulk import BulkPictures

Image = pytest.importorskip("PIL.Image", reason="pictures are written with Pillow")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    arguments = ["train", "digits-flow", "--tiny", "--device", "cpu", "--out", str(out)]
    options = ["--conditional", "--data.limit", "400", "--preview-every", "0"]
    assert main([*arguments, *options]) == 0
    return out


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("pipeline"))


def bulk(model: Path, out: Path, *options: str) -> int:
    return main(["bulk", str(model), "--out", str(out), "--device", "cpu", *options])


def arrays(folder: Path) -> list[np.ndarray]:
    files = sorted(folder.glob("*.png"), key=lambda file: file.stem.rpartition("_")[2])
    return [np.asarray(Image.open(file)).astype(int) for file in files]


def test_a_run_over_its_classes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bulk(run, tmp_path / "bulk", "--count", "12", "--batch-size", "5") == 0
    assert "12 of 12 pictures; complete" in capsys.readouterr().err
    names = sorted(file.name for file in (tmp_path / "bulk").glob("*.png"))
    assert names[:3] == ["0_000000.png", "0_000010.png", "1_000001.png"]
    assert main(["sample", str(run), "--count", "12", "--out", str(tmp_path / "sample")]) == 0
    pairs = zip(arrays(tmp_path / "bulk"), arrays(tmp_path / "sample"), strict=True)
    # The same pictures, up to rounding of sums that depends on the batch.
    assert all(int(abs(a - b).max()) <= 1 for a, b in pairs)


def test_going_on_and_other_settings(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--count", "6", "--kind", "both", "--shard-size", "4")
    assert bulk(run, tmp_path, *options) == 0
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    (tmp_path / "3_000003.png").unlink()
    (tmp_path / "pictures-00001.tar").unlink()
    assert bulk(run, tmp_path, *options) == 0
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    capsys.readouterr()
    assert bulk(run, tmp_path, *options, "--seed", "1") == 2
    assert "seed is 0 there and 1 here" in capsys.readouterr().err
    assert bulk(run, tmp_path, *options, "--prompt", "cat") == 2
    assert "not trained on prompts" in capsys.readouterr().err


def test_a_pipeline_over_class_names(pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "names").write_text("tench, Tinca tinca\ngold fish\n")
    (tmp_path / "gap").write_text("tench\n\ngold fish\n")
    assert bulk(pipeline, tmp_path / "c", "--count", "3", "--classes", str(tmp_path / "gap")) == 2
    common = ("--classes", str(tmp_path / "names"), "--steps", "1", "--template", "a {label}")
    assert bulk(pipeline, tmp_path / "a", "--count", "3", "--batch-size", "1", *common) == 0
    assert bulk(pipeline, tmp_path / "b", "--count", "3", "--batch-size", "3", *common) == 0
    assert BulkPictures(tmp_path / "a").prompts() == ["a tench", "a gold fish"]
    names = sorted(file.name for file in (tmp_path / "a").glob("*.png"))
    assert names == ["gold-fish_000001.png", "tench_000000.png", "tench_000002.png"]
    a, b = arrays(tmp_path / "a"), arrays(tmp_path / "b")
    assert all(int(abs(x - y).max()) <= 1 for x, y in zip(a, b, strict=True))
    assert a[0].shape == (16, 16, 3)
    assert int(abs(a[0] - a[2]).max()) > 1  # of one class, from other noise


def test_one_prompt_and_what_is_missing(
    pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = ("--count", "2", "--steps", "1", "--guidance", "2", "--kind", "tar")
    assert bulk(pipeline, tmp_path / "one", *one, "--prompt", "a red cat") == 0
    assert [number for number, _ in BulkPictures(tmp_path / "one").files()] == [0, 1]
    capsys.readouterr()
    for options, said in (
        ((), "--classes FILE"),
        (("--classes", str(tmp_path / "none")), "there is no file"),
        (("--prompt", "a", "--prompts", "b"), "give one of them"),
        (("--prompt", "a", "--method", "euler"), "its own sampler"),
    ):
        assert bulk(pipeline, tmp_path / "two", *options) == 2
        assert said in capsys.readouterr().err
    assert bulk(tmp_path / "nowhere", tmp_path / "two", "--prompt", "a") == 2
    assert "no run and no pipeline at" in capsys.readouterr().err


def test_clip_figures_of_a_folder(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = str(save_clip(tmp_path / "clip"))
    monkeypatch.setenv("IMMISCIBLE_CLIP", clip)
    monkeypatch.setenv("IMMISCIBLE_CMMD_CLIP", clip)
    out = tmp_path / "tar"
    assert bulk(run, out, "--count", "80", "--kind", "tar", "--batch-size", "80") == 0
    judge = ["evaluate", str(run), "--device", "cpu", "--metrics", "frechet"]
    assert main([*judge, "--clip-metrics", "cmmd"]) == 2
    assert "immiscible bulk" in capsys.readouterr().err
    judge += ["--folder", str(out)]
    assert main([*judge, "--clip-metrics", "score"]) == 2
    assert "prompts.txt is absent" in capsys.readouterr().err
    (out / "prompts.txt").write_text("".join(f"a {n}\n" for n in range(10)))
    assert main([*judge, "--clip-metrics", "score", "cmmd"]) == 0
    result = json.loads((run / "evaluation.json").read_text())[-1]
    assert 0 <= result["clip_score"] <= 100
    assert result["cmmd"] > 0
    assert result["cmmd_real"] == 400
    assert result["samples"] == 80
    assert result["pictures"] == "png in 1 tar shards"


def test_two_processes_make_what_one_makes(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="processes are counted by accelerate")
    options = ["--count", "11", "--kind", "tar", "--shard-size", "2", "--batch-size", "1"]
    assert bulk(run, tmp_path / "one", *options) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    common |= {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "immiscible_diffusion", "bulk", str(run), "--device", "cpu"]
    command += ["--out", str(tmp_path / "two"), *options]
    both = [
        subprocess.Popen(command, env=os.environ | common | {"RANK": rank, "LOCAL_RANK": rank})
        for rank in "01"
    ]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    one, two = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
        for name in ("one", "two")
    )
    assert one == two
