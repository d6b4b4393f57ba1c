"""A folder of many samples, as FID takes: resumable, and shared by any number of processes."""

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from immiscible_diffusion.evaluation.sample_writers import SampleWriter
from immiscible_diffusion.utils.atomic_files import read_record, write_record
from immiscible_diffusion.utils.images import image_grid
from immiscible_diffusion.utils.progress import Progress

SETTINGS = "sampling.json"


def generate_folder(
    writer: SampleWriter,
    draw: Callable[[Sequence[int]], Tensor],
    *,
    batch_size: int = 16,
    rank: int = 0,
    world: int = 1,
    quiet: bool = True,
) -> int:
    """Make the images of process ``rank`` of ``world`` that are missing; return how many were made.

    The call may be stopped or killed at any moment: the same call resumes without a duplicate or a gap, with any
    number of processes and any batch size.

    The ``writer`` says which images, and keeps them; ``draw`` makes ``[b, 1 or 3, H, W]`` in [-1, 1] of b indices, and
    image i must be a function of i.

    Raises:
        ValueError: ``draw`` returned another number of images, or some that are not finite.
    """
    if batch_size < 1 or not 0 <= rank < world:
        raise ValueError(f"expected batch_size >= 1 and 0 <= rank < world, got {batch_size}, {rank}, {world}")
    groups = list(writer.missing(rank, world))
    total, done = sum(len(indices) for indices, _ in groups), 0
    bar = Progress(total, 0, "sampling", unit="image", quiet=quiet)
    with bar, ThreadPoolExecutor(4, "png") as pool:
        for indices, shard in groups:
            files: dict[int, bytes] = {}
            for start in range(0, len(indices), batch_size):
                batch = indices[start : start + batch_size]
                images = draw(batch)
                _check(images, batch)
                files |= zip(batch, pool.map(_png, images), strict=True)
                done += len(batch)
                bar.update(done)
                if shard is None or len(files) == len(indices):
                    writer.write(files, shard)
                    files = {}
    return done


def _check(images: Tensor, indices: Sequence[int]) -> None:
    if images.ndim != 4 or len(images) != len(indices):
        raise ValueError(f"expected {len(indices)} images [B, C, H, W], got {list(images.shape)}")
    finite = images.isfinite().flatten(1).all(dim=1).tolist()
    if not all(finite):
        raise ValueError(
            f"image {indices[finite.index(False)]} is not finite; sample in float32 or bfloat16, "
            f"or choose another step of the run"
        )


def _png(image: Tensor) -> bytes:
    file = io.BytesIO()
    image_grid(image[None]).save(file, format="PNG")
    return file.getvalue()


def claim_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Note in ``folder`` how its images are made; ValueError if it holds images made otherwise, or not known how."""
    file = folder / SETTINGS
    if any(path.suffix in (".png", ".tar") for path in folder.glob("*")):
        before = read_record(file) if file.is_file() else {}
        differences = [
            f"{name} is {before.get(name)!r} there and {settings.get(name)!r} here"
            for name in sorted(before.keys() | settings.keys())
            if before.get(name) != settings.get(name)
        ]
        if differences:
            raise ValueError(f"{folder} holds images made otherwise: {'; '.join(differences)}; choose another folder")
    write_record(file, settings)  # every process may, as all write the same
