import json
import os
import signal
from itertools import product

import numpy as np
import pytest
import torch

from immiscible_diffusion.cli.main import main
from immiscible_diffusion.data.in_memory import InMemoryData
from immiscible_diffusion.experiments.pilot.data import Samples
from immiscible_diffusion.experiments.pilot.run import Pilot, Settings
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.training.trainer import Trainer
from immiscible_diffusion.utils.atomic_files import read_json
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.signals import Interrupted
from tests.helpers import generator

CPU = torch.device("cpu")
SHORT = ["--seeds", "3", "--steps", "4", "--device", "cpu"]


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


def pilot(*options) -> int:
    return main(["pilot", *map(str, options)])


def samples(count=200):
    data = torch.randn(count, 3, generator=generator())
    return Samples.of(InMemoryData("mine", "", Batch(data)))


def made(folder, *, count=200, **settings):
    short = {"seeds": 3, "steps": 4} | settings
    return Pilot(samples(count), Settings(**short), folder, CPU, quiet=True)


def scores(folder):
    """Every score of every trial."""
    paths = sorted((folder / "trials").glob("*/seed*"))
    assert paths
    return {
        f"{path.parent.name}/{path.name}": [
            (r["step"], r["sampling_steps"], r["frechet"]) for r in RunDir(path).records("quality")
        ]
        for path in paths
    }


@pytest.fixture
def interrupted(monkeypatch):
    """Run a pilot that gets a SIGTERM after its training step ``number``."""

    def run(pilot, number):
        calls, original = [], Trainer.after_step

        def after_step(self, *arguments):
            original(self, *arguments)
            calls.append(self.step)
            if len(calls) == number:
                os.kill(os.getpid(), signal.SIGTERM)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "after_step", after_step)
            with pytest.raises(Interrupted, match="the same command resumes"):
                pilot.run()

    return run


def test_a_pilot_end_to_end_within_seconds(ring, tmp_path, capsys):
    out = tmp_path / "out"
    assert pilot("--data", ring, "--out", out, *SHORT) == 0
    text, record = capsys.readouterr().out, read_json(out / "pilot.json")
    assert text.startswith(record["sentences"][0])
    assert record["kind"] in ("helps", "costs", "none", "too little")
    assert record["seeds"] == [0, 1, 2]
    assert len(scores(out)) == 5 * 3
    effects = {(e["coupling"], e["sampling_steps"]) for e in record["effects"]}
    assert effects == set(product(("knn:k=4", "matched:knn:k=4"), (5, 20)))
    page = (out / "pilot.html").read_text()
    assert "No promise for large models" in page
    assert record["sentences"][0] in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert json.dumps(record)
    assert main(["report", str(out)]) == 0  # it is a comparison like any other


def test_a_killed_pilot_goes_on_to_the_same_end(tmp_path, interrupted):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = made(whole).run()
    interrupted(made(killed), 4 * 2 + 2)  # in the middle of the third training of four steps
    assert len(list(killed.rglob("finished.json"))) == 3  # two, and one from the matched start
    outcome = made(killed).run()
    assert scores(killed) == scores(whole)
    assert outcome.verdict.sentences[0].partition("about")[0] == (expected.verdict.sentences[0].partition("about")[0])
    assert outcome.verdict.effects == expected.verdict.effects


def test_couplings_share_all_but_the_noise(tmp_path):
    """KNN with one candidate is no pairing, bit for bit: so is every distance."""
    made(tmp_path, coupling="knn:k=1", matched=False).run()
    values = scores(tmp_path)
    assert len(values) == 9
    assert values["knn-k=1/seed1"] == values["independent/seed1"]
    assert values["shuffled-knn-k=1/seed1"] != values["independent/seed1"]


def test_when_the_minutes_are_over_whole_seeds_count(tmp_path):
    outcome = made(tmp_path, minutes=1e-4).run()
    assert outcome.verdict.kind == "too little"
    assert "of at least 3 seeds were finished" in outcome.verdict.sentences[0]
    assert outcome.verdict.seeds == ()


def test_a_seed_counts_when_all_couplings_have_finished_it(tmp_path, interrupted):
    interrupted(made(tmp_path, matched=False), 4 * 4 + 2)  # in the second seed's second training
    pilot = made(tmp_path, matched=False)
    pilot.train_all = lambda plan: None
    assert pilot.run().verdict.seeds == (0,)


def test_too_little_time_says_how_many_minutes_would_do(tmp_path):
    outcome = made(tmp_path, minutes=1e-3, seeds=None, steps=None).run()
    assert outcome.verdict.sentences[0].startswith("too little time to tell")
    assert "minutes would" in outcome.verdict.sentences[0]
    assert not (tmp_path / "plan.json").exists()


def test_too_little_data(tmp_path):
    text = made(tmp_path, count=40).run().verdict.sentences[0]
    assert text.startswith("too little data to tell: 40")


def test_windows_with_masks_and_conditions(tmp_path):
    path, out = tmp_path / "windows.npz", tmp_path / "out"
    random = np.random.default_rng(0)
    mask = np.ones((100, 6, 1), bool)
    mask[::2, 4:] = False
    np.savez(
        path,
        action=random.normal(size=(100, 6, 2)).astype(np.float32),
        obs=random.normal(size=(100, 5)).astype(np.float32),
        valid=mask,
    )
    named = ["--array", "action", "--cond", "obs", "--mask", "valid"]
    assert pilot("--data", path, *named, "--out", out, *SHORT) == 0
    record = read_json(out / "pilot.json")
    assert record["data"]["conditions"] == ["obs"]
    assert record["data"]["masked"]
    assert len(record["effects"]) == 2  # the distribution of noise is not measured under masks


def test_images_have_samples_on_the_page(tmp_path):
    path, out = tmp_path / "images.npy", tmp_path / "out"
    np.save(path, np.random.default_rng(0).integers(0, 256, (80, 1, 8, 8)).astype(np.uint8))
    assert pilot("--data", path, "--out", out, "--coupling", "assignment", *SHORT) == 0
    page = (out / "pilot.html").read_text()
    assert page.count("data:image/png") == 3 + 1
    assert ">missing<" not in page


def test_a_dry_run_writes_nothing(ring, tmp_path, capsys):
    out = tmp_path / "out"
    assert pilot("--data", ring, "--out", out, "--dry-run", *SHORT) == 0
    assert "3 seeds of 4 steps" in capsys.readouterr().out
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--coupling", "independent"], "name the coupling itself"),
        (["--coupling", "shuffled:knn:k=4"], "name the coupling itself"),
        (["--coupling", "knn:j=4"], "knn:j=4"),
        (["--coupling", "assignment:cond_key=obs"], "obs"),
        (["--minutes", "0"], "minutes must be > 0"),
        (["--sampling_steps", "0"], "sampling_steps"),
        (["--budget", "5"], "sampling-steps"),
        (["--cond", "state"], "state"),
        (["--network", "unet"], "--network mlp"),
        (["--seeds", "0"], "seeds must be >= 1"),
    ],
)
def test_bad_input_is_one_line(ring, tmp_path, capsys, options, text):
    assert pilot("--data", ring, "--out", tmp_path / "out", *SHORT, *options) == 2
    error = capsys.readouterr().err
    assert text in error
    assert "Traceback" not in error


def test_a_folder_holds_one_question(tmp_path):
    made(tmp_path, minutes=1e-4).run()
    with pytest.raises(ValueError, match=r"another question \(coupling: knn:k=4 -> knn:k=8\)"):
        made(tmp_path, minutes=1e-4, coupling="knn:k=8").run()
