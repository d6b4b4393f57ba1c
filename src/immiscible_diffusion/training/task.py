"""What differs between applications; the trainer asks its task and never what kind it is."""
# ruff: noqa: B027 - what is empty here is for applications that need it

import dataclasses
import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from immiscible_diffusion.couplings import Coupling
from immiscible_diffusion.data import DataSet
from immiscible_diffusion.diffusion.paths import Cond, EDMPath, Preconditioned
from immiscible_diffusion.diffusion.pipeline import SamplingPipeline
from immiscible_diffusion.models.condition_dropout import drop_labels
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.checks import PositiveInt, check_fields
from immiscible_diffusion.utils.random import RandomStreams, hash_seed

if TYPE_CHECKING:
    from immiscible_diffusion.training.recipe import Recipe
    from immiscible_diffusion.training.run_dir import RunDir


@dataclass(frozen=True)
class EvalConfig:
    """At which training steps ``compare`` evaluates, and at which numbers of sampling steps.

    Args:
        sampling_steps: numbers of steps of the recipe's sampler.
        num: how many training steps, spaced evenly in their logarithm.
        start: the first of them, as a fraction of all steps.
        steps: the training steps themselves, instead of ``num`` and ``start``; those beyond the end of training are
            left out, and the last step is always among them.
    """

    sampling_steps: tuple[PositiveInt, ...] = (2, 5, 20, 100)
    num: PositiveInt = 6
    start: Annotated[float, "> 0 and <= 1"] = 0.1
    steps: tuple[PositiveInt, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self, "eval.")
        if not self.sampling_steps:
            raise ValueError("eval.sampling_steps must be one number of steps at least, got none")

    def training_steps(self, total: int) -> tuple[int, ...]:
        """Return the training steps to evaluate at; the last is ``total``."""
        if self.steps:
            return tuple(sorted({step for step in self.steps if step < total} | {total}))
        fractions = (self.start ** (1 - i / max(1, self.num - 1)) for i in range(self.num - 1))
        return tuple(sorted({max(1, round(total * part)) for part in fractions} | {total}))


@dataclass(frozen=True)
class TaskConfig(ABC):
    """The part of a recipe that belongs to its application: a frozen dataclass."""

    knows_unconditional: ClassVar[bool] = False
    """The network knows an unconditional input without training on dropped conditions."""
    diffuses_data_set: ClassVar[bool] = False
    """What is diffused is the data set itself, so that its exact posterior can be computed."""
    makes_images: ClassVar[bool] = True
    next_step: ClassVar[str] = "immiscible sample {run} makes images"
    """What a user may do after training."""

    if TYPE_CHECKING:  # fields of the applications' dataclasses

        @property
        def data(self) -> Any:
            """Which data, and how they are prepared."""

        @property
        def eval(self) -> EvalConfig:
            """How and when samples are evaluated."""

    @abstractmethod
    def build(self, recipe: "Recipe", device: torch.device, dataset: DataSet | None = None) -> "Task":
        """Load data and frozen networks; ``dataset`` instead of the data that are named."""

    @abstractmethod
    def tiny(self) -> "TaskConfig":
        """Shrink to a smoke run of seconds."""

    def replace(self, **changes: Any) -> "TaskConfig":
        """Return the task with other fields."""
        return dataclasses.replace(self, **changes)

    def parts(self) -> dict[str, Callable[[], Any]]:
        """Return what ``build`` loads one after the other, by name: each raises ValueError if it is not there."""
        return {}

    def check(self, recipe: "Recipe") -> None:
        """Raise ValueError for parts of ``recipe`` that do not go with this application."""


def import_applications() -> None:
    """Import what lies in ``applications/``, so that files can name their tasks and networks."""
    package = importlib.import_module("immiscible_diffusion.applications")
    for application in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{application.name}.task")


