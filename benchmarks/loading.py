"""How fast images are decoded by worker processes, and by the threads of a stream.

    OMP_NUM_THREADS=1 python benchmarks/loading.py --markdown FILE

JPEG files of 500 x 375, resized to 256. By turns, each arm makes its batches as training asks for them, the first of
which is not timed; the figure is its best round, since other work on the machine only slows it down. Exits with 1
when the bar is missed: two processes are at least 1.8 times as fast as one (on two idle cores).
"""

import argparse
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import torch
from coupling_cost import image_like, machine
from PIL import Image

from immiscible_diffusion.data import DataConfig, load_images
from immiscible_diffusion.data.streaming import open_stream
from immiscible_diffusion.utils.batch import Batch

BATCH, BAR = 32, 1.8


def write_images(folder: Path, count: int) -> None:
    """JPEG files in ``folder``/files, and the same in a tar."""
    (folder / "files").mkdir()
    with tarfile.open(folder / "shard.tar", "w") as tar:
        for number, field in enumerate(image_like(count, 3 * 500 * 500)):
            pixels = field.view(3, 500, 500)[:, :375].permute(1, 2, 0)
            file = folder / "files" / f"{number}.jpg"
            Image.fromarray((127.5 + 64 * pixels).clamp(0, 255).byte().numpy()).save(file, quality=90)
            tar.add(file, file.name)


def arms(folder: Path) -> dict[str, Iterator[Batch]]:
    """Endless batches of every arm, not begun."""
    images = load_images(DataConfig("folder", path=str(folder / "files"), size=256, in_memory_gib=0))
    stream = open_stream(DataConfig("folder", path=str(folder / "shard.tar"), size=256, shuffle_buffer=BATCH))
    made = {f"{n} processes": images.batches(BATCH, 0, ahead=0, num_workers=n) for n in (0, 1, 2)}
    return made | {f"stream, {n} threads": stream.batches(BATCH, 0, ahead=0, num_workers=n) for n in (1, 2)}


def rates(folder: Path, rounds: int, batches: int) -> dict[str, float]:
    """Images a second of every arm, in its best round."""
    best: dict[str, float] = {}
    for _ in range(rounds):
        for name, made in arms(folder).items():
            with closing(made):
                next(made)
                began = time.perf_counter()
                number = sum(len(batch) for batch in islice(made, batches))
                best[name] = max(best.get(name, 0.0), number / (time.perf_counter() - began))
    return best


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=20, help=f"of {BATCH} images, a round and an arm (20)")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--markdown", type=Path, help="write the table here")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), options.images)
        best = rates(Path(folder), options.rounds, options.batches)
    ratio = best["2 processes"] / best["1 processes"]
    lines = ["| decoded by | images a second |", "|---|--:|"]
    lines += [f"| {name} | {rate:.0f} |" for name, rate in best.items()]
    verdict = "PASS" if ratio >= BAR else "FAIL"
    where = ", ".join(f"{key} {value}" for key, value in machine(options.rounds).items())
    lines += ["", f"Two processes over one: {ratio:.2f} (bar {BAR}): {verdict}. {where}."]
    print("\n".join(lines))
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n")
    return int(ratio < BAR)


if __name__ == "__main__":
    sys.exit(main())
