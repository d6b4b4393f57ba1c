"""A trained run, loaded to make images with."""

import dataclasses
from dataclasses import dataclass, field

import torch
from torch import nn

from immiscible_diffusion.codec import Codec, Pixels
from immiscible_diffusion.data import DataSet
from immiscible_diffusion.generate import Generator
from immiscible_diffusion.load import load_codec, load_data, pictures_of
from immiscible_diffusion.recipe import Recipe
from immiscible_diffusion.runfolder import RunFolder
from immiscible_diffusion.sampler import Sampler
from immiscible_diffusion.setup import make_coupling, make_model, start_law


@dataclass(frozen=True)
class Trained:
    """A run's recipe, its data set, and its averaged weights at ``step``."""

    recipe: Recipe
    dataset: DataSet
    model: nn.Module
    step: int
    device: torch.device
    run: RunFolder
    codec: Codec = field(default_factory=Pixels)

    @classmethod
    def load(cls, run: RunFolder, device: str = "auto") -> "Trained":
        """Load the run; ValueError if it has no weights yet."""
        recipe, where = run.recipe(), pick_device(device)
        codec = load_codec(recipe, where)
        dataset = load_data(recipe, codec)
        model = make_model(recipe, dataset, codec)
        step = run.load_weights(model)
        model = model.to(where).eval().requires_grad_(False)
        return cls(recipe, dataset, model, step, where, run, codec)

    @property
    def pictures(self) -> DataSet:
        """What its images are judged by."""
        return pictures_of(self.recipe, self.dataset)

    def generator(
        self, sampler: Sampler, batch_size: int = 512, prompts: tuple[str, ...] = ()
    ) -> Generator:
        """What makes its images by ``sampler``; for the matched start it knows the law."""
        recipe = dataclasses.replace(self.recipe, sampler=sampler)
        law = None
        if sampler.start == "matched":
            coupling = make_coupling(recipe, self.dataset, self.run, self.device, self.codec)
            law = start_law(recipe, self.dataset, self.run, coupling, self.device, self.codec)
        return Generator(recipe, self.dataset, self.device, batch_size, law, self.codec, prompts)


def pick_device(name: str) -> torch.device:
    """``auto``: cuda if there is one, else mps, else cpu."""
    if name != "auto":
        available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": _has_mps()}
        if not available.get(name, False):
            raise ValueError(f"device {name} is not available here; use auto or cpu")
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu")


def _has_mps() -> bool:
    return torch.backends.mps.is_available()
