import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from immiscible_diffusion.data.load import read_idx


def encoded(array: np.ndarray, code: int = 8) -> bytes:
    """``array`` in the idx format, written from its description."""
    head = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.tobytes()


ARRAY = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
GOOD = encoded(ARRAY)


@pytest.mark.parametrize("shape", [(24,), (2, 12), (2, 3, 4), (0, 4)])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_round_trip(tmp_path: Path, shape, suffix):
    array = ARRAY.ravel()[: np.prod(shape)].reshape(shape)
    path = tmp_path / f"images-idx-ubyte{suffix}"
    path.write_bytes(gzip.compress(encoded(array)) if suffix else encoded(array))
    read = read_idx(path)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("length", range(len(GOOD)))
def test_every_truncation_is_refused_and_names_the_file(tmp_path: Path, length):
    path = tmp_path / "cut-idx3-ubyte"
    path.write_bytes(GOOD[:length])
    with pytest.raises(ValueError, match="cut-idx3-ubyte"):
        read_idx(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (GOOD + b"\0", r"25 bytes.*\(2, 3, 4\)"),
        (b"\1" + GOOD[1:], "not an idx file"),
        (encoded(ARRAY, code=0x0D), "unsigned bytes"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "not an idx file"),
    ],
)
def test_wrong_content_is_refused(tmp_path: Path, content, says):
    path = tmp_path / "wrong"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=says):
        read_idx(path)


@pytest.mark.parametrize(
    "content",
    [gzip.compress(GOOD)[:-6], gzip.compress(GOOD)[:10] + b"\xff" * 20, GOOD, b""],
    ids=["cut", "broken stream", "not gzip", "empty"],
)
def test_broken_gzip_is_refused_and_names_the_file(tmp_path: Path, content):
    path = tmp_path / "broken-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken-ubyte\.gz"):
        read_idx(path)