class Task(ABC):
    """An application, loaded: its data, what is diffused of them, its network and its evaluation.

    Frozen networks are on ``device``; ``dataset`` replaces the training data that the recipe names.
    """

    max_batch_size: int | None = None
    """Samples that may be encoded, or generated, at a time; None = any number."""
    num_preview_images = 64
    preview_columns: int | None = None

    def __init__(self, recipe: "Recipe", device: torch.device, dataset: DataSet | None = None) -> None:
        self.recipe, self.device = recipe, device
        self.dataset: DataSet = self.load_data("train") if dataset is None else dataset

    # -- data -------------------------------------------------------------------------------------

    @abstractmethod
    def load_data(self, split: str) -> DataSet:
        """Load the data of ``split``: ``train``, or ``validation`` where data are held out.

        ValueError says what to do if they are not there or do not fit.
        """

    def validation_data(self) -> tuple[DataSet, str]:
        """Return the data to validate on and the name of their split; training data by default."""
        return self.dataset, self.recipe.task.data.split

    def reference_images(self) -> DataSet:
        """Return the real data that samples are compared with."""
        return self.dataset

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample as it is diffused."""
        return self.dataset.shape

    def encode(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        """Turn a batch of the data set into what is diffused, on the device, with its conditions.

        ``scale * encoder(data)``, and 0 where the mask says invalid: the network sees all of ``x_t``, and padding must
        not tell it anything. ``generator`` is what an encoder draws from.
        """
        batch = self._encode(batch.to(self.device), generator)
        data = self.recipe.scaling.apply(batch.data)
        if batch.mask is not None:
            data = data.masked_fill(~batch.mask, 0)
        return replace(batch, data=data)

    def decode(self, data: Tensor) -> Tensor:
        """Turn what was diffused ``[B, *shape]`` into data: images in about [-1, 1], actions."""
        return self._decode(self.recipe.scaling.undo(data))

    def _encode(self, batch: Batch, generator: torch.Generator | None) -> Batch:
        """Without scaling; the data themselves unless an application says otherwise."""
        return batch

    def _decode(self, data: Tensor) -> Tensor:
        return data

    # -- network ----------------------------------------------------------------------------------

    def build_model(self) -> nn.Module:
        """Build the network with its initial weights, which depend on the seed alone.

        Preconditioning is still to be fitted. ValueError if the network does not fit the data.
        """
        recipe, path = self.recipe, self.recipe.noise_path
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash_seed(recipe.seed, "weights"))
            model = self._build_model()
        if isinstance(path, EDMPath):
            return Preconditioned(model, path, path.sigma_data**2, recipe.loss.identity_sigma(path))
        return model if recipe.model.precondition == "none" else Preconditioned(model, path)

    def _build_model(self) -> nn.Module:
        recipe, classes = self.recipe, self.dataset.num_classes
        if not recipe.conditional:
            return recipe.model.build(self.shape)
        if classes is None:
            raise ValueError(
                f"the recipe is conditional, and the data set {self.dataset.name} has no labels; "
                f"give data with labels, or --no-conditional"
            )
        no_label = 1 if recipe.cond_drop_prob else 0  # the last class stands for none
        return recipe.model.build(self.shape, classes + no_label)

    # -- conditions -------------------------------------------------------------------------------

    def drop_conditions(self, cond: Cond | None, rng: RandomStreams) -> Cond | None:
        """Drop conditions at random for classifier-free guidance (2207.12598)."""
        recipe, classes = self.recipe, self.dataset.num_classes
        if not recipe.conditional or cond is None:
            return None
        if not recipe.cond_drop_prob or classes is None:
            return cond
        return drop_labels(cond, classes, recipe.cond_drop_prob, rng.labels)

    def conditions(self, indices: Sequence[int], prompts: Sequence[str] = ()) -> Cond | None:
        """Return the conditions of samples: sample i depends on i alone.

        By default sample i is of class ``i mod number of classes``; None for an unconditional network; ValueError for
        prompts, which only text-to-image models take.
        """
        if prompts:
            raise ValueError("this run was not trained on prompts; leave classes and prompts out")
        classes = self.dataset.num_classes
        if not self.recipe.conditional or not classes:
            return None
        return {"label": torch.tensor([i % classes for i in indices], device=self.device)}

    def unconditional(self, cond: Cond) -> Cond:
        """Return the conditions that guidance pushes away from."""
        return drop_labels(cond, self.dataset.num_classes or 0, 1.0)

    def coupling(self, coupling: Coupling) -> Coupling:
        """Adapt the recipe's coupling to what is diffused."""
        return coupling

    # -- evaluation and files ---------------------------------------------------------------------

    @abstractmethod
    def evaluator(self, config: EvalConfig | None = None, max_real: int | None = None) -> Any:
        """Return what scores samples, an ``evaluation.Evaluator``.

        ``config`` replaces the recipe's ``task.eval``; ``max_real`` limits the real samples that are compared with,
        chosen at random.
        """

    def preview(self, pipeline: SamplingPipeline, model: nn.Module) -> Tensor:
        """Return images ``[N, C, H, W]`` that show how far training is, from the same noise."""
        batches = pipeline(model, self.num_preview_images, seed=self.recipe.seed)
        return torch.cat([data for data, _ in batches])

    def check_before_training(self) -> None:
        """Raise ValueError for what would go wrong in the end, before hours are spent."""

    def save_files(self, run_dir: "RunDir") -> None:
        """Write what the run needs besides weights, when training begins."""

    def check_files(self, run_dir: "RunDir") -> None:
        """Raise ValueError if the data are others than those that ``run_dir`` was trained on."""

    def export(
        self, run_dir: "RunDir", model: nn.Module, averaged: nn.Module, average: dict[str, Any], step: int
    ) -> None:
        """Write weights in the layout of other programs, with every checkpoint.

        Of ``model`` and of its ``averaged`` copy; ``average`` has the numbers of diffusers' ``EMAModel``.
        """

    def publish(self, run_dir: "RunDir") -> None:
        """Publish the run after its last step, if the recipe asks for it."""
