"""What the commands write, made once, and how a command ends."""

import contextlib
import dataclasses
import io
import json
import tarfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from helpers import train
from immiscible_diffusion.cli.main import main
from immiscible_diffusion.recipes import recipe_from_name

RUN = ["--coupling", "calibrated:knn:k=2", "--sampler.init-noise", "matched"]
COMPARE = [
    "compare",
    "digits-flow",
    "--tiny",
    "--device",
    "cpu",
    "--seeds",
    "0",
    "--coupling",
    "knn:k=2",
    "--coupling",
    "matched:knn:k=2",
]
ANALYZE = [
    "analyze",
    "--data",
    "digits",
    "--max-images",
    "60",
    "--probes",
    "4",
    "--pairs",
    "40",
    "--levels",
    "0.5",
    "1",
    "--coupling",
    "knn:k=2",
]
PILOT = ["pilot", "--seeds", "3", "--steps", "4", "--device", "cpu", "--sampling-steps", "2"]
TIMES = ("seconds", "seconds_per_step", "pairing_share", "pairing_ms")
CHANGING = (*TIMES, "date", "command", "hardware", "checksum", "load")


@dataclass(frozen=True)
class Case:
    """A folder that commands wrote, and what reads it: a command and what it results in."""

    files: str  # that are changed
    argv: Callable[[Path], Sequence[str]]  # of the folder
    result: Callable[[Path, str], object]  # of the folder and what was printed


def call(argv: Sequence[str]) -> tuple[int, str, str]:
    """Exit code and what was printed to stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings(record=True):
        return main(list(argv)), out.getvalue(), err.getvalue()


def made(argv: Sequence[str]) -> None:
    """Run a command that must succeed."""
    code, _, err = call(argv)
    assert code == 0, err


def stable(value: object) -> object:
    """JSON values without what differs from call to call."""
    if isinstance(value, dict):
        return {key: stable(item) for key, item in value.items() if key not in CHANGING}
    return [stable(item) for item in value] if isinstance(value, list) else value


def record(folder: Path, name: str) -> object:
    return stable(json.loads((folder / name).read_text()))


def images(folder: Path) -> dict[str, bytes]:
    """The images of a folder, in files or shards."""
    found = {file.name: file.read_bytes() for file in sorted(folder.glob("*.png"))}
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}
    return found


def weights(folder: Path) -> dict[str, bytes]:
    state = load_file(folder / "weights" / "model.safetensors")
    return {name: value.numpy().tobytes() for name, value in sorted(state.items())}


def train_words(folder: Path) -> list[str]:
    return ["train", "digits-flow", "--tiny", "--device", "cpu", *RUN, "--out", str(folder)]


def sample_words(folder: Path) -> list[str]:
    return ["sample", str(folder), "--to", str(folder / "to"), "--count", "3", "--device", "cpu"]


def made_run(folder: Path) -> None:
    """A run stopped half way."""
    recipe = recipe_from_name("digits-flow").tiny()
    sampler = dataclasses.replace(recipe.sampler, init_noise="matched")
    recipe = dataclasses.replace(recipe, name="digits-flow-tiny", coupling="calibrated:knn:k=2", sampler=sampler)
    train(recipe, folder, 4)


def made_images(folder: Path) -> None:
    made_run(folder / "run")
    for form in ("png", "tar"):
        made(["sample", str(folder / "run"), *to_words(folder, form)])


def to_words(folder: Path, form: str) -> list[str]:
    return ["--to", str(folder / form), "--format", form, "--count", "70", "--shard-size", "30", "--device", "cpu"]


def made_comparison(folder: Path) -> None:
    words = [*COMPARE, "--out", str(folder)]
    for trial in ("0", "1"):
        made([*words, "--trial", trial])
    made([*words, "--gather"])


def made_pilot(folder: Path) -> None:
    folder.mkdir()
    points = np.random.default_rng(0).normal(size=(120, 2)).astype(np.float32)
    np.save(folder / "points.npy", points)
    made([*PILOT, "--data", str(folder / "points.npy"), "--out", str(folder / "out")])


SOURCES: dict[str, Callable[[Path], None]] = {
    "run": made_run,
    "images": made_images,
    "comparison": made_comparison,
    "analysis": lambda folder: made([*ANALYZE, "--out", str(folder)]),
    "pilot": made_pilot,
}
CASES: dict[str, list[Case]] = {
    "run": [
        Case("*", train_words, lambda folder, out: weights(folder)),
        Case("*", sample_words, lambda folder, out: images(folder / "to")),
        Case("*", lambda folder: ["evaluate", str(folder), "--device", "cpu"], lambda folder, out: out),
    ],
    "images": [
        Case("png/*", lambda f: ["sample", str(f / "run"), *to_words(f, "png")], lambda f, out: images(f / "png")),
        Case("tar/*", lambda f: ["sample", str(f / "run"), *to_words(f, "tar")], lambda f, out: images(f / "tar")),
        Case(
            "png/*",
            lambda f: ["evaluate", str(f / "run"), "--folder", str(f / "png"), "--device", "cpu"],
            lambda f, out: out.replace(str(f), ""),
        ),
    ],
    "comparison": [
        Case(
            "*",
            lambda f: [*COMPARE, "--out", str(f), "--gather"],
            lambda f, out: (record(f, "results.json"), out.replace(str(f), "")),
        ),
        Case("results.json", lambda f: ["report", str(f), "--csv"], lambda f, out: (f / "results.csv").read_text()),
        Case("trials/**/*.png", lambda f: ["report", str(f)], lambda f, out: (f / "report.html").read_text()),
    ],
    "analysis": [
        Case(
            "*",
            lambda f: [*ANALYZE, "--out", str(f)],
            lambda f, out: (record(f, "analysis.json"), out.replace(str(f), "")),
        )
    ],
    "pilot": [
        Case(
            "out/*",
            lambda f: [*PILOT, "--data", str(f / "points.npy"), "--out", str(f / "out")],
            lambda f, out: record(f / "out", "results.json"),
        )
    ],
}


@pytest.fixture(scope="session", params=SOURCES)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The name of a kind of folder, and one such folder."""
    folder = tmp_path_factory.mktemp("fuzz") / "folder"
    SOURCES[request.param](folder)
    return request.param, folder
