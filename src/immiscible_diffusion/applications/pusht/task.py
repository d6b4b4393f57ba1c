"""Robot policies: action sequences given observations."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from immiscible_diffusion.applications.pusht.config import DemonstrationConfig, PolicyEvalConfig
from immiscible_diffusion.applications.pusht.demonstrations import load_windows
from immiscible_diffusion.applications.pusht.evaluator import PolicyEvaluator
from immiscible_diffusion.applications.pusht.normalization import PolicyNormalizer
from immiscible_diffusion.applications.pusht.windows import Windows
from immiscible_diffusion.data import DataSet
from immiscible_diffusion.diffusion.paths import Cond
from immiscible_diffusion.evaluation.evaluator import Evaluator
from immiscible_diffusion.models import MLP, UNet1D
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.training.task import EvalConfig, Task, TaskConfig
from immiscible_diffusion.utils.random import RandomStreams

NORMALIZER = "normalizer.safetensors"


@dataclass(frozen=True)
class Policy(TaskConfig):
    """A policy that learns recorded demonstrations."""

    data: DemonstrationConfig = field(default_factory=DemonstrationConfig)  # the demonstrations
    eval: PolicyEvalConfig = field(default_factory=PolicyEvalConfig)  # how and when policies are evaluated

    makes_images: ClassVar[bool] = False
    next_step: ClassVar[str] = "immiscible evaluate {run} runs the policy in the simulator"

    def build(self, recipe: Recipe, device: torch.device, dataset: DataSet | None = None) -> Task:
        """Load the demonstrations."""
        return PolicyTask(recipe, device, dataset)

    def tiny(self) -> "Policy":
        """Shrink to a smoke run."""
        return dataclasses.replace(self, data=self.data.tiny(), eval=self.eval.tiny())

    def check(self, recipe: Recipe) -> None:
        """Raise ValueError for parts of image recipes."""
        if not isinstance(recipe.model, UNet1D | MLP):
            raise ValueError(
                f"a policy needs a model of action sequences, UNet1D or MLP; got {type(recipe.model).__name__}"
            )
        if recipe.sampler.prune is not None:
            raise ValueError("sampler.prune is for images; leave it out for a policy")
        if not recipe.scaling.is_identity or recipe.preview_every:
            raise ValueError(
                f"actions keep their range and have no image previews; leave scaling and set "
                f"preview_every 0, got {recipe.scaling} and {recipe.preview_every}"
            )


class PolicyTask(Task):
    """Windows of actions with the observations before them."""

    @property
    def windows(self) -> Windows:
        """The windows that are trained on."""
        assert isinstance(self.dataset, Windows)
        return self.dataset

    def load_data(self, split: str) -> Windows:
        """Load the windows of ``split``, normalized by those of training."""
        if split == "train":
            assert isinstance(self.recipe.task, Policy)
            return load_windows(self.recipe.task.data)
        if self.windows.validation is None:
            raise ValueError(f"the data {self.dataset.name} come without windows to validate on")
        return self.windows.validation

    def validation_data(self) -> tuple[DataSet, str]:
        """Return the windows of episodes that are not trained on."""
        return self.load_data("validation"), "held-out episodes"

    def _build_model(self) -> nn.Module:
        return self.recipe.model.build(self.shape, conditions=self.dataset.condition_shapes)

    def drop_conditions(self, cond: Cond | None, rng: RandomStreams) -> Cond | None:
        """Keep the observations: policies are not guided."""
        return cond if self.recipe.conditional else None

    def conditions(self, indices: Sequence[int], prompts: Sequence[str] = ()) -> Cond | None:
        """Raise ValueError: observations come from the simulator."""
        raise ValueError(
            f"{self.recipe.name} is a policy, which makes no images; immiscible evaluate RUN runs it in the simulator"
        )

    def evaluator(self, config: EvalConfig | None = None, max_real: int | None = None) -> Evaluator:
        """Return what scores policies."""
        config = config or self.recipe.task.eval
        assert isinstance(config, PolicyEvalConfig)
        return PolicyEvaluator(config, self.windows, self.load_data("validation"))

    def save_files(self, run_dir: RunDir) -> None:
        """Write the normalizer; a resumed run raises ValueError if the demonstrations changed."""
        if (run_dir.root / NORMALIZER).exists():
            self.check_files(run_dir)
        self.windows.normalizer.save(run_dir.root / NORMALIZER, self.windows.digest)

    def check_files(self, run_dir: RunDir) -> None:
        """Raise ValueError if the demonstrations changed since the policy was trained."""
        if PolicyNormalizer.load(path := run_dir.root / NORMALIZER)[1] != self.windows.digest:
            raise ValueError(
                f"the demonstrations differ from those that the policy of {path} was trained on; "
                f"set data.path and its options back, or train again"
            )
