import json
from types import SimpleNamespace

import pytest

from immiscible_diffusion.utils.atomic_files import (
    append_jsonl,
    atomic_path,
    read_json,
    read_jsonl,
    remove_unfinished,
    write_json,
    write_jsonl,
)


def write_half(path):
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError):
        write_half(path)
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["value.json"]


def test_infinity_is_not_json(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "value.json", {"a": float("inf")})
    assert not list(tmp_path.iterdir())


def test_a_last_line_cut_short_is_skipped_and_an_invalid_one_before_raises(tmp_path):
    path = tmp_path / "log.jsonl"
    assert read_jsonl(path) == []
    write_jsonl(path, [{"step": 1}])
    append_jsonl(path, {"step": 2})
    with path.open("a") as file:
        file.write('{"step": 3, "lo')
    assert [record["step"] for record in read_jsonl(path)] == [1, 2]
    path.write_text('{"step": 1}\nnonsense\n' + json.dumps({"step": 2}) + "\n")
    with pytest.raises(ValueError, match="line 2"):
        read_jsonl(path)


def test_an_error_names_the_file_that_is_not_json(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x\.json is not valid JSON"):
        read_json(tmp_path / "x.json")


def test_temporary_files_of_killed_processes_are_removed(tmp_path):
    for name in (".a.png.0123456789ab.tmp", ".b.png.0123456789ab.tmp", "a.png", ".a.png"):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path, {"a.png"})
    files = sorted(file.name for file in tmp_path.iterdir())
    assert files == [".a.png", ".b.png.0123456789ab.tmp", "a.png"]


def test_a_full_disk_says_how_much_is_missing_and_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"old")

    def write_text(*_, **__):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2**20))
    monkeypatch.setattr("pathlib.Path.write_text", write_text)
    missing = r"weights\.bin: No space left.* takes 3\.00 MiB.* 2\.00 MiB are missing"
    with pytest.raises(OSError, match=missing), atomic_path(path, 3 * 2**20) as temporary:
        temporary.write_text("new")
    assert path.read_bytes() == b"old"
