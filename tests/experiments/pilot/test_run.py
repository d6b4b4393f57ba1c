import json

import numpy as np
import pytest
import torch

from immiscible_diffusion.cli.main import main
from immiscible_diffusion.data.in_memory import InMemoryData
from immiscible_diffusion.experiments.pilot.prepared import Prepared
from immiscible_diffusion.experiments.pilot.records import Store
from immiscible_diffusion.experiments.pilot.run import Probe, Settings
from immiscible_diffusion.utils.atomic_files import read_json, write_json
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.signals import Interrupted

CPU = torch.device("cpu")
SHORT = ["--seeds", "3", "--steps", "6", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def ring(tmp_path_factory):
    random = np.random.default_rng(0)
    angle = random.integers(0, 8, 200) * np.pi / 4
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1) + 0.1 * random.normal(size=(200, 2))
    path = tmp_path_factory.mktemp("data") / "ring.npy"
    np.save(path, points.astype(np.float32))
    return path


def probe(*options) -> int:
    return main(["pilot", *map(str, options)])


def test_a_probe_end_to_end_within_seconds(ring, tmp_path, capsys):
    out = tmp_path / "out"
    assert probe("--data", ring, "--out", out, *SHORT) == 0
    said = capsys.readouterr().out
    found = read_json(out / "probe.json")
    assert said.startswith(found["sentence"])
    assert found["verdict"] in ("helps", "costs", "none", "too little")
    assert found["sentence"].startswith(("helps by", "costs", "no effect", "too little"))
    assert found["seeds_finished"] == [0, 1, 2]
    arms = {point["arm"] for cell in found["cells"] for point in cell["points"]}
    assert len(arms) == 5
    assert len(found["comparisons"]) == 4
    page = (out / "probe.html").read_text()
    assert "No promise for large models" in page
    assert found["sentence"] in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert json.dumps(found)


