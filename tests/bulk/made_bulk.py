"""Pictures that are a function of their number, and a process that makes them slowly."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from immiscible_diffusion.bulk import Plan, PngStore, Store, TarStore, run_bulk
from immiscible_diffusion.rng import keyed_generator

CLASSES = ("tench", "great white", "tench")


def picture(row: int) -> Tensor:
    return torch.rand(3, 16, 16, generator=keyed_generator(0, row)) * 2 - 1


def draw(rows: Sequence[int]) -> Tensor:
    return torch.stack([picture(row) for row in rows])


def slow(rows: Sequence[int]) -> Tensor:
    time.sleep(0.02)
    return draw(rows)


def stores(folder: Path, count: int = 25, kind: str = "both", unit: int = 10) -> list[Store]:
    plan = Plan(count, CLASSES)
    both: list[Store] = [PngStore(plan, folder), TarStore(plan, folder, unit)]
    return both if kind == "both" else [both[kind == "tar"]]


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


if __name__ == "__main__":
    run_bulk(stores(Path(sys.argv[1]), count=300, kind=sys.argv[2], unit=100), slow, batch_size=3)
