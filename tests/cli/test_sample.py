"""``immiscible sample`` of a run and of a pipeline of diffusers."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fixtures.diffusers_checkpoint import save_pipeline
from fixtures.tiny_clip import save_clip
from immiscible_diffusion.cli.main import main
from immiscible_diffusion.data import DataConfig
from immiscible_diffusion.data.folder_of_samples import SampleFolder
from immiscible_diffusion.diffusion.paths import VPPath
from immiscible_diffusion.diffusion.samplers import SamplerConfig
from immiscible_diffusion.models import UNet
from immiscible_diffusion.recipes import recipe_from_name
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.training.trainer import Trainer

Image = pytest.importorskip("PIL.Image", reason="images are written with Pillow")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    arguments = ["train", "digits-flow", "--tiny", "--device", "cpu", "--out", str(out)]
    options = ["--conditional", "--data.max_samples", "400", "--preview-every", "0"]
    assert main([*arguments, *options]) == 0
    return out


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("pipeline"))


def sample(source: Path, out: Path, *options: str) -> int:
    named = ["--pipeline"] if (source / "model_index.json").exists() else []
    return main(["sample", *named, str(source), "--to", str(out), "--device", "cpu", *options])


def arrays(folder: Path) -> list[np.ndarray]:
    files = sorted(folder.glob("*.png"), key=lambda file: file.stem.rpartition("_")[2])
    return [np.asarray(Image.open(file)).astype(int) for file in files]


def assert_same_images(one: Path, other: Path) -> None:
    """Equal up to rounding of sums that depends on the batch."""
    pairs = list(zip(arrays(one), arrays(other), strict=True))
    assert pairs
    assert all(int(abs(a - b).max()) <= 1 for a, b in pairs)


def test_a_run_over_its_classes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample(run, tmp_path, "--count", "12", "--batch-size", "5") == 0
    assert "12 images, complete (step 8, sampler euler 2, weights" in capsys.readouterr().err
    names = sorted(file.name for file in tmp_path.glob("*.png"))
    assert names[:3] == ["0_000000.png", "0_000010.png", "1_000001.png"]
    assert main(["sample", str(run), "--count", "12", "--device", "cpu"]) == 0
    assert_same_images(tmp_path, run / "images" / "step8-euler2-seed0")


def test_a_folder_is_continued_with_the_same_settings_alone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--count", "6", "--format", "both", "--shard-size", "4")
    assert sample(run, tmp_path, *options) == 0
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    (tmp_path / "3_000003.png").unlink()
    (tmp_path / "images-00001.tar").unlink()
    assert sample(run, tmp_path, *options) == 0
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    capsys.readouterr()
    for other, message in (
        (("--seed", "1"), "seed is 0 there and 1 here"),
        (("--count", "5"), "not among those asked for"),
        (("--prompt", "cat"), "not trained on prompts"),
    ):
        assert sample(run, tmp_path, *options, *other) == 2
        assert message in capsys.readouterr().err


def test_a_pipeline_over_class_names(pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "names").write_text("tench, Tinca tinca\ngold fish\n")
    (tmp_path / "gap").write_text("tench\n\ngold fish\n")
    assert sample(pipeline, tmp_path / "c", "--classes", str(tmp_path / "gap")) == 2
    common = ("--classes", str(tmp_path / "names"), "--sampling-steps", "1", "--template", "a {label}")
    assert sample(pipeline, tmp_path / "a", "--count", "3", "--batch-size", "1", *common) == 0
    assert sample(pipeline, tmp_path / "b", "--count", "3", "--batch-size", "3", *common) == 0
    assert SampleFolder(tmp_path / "a").prompts() == ["a tench", "a gold fish"]
    names = sorted(file.name for file in (tmp_path / "a").glob("*.png"))
    assert names == ["gold-fish_000001.png", "tench_000000.png", "tench_000002.png"]
    assert_same_images(tmp_path / "a", tmp_path / "b")
    a = arrays(tmp_path / "a")
    assert a[0].shape == (16, 16, 3)
    assert int(abs(a[0] - a[2]).max()) > 1  # of one class, from other noise


def test_prompts_and_errors_of_a_pipeline(pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = ("--count", "2", "--sampling-steps", "1", "--guidance", "2", "--format", "tar")
    assert sample(pipeline, tmp_path / "one", *two, "--prompt", "a red cat") == 0
    assert [place.number for place in SampleFolder(tmp_path / "one").places] == [0, 1]
    capsys.readouterr()
    for options, message in (
        ((), "is a StableDiffusionPipeline; a text-to-image pipeline needs --classes"),
        (("--classes", str(tmp_path / "none")), "there is no file"),
        (("--prompt", "a", "--prompts", "b"), "give one of them"),
        (("--prompt", "a", "--method", "euler"), "its own sampler; leave method"),
        (("--prompt", "a", "--init-noise", "matched"), "leave init_noise"),
        (("--prompt", "a\nb"), "one line"),
        ((str(tmp_path), "--prompt", "a"), "give a run folder, or --pipeline"),
    ):
        assert sample(pipeline, tmp_path / "two", *options) == 2
        assert message in capsys.readouterr().err
    assert main(["sample", "--pipeline", "nowhere", "--prompt", "a", "--to", "x"]) == 2
    assert "there is no pipeline at nowhere" in capsys.readouterr().err
    assert not (tmp_path / "two").exists()


def test_clip_metrics_of_a_folder(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = str(save_clip(tmp_path / "clip"))
    monkeypatch.setenv("IMMISCIBLE_CLIP", clip)
    monkeypatch.setenv("IMMISCIBLE_CMMD_CLIP", clip)
    out = tmp_path / "tar"
    assert sample(run, out, "--count", "80", "--format", "tar", "--batch-size", "80") == 0
    judge = ["evaluate", str(run), "--device", "cpu", "--metrics", "frechet"]
    assert main([*judge, "--clip-metrics", "cmmd"]) == 2
    assert "immiscible sample RUN --to" in capsys.readouterr().err
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
    assert result["files"] == "png in tar shards"


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A convolutional network and a sampler that adds noise on its way: the hardest to split."""
    tiny = recipe_from_name("digits-flow").tiny()
    recipe = dataclasses.replace(
        tiny,
        task=tiny.task.replace(data=DataConfig(name="digits", max_samples=64)),
        model=UNet(8, (1, 2), blocks=1, attention=(4,), head_channels=4, groups=4, dropout=0.0),
        path=VPPath(),
        sampler=SamplerConfig("ddpm", 4, clip=1.0),
        steps=4,
        preview_every=0,
    )
    folder = tmp_path_factory.mktemp("noisy")
    Trainer(recipe, RunDir.open(folder, recipe), device="cpu").train(quiet=True)
    return folder


@pytest.mark.subprocess
def test_two_processes_make_what_one_makes(noisy: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="processes are counted by accelerate")
    options = ["--count", "22", "--format", "both", "--shard-size", "5"]
    assert sample(noisy, tmp_path / "one", *options, "--batch-size", "7") == 0
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    command = [sys.executable, *launch, "immiscible_diffusion", "sample", str(noisy)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    for more in (["--to", str(tmp_path / "two"), "--device", "cpu", *options], ["--count", "6"]):
        result = subprocess.run([*command, *more], env=environment, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        assert result.stderr.count(" images, complete") == 1  # shared, not made twice, and said when all are there
    assert_same_images(tmp_path / "one", tmp_path / "two")
    assert np.stack(arrays(tmp_path / "one")).std() > 10
    shards = [SampleFolder(tmp_path / name).places for name in ("one", "two")]
    assert [place.number for place in shards[0]] == list(range(22))
    assert [place[0] for place in shards[1]] == list(range(22))
    [series] = [path for path in (noisy / "images").iterdir() if path.is_dir()]
    assert len(arrays(series)) == 6
    assert series.with_name(f"{series.name}-grid.png").exists()
