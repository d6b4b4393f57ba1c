"""Images from a trained model."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from immiscible_diffusion.couplings import NoiseDistribution
from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.diffusion.paths import Cond, Model
from immiscible_diffusion.diffusion.samplers import (
    RecordingModel,
    SamplerConfig,
    SamplerOutput,
    guided,
    start_noise,
    trajectory_grid,
)
from immiscible_diffusion.evaluation.conditions import Told
from immiscible_diffusion.training.codec import Codec
from immiscible_diffusion.training.pixels import Pixels
from immiscible_diffusion.training.recipe import Recipe


@dataclass(frozen=True)
class Generator:
    """Makes images with the model of a recipe; image i depends on ``(seed, i)``, not on batches.

    Args:
        recipe: names path and sampler.
        dataset: for the shape of the data, the number of classes and what can be said.
        device: where the model is.
        batch_size: images at a time.
        law: of the noise the model was trained on; needed by a sampler with the matched start.
        codec: makes pictures of what is sampled.
        prompts: what a network told by text is to show, instead of what the data say.
    """

    recipe: Recipe
    dataset: DataSet
    device: torch.device | str = "cpu"
    batch_size: int = 512
    law: NoiseDistribution | None = None
    codec: Codec = field(default_factory=Pixels)
    prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")

    def __call__(
        self,
        model: nn.Module,
        count: int | range,
        *,
        seed: int,
        sampler: SamplerConfig | None = None,
    ) -> Iterator[tuple[Tensor, int]]:
        """Batches ``[b, *shape]`` of ``count`` images, each with its function evaluations.

        A range names the images themselves: ranks that share a set make one each.
        """
        images = range(count) if isinstance(count, int) else count
        size = min(self.batch_size, self.codec.at_once)
        for start in range(0, len(images), size):
            rows = images[start : start + size]
            sampled = self.of_rows(model, rows, seed=seed, sampler=sampler)
            yield sampled.data, sampled.nfe

    def of_rows(
        self,
        model: nn.Module,
        rows: Sequence[int],
        *,
        seed: int,
        sampler: SamplerConfig | None = None,
    ) -> SamplerOutput:
        """The images ``rows``, whichever and in whatever order, and their function evaluations."""
        sampler = self.of_scaled_data(sampler or self.recipe.sampler)
        sampled = self._sampled(self.guided(model.eval(), sampler), rows, seed, sampler)
        doubled = 1 if sampler.guidance == 1 else 2  # with the condition and without
        return SamplerOutput(self.pictures(sampled.data), doubled * sampled.nfe)

    def strip(
        self,
        model: nn.Module,
        count: int,
        *,
        seed: int,
        sampler: SamplerConfig | None = None,
        columns: int = 8,
    ) -> Tensor:
        """``count`` images on the way from noise to data, in rows of ``trajectory_grid``."""
        sampler = self.of_scaled_data(sampler or self.recipe.sampler)
        watched = RecordingModel(self.guided(model.eval(), sampler), self.recipe.noise_path)
        last = self._sampled(watched, range(count), seed, sampler).data
        return self.pictures(trajectory_grid(watched.frames, last, columns))

    def pictures(self, data: Tensor) -> Tensor:
        """Images ``[B, *shape]`` of what was sampled."""
        return self.codec.decode(self.recipe.scaling.undo(data))

    def _sampled(
        self, model: Model, rows: Sequence[int], seed: int, sampler: SamplerConfig
    ) -> SamplerOutput:
        with torch.no_grad():
            return sampler.sample(
                self.recipe.noise_path,
                model,
                self.start(sampler, seed, rows),
                cond=self.labels(rows),
                step_noise=partial(self._step_noise, seed, rows),
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample as it is diffused."""
        return self.codec.shape(self.dataset.shape)

    @property
    def told(self) -> Told:
        """What the images are asked to show."""
        return Told(self.recipe, self.dataset, self.device, self.codec, self.prompts)

    def start(self, sampler: SamplerConfig, seed: int, rows: Sequence[int]) -> Tensor:
        """What sampling starts from, ``[len(rows), *shape]``."""
        noise = start_noise(seed, rows, self.shape, self.device)
        if sampler.init_noise == "normal":
            return noise
        if self.law is None:
            raise ValueError(
                "init_noise=matched needs the law of the noise the model was trained on"
            )
        labels = self.told.labels(rows) if self.recipe.conditional else None
        return self.law.color(noise, None if labels is None else labels["label"])

    def of_scaled_data(self, sampler: SamplerConfig) -> SamplerConfig:
        """``sampler`` with its bound on predicted data scaled as the data are."""
        if sampler.clip is None:
            return sampler
        return dataclasses.replace(sampler, clip=sampler.clip * self.recipe.scaling.factor)

    def guided(self, model: nn.Module, sampler: SamplerConfig) -> Model:
        """``model``, pushed towards its conditions if ``sampler`` asks for it."""
        return guided(model, sampler.guidance, self.told.without)

    def _step_noise(self, seed: int, rows: Sequence[int], step: int) -> Tensor:
        return start_noise(seed, rows, self.shape, self.device, step)

    def labels(self, rows: Sequence[int]) -> Cond | None:
        """The conditions of ``rows``: for labels, image i is of class i mod their number."""
        return self.told(rows)
