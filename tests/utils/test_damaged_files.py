"""Every flipped bit of a file that is read again is found."""

import json

import pytest
import torch

from helpers import generator
from immiscible_diffusion.utils.atomic_files import append_jsonl, read_jsonl, read_record, write_record
from immiscible_diffusion.utils.png import is_whole_png
from immiscible_diffusion.utils.tensor_files import load_tensors, save_tensors

VALUES = {"name": "ünï", "steps": 8, "lr": 2e-4, "nested": {"10": [1, None, True], "9": ()}}
TENSORS = {"a": torch.randn(3, 4, generator=generator()), "b": torch.arange(3), "c": torch.ones(2).bfloat16()}


def flips(path, step=1):
    """The file with one bit flipped, at every ``step``-th byte in turn."""
    whole = path.read_bytes()
    for at in range(0, len(whole), step):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        yield at
    path.write_bytes(whole)


def unless_damaged(read, path):
    """What ``read`` returns, or None where it says that the file is damaged."""
    try:
        return read(path)
    except ValueError as error:
        if str(path) not in str(error):
            raise
        return None


def test_a_record(tmp_path):
    path = tmp_path / "record.json"
    write_record(path, VALUES)
    expected = json.loads(json.dumps(VALUES))
    assert read_record(path) == expected
    for _ in flips(path):  # of the key of the checksum and of white space no harm comes
        if (found := unless_damaged(read_record, path)) is not None:
            assert {**found, **expected} == found
            assert len(found) - len(expected) <= 1
    path.write_text(json.dumps(VALUES))  # of an older release
    assert read_record(path) == expected


@pytest.mark.parametrize(
    "text", ["", "[]", "1", '"x"', "NaN", '{"a": Infinity}', "[" * 10**5, '{"a":' * 10**4, "\ufffe"]
)
def test_what_is_no_record(tmp_path, text):
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"x\.json"):
        read_record(tmp_path / "x.json")
    (tmp_path / "x.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ValueError, match=r"x\.json"):
        read_record(tmp_path / "x.json")


def test_a_record_of_a_later_release(tmp_path):
    (tmp_path / "x.json").write_text('{"a": 1, "checksum": "2-00000000"}')
    with pytest.raises(ValueError, match="another release"):
        read_record(tmp_path / "x.json")


def test_a_log(tmp_path):
    path = tmp_path / "log.jsonl"
    records = [{"kind": "quality", "step": step, "frechet": 1.25 * step} for step in range(3)]
    for record in records:
        append_jsonl(path, record)
    assert read_jsonl(path) == records
    for _ in flips(path):
        if (found := unless_damaged(read_jsonl, path)) is not None:
            assert [{**one, **record} for one, record in zip(found, records, strict=True)] == found
    whole = path.read_bytes()
    for end in range(len(whole) - 20, len(whole) - 1):  # a process killed while it writes
        path.write_bytes(whole[:end])
        assert read_jsonl(path) == records[:2]


def test_tensors(tmp_path):
    path = tmp_path / "x.safetensors"
    about = {"step": "8", "note": "of two", "z": ""}
    save_tensors(path, TENSORS, about)
    first = path.read_bytes()
    save_tensors(path, TENSORS, about)
    assert path.read_bytes() == first  # equal content, equal bytes
    for _ in flips(path):
        if (found := unless_damaged(load_tensors, path)) is not None:
            tensors, texts = found
            assert {**texts, **about} == texts
            assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())


def test_an_image(tmp_path):
    image = pytest.importorskip("PIL.Image").new("RGB", (5, 4), (10, 200, 30))
    path = tmp_path / "x.png"
    image.save(path)
    whole = path.read_bytes()
    assert is_whole_png(whole)
    assert not any(is_whole_png(path.read_bytes()) for _ in flips(path))
    assert not any(is_whole_png(whole[:end]) for end in range(len(whole)))
    assert not is_whole_png(whole + b"\0")
