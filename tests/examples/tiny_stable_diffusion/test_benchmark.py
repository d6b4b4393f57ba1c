import argparse
import time
from pathlib import Path

import pytest
import torch

from examples.tiny_stable_diffusion.build import load_splits
from examples.tiny_stable_diffusion.evaluate import label_classifier
from fixtures.tiny_stable_diffusion import tiny_config
from immiscible_diffusion.utils.atomic_files import read_json
from immiscible_diffusion.utils.images import image_grid
from reproduce.small_stable_diffusion import __main__ as script
from reproduce.small_stable_diffusion import evaluate

SECONDS = {
    "make": {"began": 0.0, "wall": 1500.0, "cpu": 50.0},
    "independent": {"began": 1000.0, "wall": 900.0, "cpu": 20.0},
    "knn": {"began": 1200.0, "wall": 300.0, "cpu": 10.0},  # within the one before
    "judge": {"began": 9000.0, "wall": 500.0, "cpu": 10.0},  # after a pause
}


@pytest.fixture
def arguments(tmp_path):
    return argparse.Namespace(data=Path("data"), name="cifar10", out=tmp_path, scale=0.01, only=None)


def test_every_stage_is_a_command(arguments):
    from immiscible_diffusion.cli.main import COMMANDS

    found = script.stages(arguments)
    assert next(iter(found)) == "make"
    assert all(found[name][0] in COMMANDS for name in found if name != "make")
    one, other = found["independent"], found["knn"]
    steps = one.index("--steps") + 1
    assert one[steps] == other[steps]  # equal steps


def test_accuracy_reads_the_label_from_the_file_number(images, tmp_path):
    real = load_splits(tiny_config(images)).data.images
    labels = torch.arange(9) % 3
    rows = torch.tensor([(real.labels == label).nonzero()[i, 0] for i, label in enumerate(labels)])
    for number, image in enumerate(real.batch(rows).data):
        image_grid(image[None]).save(tmp_path / f"x_{number}.png")
    found = evaluate.label_accuracy(label_classifier(real), tmp_path)
    assert found["accuracy"] > 0.8
    assert found["images"] == 9
    assert len(found["by_class"]) == 3


def test_the_report_says_which_bars_are_reached(pipeline):
    figures = {
        **read_json(pipeline[0] / "figures.json"),
        "classifier": {"reconstructions": 0.4},
        "labels": {"independent": {"accuracy": 0.3}, "knn": {"accuracy": 0.1}},
    }
    text = "\n".join(script.report(figures, SECONDS))
    assert "| accuracy on labels, independent | 0.3 | 0.2 | yes |" in text
    assert "| accuracy on labels, knn | 0.1 | 0.2 | NO |" in text
    assert "| all, two at a time | 90 | 2400 |" in text
    assert "| minutes in all | 40 | <= 30 | NO |" in text


def test_stages_wait_for_what_they_need_and_run_two_at_a_time(arguments):
    every = script.stages(arguments)
    done, started, together = set(), [], []

    def run(name):
        started.append(name)
        together.append(len(started) - len(done))
        assert script.needs(name) <= done
        time.sleep(0.01)

    script.run_all(every, done, 2, run)
    assert sorted(started) == sorted(every)
    assert max(together) == 2
    with pytest.raises(SystemExit, match="finetune needs independent first"):
        script.run_all({"finetune": []}, {"make"}, 2, run)
