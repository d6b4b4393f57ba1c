"""A trained run, loaded to make images with."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import nn

from immiscible_diffusion.data import DataSet, load_data
from immiscible_diffusion.data.normalise import load_ranges
from immiscible_diffusion.generate import Generator
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

    @classmethod
    def load(
        cls, run: RunFolder, device: str = "auto", dataset: DataSet | None = None
    ) -> "Trained":
        """Load the run (with its data, unless given); ValueError if it has no weights yet."""
        recipe = run.recipe()
        dataset = load_data(recipe.data) if dataset is None else dataset
        check_ranges(run, dataset)
        model = make_model(recipe, dataset)
        step = run.load_weights(model)
        where = pick_device(device)
        model = model.to(where).eval().requires_grad_(False)
        return cls(recipe, dataset, model, step, where, run)

    def generator(self, sampler: Sampler, batch_size: int = 512) -> Generator:
        """What makes its images by ``sampler``; for the matched start it knows the law."""
        recipe = dataclasses.replace(self.recipe, sampler=sampler)
        law = None
        if sampler.start == "matched":
            coupling = make_coupling(recipe, self.dataset, self.run, self.device)
            law = start_law(recipe, self.dataset, self.run, coupling, self.device)
        return Generator(recipe, self.dataset, self.device, batch_size, law)


def check_ranges(run: RunFolder, dataset: DataSet) -> None:
    """Raise ValueError if demonstrations changed since a policy was trained on their ranges."""
    found = getattr(dataset, "ranges", None)
    if found is not None and run.ranges.exists() and load_ranges(run.ranges) != found:
        raise ValueError(
            f"the demonstrations are others than {run.root} was trained on: their ranges differ "
            f"from {run.ranges.name}; set data.path back, or train anew"
        )


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
