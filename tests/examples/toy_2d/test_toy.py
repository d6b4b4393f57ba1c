"""``immiscible toy``: figures, the strip and the animation."""

import json
import xml.etree.ElementTree as ElementTree

import pytest
import torch

from immiscible_diffusion.cli import main as cli
from immiscible_diffusion.data.in_memory import load_arrays
from immiscible_diffusion.data.toy import toy_points
from immiscible_diffusion.toy import film
from immiscible_diffusion.toy.paths import path_times
from immiscible_diffusion.toy.world import Amounts, look, plane_density

pytest.importorskip("matplotlib")
pytest.importorskip("tyro")
Image = pytest.importorskip("PIL.Image")

SMALL = ["--data", "five_points", "--probes", "32", "--batch-size", "16"]


def test_the_command_writes_figures_and_pictures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(film, "FRAMES", 2)
    names = ["independent", "knn:k=4", "transport:eps=2", "assignment"]
    wanted = [word for name in names for word in ("--coupling", name)]
    assert cli.main(["toy", *SMALL, *wanted, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in (*names, "toy.gif", "cell of the assignment's diagram"))

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
    assert torch.equal(whole.batch.data, toy_points("five_points").points)
    assert whole.batch.cond["label"].tolist() == [0, 1, 2, 3, 4]

    svg = ElementTree.parse(tmp_path / "toy.svg").getroot()
    assert svg.tag.endswith("svg")
    with Image.open(tmp_path / "toy.png") as picture:
        assert picture.width == 1800
        assert picture.convert("RGB").getpixel((2, 2)) == (255, 255, 255)
    with Image.open(tmp_path / "toy.gif") as picture:
        assert picture.n_frames == 6
        assert picture.info["loop"] == 0
        assert picture.convert("RGB").getpixel((2, 2)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "moon"], "unknown toy set 'moon'; known: eight_gaussians"),
        (["--coupling", "knm:k=4"], "unknown coupling 'knm:k=4'"),
        (["--coupling", "knn:k=4", "--coupling", "knn:k=4"], "named twice"),
        ([f"--coupling=knn:k={k}" for k in range(1, 8)], "at most 6 couplings"),
        (["--points", "3"], "at least 8 points"),
        (["--probes", "1"], "probes must be at least 2"),
    ],
)
def test_bad_input(arguments, message, tmp_path, capsys):
    assert cli.main(["toy", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_same_seed_gives_the_same_figures():
    world = toy_points("five_points")
    amounts = Amounts(probes=16, paths=4, moving=8, batch_size=8)
    one, again = (look(world, "knn:k=4", amounts) for _ in range(2))
    assert one.figures == again.figures
    other = look(world, "independent", amounts)
    assert torch.equal(one.start, other.start)
    assert torch.equal(one.rows, other.rows)


def test_destinations_are_chances_and_know_up_from_right():
    world = toy_points("five_points")
    scene = look(world, "knn:k=16", Amounts(probes=4, paths=2, moving=2, batch_size=4))
    total = scene.destinations.sum(dim=2)
    torch.testing.assert_close(total, torch.ones_like(total))
    top = int(world.points[:, 1].argmax())  # the point farthest up
    assert int(scene.destinations[-1, 60].argmax()) == top


def test_an_estimate_is_used_where_there_is_no_diagram():
    world = toy_points("eight_gaussians", 16)
    amounts = Amounts(probes=4, paths=2, moving=2, batch_size=16, batches=2)
    from immiscible_diffusion import LinearAssignment

    assert "batches" in plane_density(LinearAssignment(), world, amounts).estimate
    assert "regression" in plane_density(LinearAssignment(negate=True), world, amounts).estimate


def test_the_film_goes_out_and_back():
    shown = film.frames()
    assert shown[0].t == shown[-1].t == 0
    middle = [frame for frame in shown if frame.t == 1]
    assert [frame.back for frame in middle] == [False, True]
    out = [frame.t for frame in shown if not frame.back]
    assert out == sorted(out)
    assert film.filmed([1, 2, 3, 4, 5]) == [1, 4, 5]
    assert film.filmed([1, 2]) == [1, 2]


def test_along_reads_paths_between_their_times():
    times = path_times(10)
    paths = torch.stack([times, 2 * times], dim=1)[:, None]  # where they are says when
    for t in (1.0, 0.83, 0.5, 0.011, 0.0):
        here = film.along(paths, t)
        torch.testing.assert_close(here[-1, 0], torch.tensor([t, 2 * t]).double())
        assert bool((here[:-1, 0, 0] > t).all())
