"""Files of a stranger, read by every command, import and call nothing; only ``--allow-code`` does what it names."""

import json
import shutil
import sys

import pytest

from fuzz.conftest import CASES, call, made_run, sample_words
from immiscible_diffusion.utils.atomic_files import read_jsonl, read_record, write_jsonl, write_record

PLANTED = """
import pathlib
from immiscible_diffusion import KNN

pathlib.Path({mark!r}).write_text("imported")

class Mine(KNN):
    pass
"""
COUPLINGS = ("knn:k=2", "calibrated:knn:k=2", "matched:knn:k=2", "knn:k=4", "independent", "shuffled:knn:k=4")


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """A file that exists once ``planted`` is imported, or a command is run."""
    path = tmp_path / "mark"
    (tmp_path / "planted.py").write_text(PLANTED.format(mark=str(path)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("os.system", lambda command: path.write_text(command))
    monkeypatch.delitem(sys.modules, "planted", raising=False)
    yield path
    sys.modules.pop("planted", None)


def replaced(value, name, which):
    """``value`` with ``name`` for every coupling, for every kind of a class, or for every text."""
    if isinstance(value, dict):
        hit = which == "kind" and "kind" in value
        return {key: replaced(item, name, which) for key, item in value.items()} | ({"kind": name} if hit else {})
    if isinstance(value, list):
        return [replaced(item, name, which) for item in value]
    hit = isinstance(value, str) and (which == "text" or (which == "coupling" and value in COUPLINGS))
    return name if hit else value


@pytest.mark.parametrize("name", ["planted:Mine(k=2)", "os:system(command='x')", "os:system"])
def test_names_in_files_run_nothing(source, mark, tmp_path, name):
    kind, folder = source
    copy, calls = tmp_path / "copy", 0
    for case in CASES[kind]:
        for which in ("coupling", "kind", "text"):
            shutil.copytree(folder, copy)
            for file in copy.rglob("*.json"):
                values = json.loads(file.read_text())
                if isinstance(values, dict):  # with a checksum that is right: it keeps chance away, not intent
                    write_record(file, replaced(read_record(file), name, which))
            for file in copy.rglob("*.jsonl"):
                write_jsonl(file, replaced(read_jsonl(file), name, which))
            code, _, err = call(case.argv(copy))
            assert code in (0, 2), err
            assert not mark.exists(), (case, which)
            calls += 1
            shutil.rmtree(copy)
    assert calls >= 3


def test_a_run_imports_what_the_command_line_allows(mark, tmp_path):
    run = tmp_path / "run"
    made_run(run)
    values = read_record(run / "recipe.json")
    write_record(run / "recipe.json", values | {"coupling": "calibrated:planted:Mine(k=2)"})
    for file in ("moments", "calibration", "noise_distribution"):
        (run / f"{file}.safetensors").unlink(missing_ok=True)
    words = sample_words(run)
    for allowed in ([], ["--allow-code", "planted:Other"], ["--allow-code", "os:system"]):
        code, _, err = call([*words, *allowed])
        assert code == 2
        assert "give --allow-code planted:Mine" in err
        assert not mark.exists()
    code, _, err = call([*words, "--allow-code", "planted:Mine"])
    assert code == 0, err
    assert mark.exists()


@pytest.mark.parametrize("named", [{"unet": ["planted", "Mine"]}, {"_class_name": ["planted", "Mine"]}, {}])
def test_a_pipeline_imports_nothing_of_its_own(mark, tmp_path, small_sd, named):
    folder = tmp_path / "pipeline"
    shutil.copytree(small_sd, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | named))
    shutil.copy(tmp_path / "planted.py", folder / "unet" / "planted.py")
    code, _, err = call(["sample", "--pipeline", str(folder), "--prompt", "x", "--to", str(tmp_path / "to")])
    assert code == 2
    assert "has code of its own, which is never run" in err
    assert not mark.exists()
