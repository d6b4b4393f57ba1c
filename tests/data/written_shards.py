"""Tar shards of pictures whose colour and caption is their number."""

import io
import tarfile
from pathlib import Path

import numpy as np
from written_pictures import encoded

PER_SHARD = 6


def write_tar(path: Path, samples: dict[str, dict[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = "w:gz" if path.suffix == ".gz" else "w"
    with tarfile.open(path, opened) as tar:  # type: ignore[call-overload]
        for key, members in samples.items():
            for extension, content in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size, info.mtime = len(content), 0.5  # as webdataset: a pax header each
                tar.addfile(info, io.BytesIO(content))
    return path


def write_shards(folder: Path, shards: int, ending: str = "tar") -> list[Path]:
    """Sample number n says n and has the constant colour n."""
    paths = []
    for shard in range(shards):
        samples = {}
        for n in range(shard * PER_SHARD, (shard + 1) * PER_SHARD):
            colour = np.full((5, 7, 3), n, dtype=np.uint8)
            samples[f"set/{n:05d}"] = {"png": encoded(colour), "txt": str(n).encode()}
        paths.append(write_tar(folder / f"shard-{shard:03d}.{ending}", samples))
    return paths
