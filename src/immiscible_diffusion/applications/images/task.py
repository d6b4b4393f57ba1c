"""Images, diffused as they are."""

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from immiscible_diffusion.data import DataConfig, DataSet, load_images
from immiscible_diffusion.data.streaming import load_stream
from immiscible_diffusion.evaluation.config import ImageEvalConfig
from immiscible_diffusion.evaluation.evaluator import Evaluator
from immiscible_diffusion.evaluation.images import ImageEvaluator
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.task import EvalConfig, Task, TaskConfig
from immiscible_diffusion.training.validation import held_out_or_training, validation_config


@dataclass(frozen=True)
class Images(TaskConfig):
    """Images in pixel space, with or without labels."""

    data: DataConfig = field(default_factory=DataConfig)  # the data set
    eval: ImageEvalConfig = field(default_factory=ImageEvalConfig)  # how and when images are scored

    diffuses_data_set: ClassVar[bool] = True

    def build(self, recipe: Recipe, device: torch.device, dataset: DataSet | None = None) -> Task:
        """Load the data."""
        return ImageTask(recipe, device, dataset)

    def tiny(self) -> "Images":
        """Shrink to a smoke run."""
        return dataclasses.replace(self, data=self.data.tiny(), eval=self.eval.tiny())

    def check(self, recipe: Recipe) -> None:
        """Raise ValueError for conditional recipes without labels."""
        if recipe.conditional and not self.data.labels:
            raise ValueError("conditional needs labels; set data.labels or drop conditional")


class ImageTask(Task):
    """Images with the network on pixels; conditions are labels."""

    def load_data(self, split: str) -> DataSet:
        """Load the images of ``split``."""
        data: DataConfig = self.recipe.task.data
        data = data if split == "train" else validation_config(data)
        return load_stream(data) if data.stream else load_images(data)

    def validation_data(self) -> tuple[DataSet, str]:
        """Return the test split where the set has one, else the training data."""
        return held_out_or_training(self, self.recipe.task.data)

    def evaluator(self, config: EvalConfig | None = None, max_real: int | None = None) -> Evaluator:
        """Return what scores images against the training data."""
        config = config or self.recipe.task.eval
        assert isinstance(config, ImageEvalConfig)
        return ImageEvaluator.of(self.reference_images(), config, self.device, max_real)
