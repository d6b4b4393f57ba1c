"""Validation loss on fixed independent noise and times, comparable across steps and couplings."""

import warnings
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from immiscible_diffusion.data import DataConfig, DataSet
from immiscible_diffusion.training.task import Task
from immiscible_diffusion.utils.batch import Cond
from immiscible_diffusion.utils.random import RandomStreams

VALIDATION_SAMPLES = 512
HAVE_TEST_SPLIT = ("cifar10", "fashion_mnist")


class ValidationBatch(NamedTuple):
    """What a loss takes after model and path."""

    data: Tensor
    noise: Tensor
    t: Tensor
    cond: Cond | None
    mask: Tensor | None


def validation_batches(task: Task) -> tuple[list[ValidationBatch], str]:
    """Draw up to 512 samples with noise and times, the same for every coupling and seed.

    Returns them as training sees them, and the name of their split: ``test`` where the data have one, ``train``
    otherwise.
    """
    dataset, split = task.validation_data()
    streams, conditional = RandomStreams(0, rank=0), task.recipe.conditional
    rows = dataset.common_rows()
    rows = rows[torch.randperm(len(rows), generator=streams.order)[:VALIDATION_SAMPLES]]
    encode = RandomStreams(0, rank=0, device=task.device).encode
    size = task.max_batch_size or VALIDATION_SAMPLES
    batches = [task.encode(dataset.batch(part), encode) for part in rows.split(size)]
    noise = torch.randn((len(rows), *batches[0].data.shape[1:]), generator=streams.noise)
    t = task.recipe.path.sample_time(len(rows), generator=streams.time)
    drawn = zip(noise.to(task.device).split(size), t.to(task.device).split(size), strict=True)
    return [
        ValidationBatch(batch.data, n, t, batch.cond if conditional else None, batch.mask)
        for batch, (n, t) in zip(batches, drawn, strict=True)
    ], split


def validation_config(data: DataConfig) -> DataConfig:
    """Return which images of the test split are validated on: the first, in memory."""
    return replace(data, split="test", max_samples=VALIDATION_SAMPLES, stream=False, on_error="raise")


def held_out_or_training(task: Task, data: DataConfig) -> tuple[DataSet, str]:
    """Return the test split of ``data`` if there is one, else what ``task`` trains on."""
    if data.name in HAVE_TEST_SPLIT and data.split == "train" and not task.dataset.is_encoded:
        try:
            return task.load_data("validation"), "test"
        except ValueError as error:  # a local folder without a test split, say
            warnings.warn(f"validation uses training data: {error}", stacklevel=2)
    return task.dataset, data.split
