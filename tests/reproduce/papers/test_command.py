"""``python -m reproduce.papers``, on few points."""

import json

import pytest

from reproduce.papers.__main__ import main


def test_data_report(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--data", "digits", "--max-images", "80", "--tiny", "--out", str(out)]
    assert main([*arguments, "--coupling", "independent", "--coupling", "knn:k=4,center=mean"]) == 0
    report = json.loads((out / "papers.json").read_text())
    assert report["data"]["shape"] == [80, 1, 8, 8]
    assert report["command"].startswith("python -m reproduce.papers --data digits")
    titles = [section["title"] for section in report["sections"]]
    assert titles[0] == "Distance reduction"
    text = (out / "papers.md").read_text()
    assert all(f"## {title}\n" in text for title in titles)
    for section in report["sections"]:
        for file, _ in section["images"]:
            assert (out / file).is_file()
    assert "Gaussian fit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --data, --run, or both"),
        (["--run", "nowhere"], "nowhere is not a run folder"),
        (["--data", "digits", "--max-images", "20", "--parts", "color"], "parts must be of"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
