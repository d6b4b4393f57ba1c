"""From a recipe to the objects that train: device, data, coupling, network, optimiser."""

import copy
import importlib.util
import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from immiscible_diffusion.coupling import Coupling, NoiseLaw, coupling_from_name
from immiscible_diffusion.data import (
    Batch,
    DataSet,
    DemonstrationConfig,
    load_images,
    load_windows,
)
from immiscible_diffusion.device import is_accelerated
from immiscible_diffusion.extra import MissingExtra, needs_extra
from immiscible_diffusion.loss import ConsistencyLoss
from immiscible_diffusion.model import PolicyMLP, UNet1D
from immiscible_diffusion.moments import Moments
from immiscible_diffusion.path import Preconditioned, SigmaPath
from immiscible_diffusion.recipe import Optimiser, Recipe
from immiscible_diffusion.rng import Streams, key
from immiscible_diffusion.runfolder import RunFolder

MOMENTS_DATA = 10_000
DATA_PER_LABEL = 100
LAW_NOISES, LAW_PASSES = 50_000, 50
PATIENCE = timedelta(days=2)  # ranks wait while one judges; the default gives up after 10 minutes
SHARDED = ("DEEPSPEED", "FSDP", "MEGATRON_LM")


def make_accelerator(recipe: Recipe, device: str, run: RunFolder) -> Any:
    """Accelerate's view of the machine; ``device`` is auto, cpu, cuda or mps."""
    with needs_extra("train", "training"):
        from accelerate import Accelerator
        from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs
    check_trackers(recipe.trackers)
    if device not in ("auto", "cpu", "cuda", "mps"):
        raise ValueError(f"device must be auto, cpu, cuda or mps, got {device!r}")
    # Without an accelerator said so: else processes on a CPU would not know of each other.
    on_cpu = device == "cpu" or (device == "auto" and not is_accelerated())
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision=recipe.precision,
        # As a plugin, since accelerate's environment overrides the plain number.
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=recipe.accumulation, sync_with_dataloader=False
        ),
        log_with=list(recipe.trackers) or None,
        project_dir=str(run.root),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    if accelerator.distributed_type.value in SHARDED:
        raise ValueError(
            f"{accelerator.distributed_type.value} splits weights or their state over ranks, which "
            f"checkpoints and the average do not know; use accelerate launch --multi_gpu"
        )
    if device != "auto" and accelerator.device.type != device:
        raise ValueError(f"device {device} is not available here; use auto or cpu")
    return accelerator


def check_trackers(names: Iterable[str]) -> None:
    """Raise MissingExtra for a tracker that is not installed (accelerate would pass over it)."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise MissingExtra(
                f"the tracker {name} is not installed; "
                f"run: pip install 'immiscible-diffusion[{name}]'"
            )


def make_model(recipe: Recipe, dataset: DataSet) -> nn.Module:
    """The network with its initial weights, which depend on the seed alone.

    Raises:
        ValueError: the recipe is conditional and the data have no labels.
    """
    classes = dataset.num_classes if recipe.conditional else None
    told = getattr(dataset, "condition_shapes", {})  # what besides labels
    if recipe.conditional and classes is None and not told:
        raise ValueError(
            f"the recipe is conditional, and the data set {dataset.name} has no labels; "
            f"give data with labels, or --no-conditional"
        )
    if classes is not None and recipe.label_dropout:
        classes += 1  # the last stands for no label
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(recipe.seed, "weights"))
        if told and isinstance(recipe.model, (UNet1D, PolicyMLP)):
            model = recipe.model.build(dataset.shape, classes, conditions=told)
        else:
            model = recipe.model.build(dataset.shape, classes)
    if not isinstance(recipe.path, SigmaPath):
        return model
    ends = recipe.path.sigma_min if isinstance(recipe.loss, ConsistencyLoss) else 0.0
    return Preconditioned(model, recipe.path.sigma_data * recipe.scaling.factor, ends)


def make_coupling(
    recipe: Recipe, dataset: DataSet, run: RunFolder, device: torch.device
) -> Coupling:
    """The recipe's coupling; moments and law are measured on first use, and kept in the run."""

    def law(inner: Coupling) -> NoiseLaw:
        return _law(recipe, dataset, run, inner, run.calibration).to(device)

    return coupling_from_name(
        recipe.coupling, lambda: _moments(recipe, dataset, run).to(device), law
    )


def start_law(
    recipe: Recipe, dataset: DataSet, run: RunFolder, coupling: Coupling, device: torch.device
) -> NoiseLaw | None:
    """The law that ``coupling`` trains the model on, if the recipe's sampler starts from it."""
    if recipe.sampler.start != "matched":
        return None
    return _law(recipe, dataset, run, coupling, run.law).to(device)


def _moments(recipe: Recipe, dataset: DataSet, run: RunFolder) -> Moments:
    """Fitted once and read again; those of a run that never began may be of other data."""
    if not (run.has_begun and run.moments.exists()):
        Moments.fit(_labelled(_some_data(recipe, dataset))).save(run.moments)
    return Moments.load(run.moments)


