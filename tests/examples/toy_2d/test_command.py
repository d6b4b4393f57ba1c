"""``python -m examples.toy_2d``: figures, the picture and the animation."""

import json
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from PIL import Image

from examples.toy_2d import animation
from examples.toy_2d.__main__ import main
from examples.toy_2d.data import toy_data
from examples.toy_2d.result import path_times
from immiscible_diffusion.data.in_memory import load_arrays


def test_the_command_writes_figures_and_pictures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(animation, "FRAMES", 4)
    names = ["independent", "knn:k=4", "gaussian_ot:eps=2", "assignment"]
    arguments = ["--data", "five_points", "--probes", "32", "--batch-size", "16"]
    arguments += [word for name in names for word in ("--coupling", name)]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in (*names, "cell of the assignment's diagram"))

    record = json.loads((tmp_path / "toy.json").read_text())
    assert record["data"] == {"name": "five_points", "points": 5, "groups": 5}
    first, knn, _, assignment = record["couplings"]
    assert first["effective_points"]["value"] == pytest.approx(5)
    assert knn["effective_points"]["value"] < 5
    assert knn["irreducible_loss"]["value"] < first["irreducible_loss"]["value"]
    assert first["straightness"] > 1
    assert len(first["miscibility"]["levels"]) == 20
    assert [one["estimate"] == "" for one in record["couplings"]] == [True, True, True, False]
    assert assignment["own_group"] > first["own_group"]

    whole = load_arrays(tmp_path / "toy.npz", cond=("label",))
    assert torch.equal(whole.batch.data, toy_data("five_points").points)
    assert whole.batch.cond["label"].tolist() == [0, 1, 2, 3, 4]

    assert ElementTree.parse(tmp_path / "toy.svg").getroot().tag.endswith("svg")
    with Image.open(tmp_path / "toy.png") as image:
        assert image.width == 1530
        assert image.convert("RGB").getpixel((2, 2)) == (255, 255, 255)
    with Image.open(tmp_path / "toy.gif") as image:
        assert image.n_frames == 10
        assert image.info["loop"] == 0
        assert image.convert("RGB").getpixel((2, 2)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "moon"], "unknown toy set 'moon'; known: eight_gaussians"),
        (["--coupling", "knm:k=4"], "unknown coupling 'knm:k=4'"),
        (["--coupling", "knn:k=4", "--coupling", "knn:k=4"], "each once"),
        ([f"--coupling=knn:k={k}" for k in range(1, 8)], "at most 6 couplings"),
        (["--points", "3"], "at least 8 points"),
        (["--probes", "1"], "probes must be at least 2"),
    ],
)
def test_bad_input(arguments, message, tmp_path, capsys):
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_animation_goes_out_and_back():
    frames = animation.frames()
    assert frames[0][0] == frames[-1][0] == 0
    assert [back for t, back, *_ in frames if t == 1] == [False, True]
    out = [t for t, back, *_ in frames if not back]
    assert out == sorted(out)


def test_paths_are_read_between_their_times():
    times = path_times(10)
    paths = torch.stack([times, 2 * times], dim=1)[:, None]  # the place says the time
    for t in (1.0, 0.83, 0.5, 0.011, 0.0):
        here = animation.path_until(paths, t)
        torch.testing.assert_close(here[-1, 0], torch.tensor([t, 2 * t]).double())
        assert bool((here[:-1, 0, 0] > t).all())
