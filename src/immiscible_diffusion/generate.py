"""Images from a trained model."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from immiscible_diffusion.coupling import NoiseLaw
from immiscible_diffusion.data import DataSet
from immiscible_diffusion.model.labels import dropped_labels
from immiscible_diffusion.path import Model
from immiscible_diffusion.recipe import Recipe
from immiscible_diffusion.sampler import Sampled, Sampler, Watched, guided, start_noise, strip_rows


@dataclass(frozen=True)
class Generator:
    """Makes images with the model of a recipe; image i depends on ``(seed, i)``, not on batches.

    Args:
        recipe: names path and sampler.
        dataset: for the shape of the data and the number of classes.
        device: where the model is.
        batch_size: images at a time.
        law: of the noise the model was trained on; needed by a sampler with the matched start.
    """

    recipe: Recipe
    dataset: DataSet
    device: torch.device | str = "cpu"
    batch_size: int = 512
    law: NoiseLaw | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")

    def __call__(
        self,
        model: nn.Module,
        count: int | range,
        *,
        seed: int,
        sampler: Sampler | None = None,
    ) -> Iterator[tuple[Tensor, int]]:
        """Batches ``[b, *shape]`` of ``count`` images, each with its function evaluations.

        A range names the images themselves: ranks that share a set make one each.
        """
        images = range(count) if isinstance(count, int) else count
        sampler = self.of_scaled_data(sampler or self.recipe.sampler)
        model.eval()
        for start in range(0, len(images), self.batch_size):
            rows = images[start : start + self.batch_size]
            sampled = self._sampled(self.guided(model, sampler), rows, seed, sampler)
            doubled = 1 if sampler.guidance == 1 else 2  # with the label and without
            yield self.recipe.scaling.undo(sampled.data), doubled * sampled.nfe

    def strip(
        self,
        model: nn.Module,
        count: int,
        *,
        seed: int,
        sampler: Sampler | None = None,
        columns: int = 8,
    ) -> Tensor:
        """``count`` images on their way from noise to data, as ``strip_rows`` lays them out."""
        sampler = self.of_scaled_data(sampler or self.recipe.sampler)
        watched = Watched(self.guided(model.eval(), sampler), self.recipe.noise_path)
        last = self._sampled(watched, range(count), seed, sampler).data
        return self.recipe.scaling.undo(strip_rows(watched.frames, last, columns))

    def _sampled(self, model: Model, rows: range, seed: int, sampler: Sampler) -> Sampled:
        with torch.no_grad():
            return sampler.sample(
                self.recipe.noise_path,
                model,
                self.start(sampler, seed, rows),
                cond=self.labels(rows),
                step_noise=partial(self._step_noise, seed, rows),
            )

    def start(self, sampler: Sampler, seed: int, rows: range) -> Tensor:
        """What sampling starts from, ``[len(rows), *shape]``."""
        noise = start_noise(seed, rows, self.dataset.shape, self.device)
        if sampler.start == "normal":
            return noise
        if self.law is None:
            raise ValueError("start=matched needs the law of the noise the model was trained on")
        labels = self.labels(rows)
        return self.law.color(noise, None if labels is None else labels["label"])

    def of_scaled_data(self, sampler: Sampler) -> Sampler:
        """``sampler`` with its bound on predicted data scaled as the data are."""
        if sampler.clip is None:
            return sampler
        return dataclasses.replace(sampler, clip=sampler.clip * self.recipe.scaling.factor)

    def guided(self, model: nn.Module, sampler: Sampler) -> Model:
        """``model``, pushed towards its labels if ``sampler`` asks for it."""
        classes = self.dataset.num_classes or 0
        return guided(model, sampler.guidance, lambda cond: dropped_labels(cond, classes, 1.0))

    def _step_noise(self, seed: int, rows: range, step: int) -> Tensor:
        return start_noise(seed, rows, self.dataset.shape, self.device, step)

    def labels(self, rows: range) -> dict[str, Tensor] | None:
        """For a conditional model: image i is of class i mod the number of classes."""
        classes = self.dataset.num_classes
        if not self.recipe.conditional or not classes:
            return None
        return {"label": torch.tensor([row % classes for row in rows], device=self.device)}
