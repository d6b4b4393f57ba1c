"""A trained run, loaded to make images with."""

from dataclasses import dataclass, field, replace

import torch
from torch import nn

from immiscible_diffusion.couplings import NoiseDistribution
from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.diffusion.pipeline import Generator
from immiscible_diffusion.diffusion.samplers import SamplerConfig
from immiscible_diffusion.training.builders import (
    init_noise_distribution,
    make_coupling,
    make_model,
)
from immiscible_diffusion.training.codec import Codec
from immiscible_diffusion.training.load import load_codec, load_data, pictures_of
from immiscible_diffusion.training.pixels import Pixels
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.utils.device import pick_device


@dataclass(frozen=True)
class LoadedRun:
    """A run's recipe, its data set, and its averaged weights at ``step``."""

    recipe: Recipe
    dataset: DataSet
    model: nn.Module
    step: int
    device: torch.device
    run: RunDir
    codec: Codec = field(default_factory=Pixels)

    @classmethod
    def load(cls, run: RunDir, device: str = "auto", dataset: DataSet | None = None) -> "LoadedRun":
        """Load the run (with its data, unless given); ValueError if it has no weights yet."""
        recipe, where = run.recipe(), pick_device(device)
        codec = load_codec(recipe, where)
        dataset = load_data(recipe, codec) if dataset is None else dataset
        if run.ranges.exists():
            dataset.check_normalization(run.ranges)
        model = make_model(recipe, dataset, codec)
        step = run.load_weights(model)
        model = model.to(where).eval().requires_grad_(False)
        return cls(recipe, dataset, model, step, where, run, codec)

    @property
    def pictures(self) -> DataSet:
        """What its images are judged by."""
        return pictures_of(self.recipe, self.dataset)

    def generator(
        self, sampler: SamplerConfig, batch_size: int = 512, prompts: tuple[str, ...] = ()
    ) -> Generator:
        """What makes its images by ``sampler``; for the matched start it knows the law."""
        sampled = self.sampled_by(sampler)
        law = sampled.init_noise_distribution()
        return Generator(
            sampled.recipe, self.dataset, self.device, batch_size, law, self.codec, prompts
        )

    def sampled_by(self, sampler: SamplerConfig) -> "LoadedRun":
        """The same run with another sampler; ValueError for one that cannot sample it."""
        return replace(self, recipe=replace(self.recipe, sampler=sampler))

    def init_noise_distribution(self) -> NoiseDistribution | None:
        """The law that its sampler starts from; None for N(0, I)."""
        if self.recipe.sampler.init_noise != "matched":
            return None
        of = (self.recipe, self.dataset, self.run)
        coupling = make_coupling(*of, self.device, self.codec)
        return init_noise_distribution(*of, coupling, self.device, self.codec)