def _law(
    recipe: Recipe, dataset: DataSet, run: RunFolder, coupling: Coupling, path: Path
) -> NoiseLaw:
    """The law of the coupling's noise, measured once and read again, as the moments."""
    if not (run.has_begun and path.exists()):
        count = min(len(dataset), MOMENTS_DATA)
        passes = range(min(LAW_PASSES, -(-LAW_NOISES // count)))
        batches = (batch for epoch in passes for batch in _some_data(recipe, dataset, epoch))
        NoiseLaw.measure(
            coupling,
            _labelled(batches),
            _moments(recipe, dataset, run),
            by_label=recipe.conditional and dataset.num_classes is not None,
            generator=Streams(recipe.seed, rank=0).noise,
        ).save(path)
    return NoiseLaw.load(path)


def _some_data(recipe: Recipe, dataset: DataSet, epoch: int = 0) -> Iterator[Batch]:
    """Some data, augmented and scaled as in training, in batches of its size.

    About ten thousand, and more where a conditional recipe has many labels.
    """
    wanted = MOMENTS_DATA
    if recipe.conditional and dataset.num_classes:
        wanted = max(wanted, DATA_PER_LABEL * dataset.num_classes)
    streams = Streams(recipe.seed, epoch, rank=0)
    # Of actions only windows within their episode: such are the plans that a policy samples.
    rows = getattr(dataset, "whole", torch.arange(len(dataset)))
    order = rows[torch.randperm(len(rows), generator=streams.order)][:wanted]
    augment = streams.augment
    for chosen in order.split(recipe.batch_size // recipe.accumulation):
        yield recipe.as_seen(dataset.batch(chosen, augment))


def _labelled(batches: Iterable[Batch]) -> Iterator[Any]:
    """Data with their labels, where they have any."""
    for batch in batches:
        labels = (batch.cond or {}).get("label")
        yield batch.data if labels is None else (batch.data, labels)


def make_optimiser(settings: Optimiser, model: nn.Module, steps: int = 0) -> tuple[Any, Any]:
    """Adam (AdamW with weight decay) and its schedule of the learning rate over ``steps``."""
    kind = torch.optim.AdamW if settings.weight_decay else torch.optim.Adam
    optimiser = kind(
        model.parameters(),
        lr=settings.lr,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        foreach=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: rate_at(settings, step, steps)
    )
    return optimiser, schedule


def rate_at(settings: Optimiser, step: int, steps: int) -> float:
    """Share of ``settings.lr`` at ``step`` of ``steps``: warm-up, then decay to 0."""
    warm = min(1.0, (step + 1) / max(1, settings.warmup))
    if settings.decay == "none":
        return warm
    if steps < 1:
        raise ValueError(f"decay {settings.decay} needs the number of steps, got {steps}")
    start = min(settings.warmup, steps - 1)
    left = 1 - min(1.0, max(0, step - start) / (steps - start))
    return warm * (left if settings.decay == "linear" else (1 - math.cos(math.pi * left)) / 2)


class Average:
    """The exponential moving average of a model's weights, in a copy of the model."""

    def __init__(self, settings: Optimiser, model: nn.Module) -> None:
        with needs_extra("train", "the average of the weights"):
            from diffusers.training_utils import EMAModel
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        floor = 0.0 if settings.ema_ramp else settings.ema
        self._ema = EMAModel(model.parameters(), decay=settings.ema, min_decay=floor, foreach=True)

    def update(self, model: nn.Module) -> None:
        """Take up the weights after a step."""
        self._ema.step(model.parameters())

    def current(self) -> nn.Module:
        """The model with the averaged weights, in eval mode."""
        self._ema.copy_to(self.model.parameters())
        return self.model

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        state: dict[str, Any] = self._ema.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """From the checkpoint."""
        self._ema.load_state_dict(state)
        self._ema.to(device)


@dataclass(frozen=True)
class Validation:
    """Fixed data, independent noise and times: the one loss that means the same at every step.

    On the set's test split where it has one, else on training data (``split`` says which).
    """

    data: Tensor
    noise: Tensor
    t: Tensor
    cond: dict[str, Tensor] | None
    split: str
    mask: Tensor | None = None

    @classmethod
    def of(cls, recipe: Recipe, dataset: DataSet, device: torch.device) -> "Validation":
        """Up to 512 data, scaled as in training; the same for every coupling and seed."""
        held_out, split = _validation_set(recipe, dataset)
        streams = Streams(0, rank=0)
        rows = torch.randperm(len(held_out), generator=streams.order)[:512]
        batch = held_out.batch(rows)
        noise = torch.randn(batch.data.shape, generator=streams.noise)
        t = recipe.path.sample_time(len(rows), generator=streams.time)
        batch = recipe.as_seen(batch.to(device))
        cond = batch.cond if recipe.conditional else None
        return cls(batch.data, noise.to(device), t.to(device), cond, split, batch.mask)


def _validation_set(recipe: Recipe, dataset: DataSet) -> tuple[DataSet, str]:
    if isinstance(recipe.data, DemonstrationConfig):
        return load_windows(recipe.data)[1], "held-out episodes"
    if recipe.data.name in ("cifar10", "fashion_mnist") and recipe.data.split == "train":
        config = replace(recipe.data, split="test", limit=512)
        try:
            return load_images(config), "test"
        except ValueError as error:  # a local folder without a test split, say
            warnings.warn(f"validation uses training data: {error}", stacklevel=2)
    return dataset, recipe.data.split
