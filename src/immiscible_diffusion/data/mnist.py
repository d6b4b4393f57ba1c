"""The idx format of MNIST and its kin, plain or gzip."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

UNSIGNED_BYTE = 8


def read_idx(path: Path) -> np.ndarray:
    """The array of bytes in ``path``, shaped as the file says.

    Raises:
        ValueError: not an idx file of unsigned bytes, or of another length than it says.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as idx: {error}") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != UNSIGNED_BYTE:
        raise ValueError(f"{path} is not an idx file of unsigned bytes")
    rank = content[3]
    head = 4 + 4 * rank
    if len(content) < head:
        raise ValueError(f"{path} is cut short in its header")
    shape = struct.unpack(f">{rank}I", content[4:head])
    if len(content) - head != math.prod(shape):
        raise ValueError(
            f"{path} holds {len(content) - head} bytes after its header, which says {shape}"
        )
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)
