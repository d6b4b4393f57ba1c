"""Make what is missing of a plan, with any function from rows to pictures."""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from immiscible_diffusion.evaluation.bulk.store import Store
from immiscible_diffusion.utils.atomic_files import read_json, write_json
from immiscible_diffusion.utils.images import image_grid

Draw = Callable[[Sequence[int]], Tensor]
"""Rows to their pictures ``[b, 1 or 3, H, W]`` in [-1, 1]; picture i a function of i alone."""

FILE = "bulk.json"
PROMPTS = "prompts.txt"  # picture i was asked for by line i mod their number
WRITERS = 4


def run_bulk(
    stores: Sequence[Store],
    draw: Draw,
    *,
    batch_size: int = 16,
    rank: int = 0,
    world: int = 1,
    told: Callable[[int, int], None] | None = None,
) -> int:
    """Make the pictures of this process that are missing; returns how many were made.

    It may be stopped or killed at any moment: the same call goes on without a duplicate or a gap,
    with any number of processes and any batch size.

    Args:
        stores: where they go; of several, all have the same plan.
        draw: makes them.
        batch_size: pictures at a time; may differ between processes.
        rank: this process.
        world: number of processes.
        told: called with (done, of) of this process, also before the first is made.

    Raises:
        ValueError: ``draw`` returned another number of pictures, or some that are not finite.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    own = stores[0].plan.rows(math.lcm(*(store.unit for store in stores)), rank, world)
    missing = [set(store.missing(own)) for store in stores]
    todo = [row for row in own if any(row in rows for rows in missing)]
    done = len(own) - len(todo)
    tell = told or (lambda done, of: None)
    tell(done, len(own))
    with ThreadPoolExecutor(WRITERS, "png") as pool:
        for rows in _batches(todo, batch_size):
            files = list(pool.map(as_png, _checked(draw(rows), rows)))
            for store, absent in zip(stores, missing, strict=True):
                wanted = [place for place, row in enumerate(rows) if row in absent]
                store.write([rows[p] for p in wanted], [files[p] for p in wanted])
            done += len(rows)
            tell(done, len(own))
    return len(todo)


def _batches(rows: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _checked(pictures: Tensor, rows: Sequence[int]) -> Tensor:
    if pictures.ndim != 4 or len(pictures) != len(rows):
        raise ValueError(f"expected {len(rows)} pictures [B, C, H, W], got {list(pictures.shape)}")
    fine = pictures.isfinite().flatten(1).all(dim=1)
    if not bool(fine.all()):
        bad = rows[int((~fine).nonzero()[0])]
        raise ValueError(
            f"picture {bad} is not finite; sample in float32 or bfloat16, or choose another step "
            f"of the run"
        )
    return pictures


def as_png(picture: Tensor) -> bytes:
    """A picture ``[C, H, W]`` in [-1, 1] as a PNG file."""
    file = io.BytesIO()
    image_grid(picture[None]).save(file, format="PNG")
    return file.getvalue()


def missing_rows(stores: Sequence[Store]) -> int:
    """How many pictures are still to be made, by all processes together."""
    return stores[0].plan.count - min(store.there() for store in stores)


def claim(folder: Path, how: dict[str, Any]) -> None:
    """Note in ``folder`` how its pictures are made; ValueError where others are there.

    Every process may do it, as all write the same.
    """
    file = folder / FILE
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, how)
        return
    there = read_json(file)
    differ = [
        f"{name} is {there.get(name)!r} there and {how.get(name)!r} here"
        for name in sorted(there.keys() | how.keys())
        if there.get(name) != how.get(name)
    ]
    if differ:
        raise ValueError(
            f"{folder} holds pictures made otherwise: {'; '.join(differ)}; choose another --out"
        )
