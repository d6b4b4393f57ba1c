"""Pictures written for a test, and the bytes that a data set makes of them."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from immiscible_diffusion.data import DataConfig, DataSet, load_images

Image = pytest.importorskip("PIL.Image", reason="pictures are read with Pillow")
datasets = pytest.importorskip("datasets", reason="pictures are read with datasets")


def noise(count: int, height: int = 6, width: int = 6, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def save(array: np.ndarray, path: Path, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def encoded(array: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind)
    return file.getvalue()


def write_parquet(
    path: Path, arrays: Sequence[np.ndarray], labels: Any = None, kind: str = "PNG", **columns: Any
) -> Path:
    """A parquet file of pictures as the hub has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    features = {"img": datasets.Image()}
    content: dict[str, Any] = {
        "img": [{"bytes": encoded(array, kind), "path": None} for array in arrays]
    }
    if labels is not None:
        content["label"], features["label"] = labels
    features |= {name: kind for name, (_, kind) in columns.items()}
    content |= {name: values for name, (values, _) in columns.items()}
    table = datasets.Dataset.from_dict(content, datasets.Features(features))
    table.to_parquet(path)
    return path


def whole_numbers(values: Sequence[int | None]) -> tuple[Any, Any]:
    return values, datasets.Value("int64")


def folder(path: Path, **options: Any) -> DataSet:
    return load_images(DataConfig("folder", path=str(path), **options))


def pixels(dataset: DataSet) -> Tensor:
    """All images ``[N, H, W, C]`` as the bytes they came from."""
    data = dataset.batch(torch.arange(len(dataset))).data
    return ((data + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)


def labels_of(dataset: DataSet) -> list[int]:
    cond = dataset.batch(torch.arange(len(dataset))).cond
    assert cond is not None
    return cond["label"].tolist()