def test_a_killed_probe_goes_on_to_the_same_end(ring, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert probe("--data", ring, "--out", whole, *SHORT) == 0
    assert probe("--data", ring, "--out", killed, *SHORT) == 0
    cells = read_json(killed / "cells.json")
    write_json(killed / "cells.json", cells[:4])  # as if killed in the fifth
    assert probe("--data", ring, "--out", killed, *SHORT) == 0
    first, second = (read_json(folder / "probe.json") for folder in (whole, killed))
    assert first["sentence"] == second["sentence"]
    assert first["comparisons"] == second["comparisons"]
    points = [[cell["points"] for cell in found["cells"]] for found in (first, second)]
    assert points[0] == points[1]


def prepared(count=200, *shape, **parts):
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(count, *(shape or (3,)), generator=generator)
    return Prepared.of(InMemoryData("mine", "", Batch(data, **parts)))


def made(data, folder, **settings):
    short = {"seeds": 3, "steps": 4} | settings
    return Probe(data, Settings(**short), Store(folder), device=CPU, quiet=True)


def test_a_question_is_of_all_data_conditions_and_the_mask(tmp_path):
    data = prepared(400).batch.data
    later, label = data.clone(), torch.arange(400) % 3
    later[300] += 1
    mask = torch.ones(400, 1, dtype=torch.bool)
    parts = [
        (data, {"label": label}, None),
        (later, {"label": label}, None),
        (data, {"label": label.flip(0)}, None),
        (data, {"label": label}, mask),
    ]
    wholes = [InMemoryData("mine", "", Batch(*each)) for each in parts]
    asked = [made(Prepared.of(whole, ("label",)), tmp_path).asked["data"] for whole in wholes]
    assert len(set(asked)) == 4
    assert made(Prepared.of(wholes[0], ("label",)), tmp_path).asked["data"] == asked[0]


def test_couplings_share_all_but_the_noise(tmp_path):
    """KNN with one candidate is no pairing, bit for bit: so is every distance."""
    outcome = made(prepared(), tmp_path, coupling="knn:k=1", matched=False)
    assert outcome.run().verdict.kind in ("none", "too little")
    cells = Store(tmp_path).cells()
    values = {cell.coupling: [p.distance for p in cell.points] for cell in cells if cell.seed == 1}
    assert values["knn:k=1"] == values["independent"]
    assert values["shuffled:knn:k=1"] != values["independent"]


def test_a_signal_keeps_what_is_finished(tmp_path):
    import os
    import signal

    running = made(prepared(), tmp_path)
    calls = []
    original = running.store.keep

    def keep(cells):
        original(cells)
        calls.append(len(cells))
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    running.store.keep = keep
    with pytest.raises(Interrupted, match="goes on from there"):
        running.run()
    assert len(Store(tmp_path).cells()) == 2


def test_when_the_minutes_are_over_whole_seeds_count(tmp_path):
    running = made(prepared(), tmp_path, minutes=1e-4)
    outcome = running.run()
    assert outcome.verdict.kind == "too little"
    assert "seeds were finished" in outcome.verdict.sentence


def test_too_little_time_says_how_many_minutes_would_do(tmp_path):
    outcome = made(prepared(), tmp_path, minutes=1e-3, seeds=None, steps=None).run()
    assert outcome.verdict.sentence.startswith("too little time to tell")
    assert "minutes would" in outcome.verdict.sentence
    assert not (tmp_path / "plan.json").exists()


def test_too_little_data(tmp_path):
    said = made(prepared(40), tmp_path).run().verdict.sentence
    assert said.startswith("too little data to tell: 40")


def test_windows_with_masks_and_conditions(tmp_path):
    path = tmp_path / "windows.npz"
    random = np.random.default_rng(0)
    mask = np.ones((100, 6, 1), bool)
    mask[::2, 4:] = False
    np.savez(
        path,
        action=random.normal(size=(100, 6, 2)).astype(np.float32),
        obs=random.normal(size=(100, 5)).astype(np.float32),
        valid=mask,
    )
    out = tmp_path / "out"
    named = ["--array", "action", "--cond", "obs", "--mask", "valid"]
    assert probe("--data", path, *named, "--out", out, *SHORT) == 0
    found = read_json(out / "probe.json")
    assert found["data"]["conditions"] == ["obs"]
    assert found["data"]["masked"]
    assert len(found["comparisons"]) == 2  # the law of noise is not measured under masks


def test_images_have_samples_on_the_page(tmp_path):
    path = tmp_path / "images.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (80, 1, 8, 8)).astype(np.uint8))
    out = tmp_path / "out"
    assert probe("--data", path, "--out", out, "--coupling", "assignment", *SHORT) == 0
    assert (out / "samples" / "assignment_20.png").is_file()
    page = (out / "probe.html").read_text()
    assert page.count("data:image/png") == 2 * 3 + 1
    assert ">missing<" not in page


def test_a_dry_run_writes_nothing(ring, tmp_path, capsys):
    out = tmp_path / "out"
    assert probe("--data", ring, "--out", out, "--dry-run", *SHORT) == 0
    assert "3 seeds of 6 steps" in capsys.readouterr().out
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--coupling", "independent"], "name the coupling itself"),
        (["--coupling", "shuffled:knn:k=4"], "name the coupling itself"),
        (["--coupling", "knn:j=4"], "knn:j=4"),
        (["--coupling", "assignment:pool=4"], "leave out pool"),
        (["--minutes", "0"], "minutes must be above 0"),
        (["--budget", "0"], "sampling_steps"),
        (["--cond", "state"], "state"),
        (["--network", "unet"], "--network mlp"),
        (["--seeds", "0"], "seeds must be at least 1"),
    ],
)
def test_bad_input_is_one_line(ring, tmp_path, capsys, options, said):
    assert probe("--data", ring, "--out", tmp_path / "out", *SHORT, *options) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_a_folder_holds_one_question(ring, tmp_path, capsys):
    out = tmp_path / "out"
    assert probe("--data", ring, "--out", out, *SHORT) == 0
    assert probe("--data", ring, "--out", out, *SHORT, "--coupling", "knn:k=4") == 2
    assert "another question (coupling: knn:k=16 -> knn:k=4)" in capsys.readouterr().err
