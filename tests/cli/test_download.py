import dataclasses

import pytest

from immiscible_diffusion.cli.download import download
from immiscible_diffusion.cli.main import main
from immiscible_diffusion.data import DataConfig
from immiscible_diffusion.recipes import recipe_from_name


def test_a_recipe_whose_everything_is_there(capsys):
    arguments = ["download", "digits-flow", "--tiny", "--eval.features", "pixels"]
    assert main([*arguments, "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].split(maxsplit=1) for line in lines] == [
        ["there", name] for name in ("packages", "data", "data for validation", "network", "evaluation")
    ]
    assert "digits, 256 of 1 x 8 x 8" in lines[1]


def test_the_classifier_of_the_features_is_left_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("IMMISCIBLE_CACHE", str(tmp_path))
    items = {item.name: item for item in download(recipe_from_name("digits-flow").tiny())}
    assert "held-out accuracy" in items["evaluation"].note
    before = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("*.safetensors")}
    assert before
    assert download(recipe_from_name("digits-flow").tiny())[-1] == items["evaluation"]
    after = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("*.safetensors")}
    assert after == before


def test_what_is_missing_is_named_with_what_to_do(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert main(["download", "fashion-flow", "--data.path", str(tmp_path / "absent")]) == 2
    out = capsys.readouterr().out
    lines = {line.split(":")[0] for line in out.splitlines()}
    assert {"missing  data", "missing  network and evaluation"} <= lines
    assert "absent lacks train-images-idx3-ubyte" in out
    assert "fashion-flow cannot run offline yet" in out


def test_features_that_do_not_suit_the_data_are_missing(tiny):
    task = tiny.task.replace(data=DataConfig(name="digits", labels=False))
    recipe = dataclasses.replace(tiny, task=task)
    items = {item.name: item for item in download(recipe)}
    assert items["network"].there
    assert not items["evaluation"].there
    assert "needs labels" in items["evaluation"].note or "need labels" in items["evaluation"].note


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which recipe? immiscible download RECIPE"),
        (["digit-flow"], "did you mean 'digits-flow'"),
        (["digits-flow", "--coupling", "knm"], "unknown coupling 'knm'"),
    ],
)
def test_bad_input_is_an_error_in_one_line(capsys, arguments, message):
    assert main(["download", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.strip().count("\n") == 0
    assert not captured.out
