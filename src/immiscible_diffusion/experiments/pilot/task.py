"""The task of a pilot: arrays of any shape, and the recipe that learns half of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from immiscible_diffusion.data import DataSet
from immiscible_diffusion.diffusion.paths import Cond, FlowMatchingPath
from immiscible_diffusion.diffusion.pipeline import SamplingPipeline
from immiscible_diffusion.diffusion.samplers import SamplerConfig, start_noise
from immiscible_diffusion.evaluation.evaluator import EVAL_SEED, EvalResult
from immiscible_diffusion.experiments.pilot.data import LABEL, Samples
from immiscible_diffusion.metrics import FeatureStatistics, Floor, floor_of, frechet_distance
from immiscible_diffusion.metrics.features.generic import GenericFeatures
from immiscible_diffusion.models import MLP, UNet
from immiscible_diffusion.reporting.compare.records import Floor as FloorRecord
from immiscible_diffusion.training.builders import Run
from immiscible_diffusion.training.ema import EMAConfig
from immiscible_diffusion.training.optim import OptimizerConfig
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.training.task import EvalConfig, Task, TaskConfig
from immiscible_diffusion.utils.checks import Size, check_fields

NUM_IMAGES = 32  # shown
MAX_IMAGE_SIZE = 64
NETWORKS = ("auto", "mlp", "unet")
UNET = UNet(
    channels=32,
    multipliers=(1, 2, 2),
    blocks=1,
    attention=(),
    head_channels=16,
    groups=8,
    dropout=0.0,
    precondition="pairs",
)


@dataclass(frozen=True)
class ArrayConfig:
    """Which arrays; they are in memory."""

    name: str
    shape: tuple[Size, ...]  # of a sample
    digest: str  # hash of data, conditions and mask
    conditions: tuple[str, ...] = ()  # that the network is given

    def __post_init__(self) -> None:
        check_fields(self, "data.")


@dataclass(frozen=True)
class Arrays(TaskConfig):
    """Arrays of any shape, with or without conditions and a mask."""

    data: ArrayConfig
    eval: EvalConfig = field(default_factory=EvalConfig)

    makes_images: ClassVar[bool] = False

    def build(self, recipe: Recipe, device: torch.device, dataset: DataSet | None = None) -> "ArrayTask":
        """Take the arrays, which ``dataset`` holds."""
        return ArrayTask(recipe, device, dataset)

    def tiny(self) -> "Arrays":
        """Return the task: arrays are as small as they are."""
        return self


class ArrayTask(Task):
    """Half of the arrays to train on, the rest to evaluate with."""

    dataset: Samples

    def load_data(self, split: str) -> DataSet:
        """Raise ValueError: the arrays are in the memory of the command that trains."""
        name = self.recipe.task.data.name
        raise ValueError(f"{name} was given to immiscible pilot, which alone can resume this run")

    def validation_data(self) -> tuple[DataSet, str]:
        """Return what is held out."""
        data = self.dataset
        return replace(data, rows=data.held_out, held_out=data.rows), "held out"

    def _build_model(self) -> nn.Module:
        return self.recipe.model.build(self.shape, self.dataset.num_classes, self.dataset.condition_shapes)

    def drop_conditions(self, cond: Cond | None, rng: Any) -> Cond | None:
        """Keep what the network is given; all other conditions are for couplings."""
        return self._of_network(cond)

    def conditions(self, indices: Sequence[int], prompts: Sequence[str] = ()) -> Cond | None:
        """Return the conditions of the samples held out, one after the other."""
        if prompts:
            raise ValueError("arrays have no prompts; leave them out")
        rows = self.dataset.held_out[torch.tensor(indices) % len(self.dataset.held_out)]
        return self._of_network(self.dataset.take(rows).to(self.device).cond)

    def _of_network(self, cond: Cond | None) -> Cond | None:
        names = [*([LABEL] if self.dataset.num_classes is not None else []), *self.dataset.condition_shapes]
        return {name: (cond or {})[name] for name in names} or None

    def evaluator(self, config: EvalConfig | None = None, max_real: int | None = None) -> "ArrayEvaluator":
        """Return what scores samples against those held out."""
        return ArrayEvaluator(self.dataset)


@dataclass(frozen=True)
class ArrayEvaluator:
    """Scores samples by their Frechet distance to those held out, with the same conditions."""

    samples: Samples

    @cached_property
    def features(self) -> GenericFeatures:
        """Features fitted to all samples, a quarter as many as are held out at most."""
        data, matrix = self.samples.every.data, self.samples.condition_matrix
        return GenericFeatures.fit(data, matrix, max_features=self.samples.num_held_out // 4)

    @cached_property
    def reference(self) -> FeatureStatistics:
        """Features of the samples held out."""
        return FeatureStatistics.of(self._features(self.samples.held_out))

    @cached_property
    def floor(self) -> Floor | None:
        """Distances between disjoint sets of real samples, as many as are held out."""
        return floor_of(self._features(torch.arange(self.samples.count)), self.samples.num_held_out, EVAL_SEED)

    def check(self) -> str:
        """Say what scores samples."""
        return str(self.features)

    def distance(self, data: Tensor) -> float:
        """Distance of ``data`` ``[held out, *shape]``; ValueError if they are not finite."""
        if not bool(data.isfinite().all()):
            raise ValueError("samples are not finite; check the data, or --normalize")
        statistics = FeatureStatistics.of(self._features(self.samples.held_out, data))
        return frechet_distance(statistics, self.reference, allow_few=True)

    @cached_property
    def untrained(self) -> float:
        """Distance of what takes no training: noise, or the mean of the data if that is nearer."""
        data, count = self.samples.every.data, len(self.samples.held_out)
        noise = start_noise(EVAL_SEED, range(count), self.samples.shape)
        return min(self.distance(noise), self.distance(data.mean(dim=0).expand_as(noise)))

    def __call__(self, pipeline: SamplingPipeline, model: nn.Module, *, seed: int, **context: Any) -> EvalResult:
        """Score as many samples as are held out; sample i has the conditions of the i-th."""
        batches, nfe = zip(*pipeline(model, len(self.samples.held_out), seed=seed), strict=True)
        data = torch.cat(batches).cpu()
        scores = {"nfe": round(fmean(nfe)), "samples": len(data), "features": "generic"}
        images = data[:NUM_IMAGES] if is_image(self.samples.shape) else None
        return EvalResult(scores | {"frechet": self.distance(data)}, images)

    def calibrate(self, metrics: Sequence[str]) -> dict[str, Any]:
        """Score real samples against real ones, and what takes no training."""
        return {**({"frechet": self.floor.mean} if self.floor else {}), "frechet_of_noise": self.untrained}

    def evaluate_run(self, run: Run, *, seed: int, batch_size: int, metrics: Any) -> dict[str, Any]:
        """Score a run's model."""
        result = self(run.pipeline(batch_size), run.model, seed=seed, step=run.step)
        return {"step": run.step, **result.scores}

    def summary(self, runs: Mapping[str, Mapping[int, RunDir]], folder: Path, step: int) -> dict[str, Any]:
        """Return what the scores of a comparison were made with."""
        floor = self.floor and FloorRecord(**asdict(self.floor), note=self.floor.note)
        values = {"features": str(self.features), "accuracy": None, "floor": floor}
        return values | {"samples": len(self.samples.held_out), "real_samples": len(self.samples.held_out)}

    def _features(self, rows: Tensor, data: Tensor | None = None) -> Tensor:
        """Features of the samples in ``rows``, or of ``data`` with their conditions and mask."""
        every, matrix = self.samples.every, self.samples.condition_matrix
        if data is None:
            data = every.data[rows]
        elif every.mask is not None:
            data = data.masked_fill(~every.mask[rows], 0)
        return self.features(data, None if matrix is None else matrix[rows])


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether samples can be shown as they are: gray or color images."""
    return len(shape) == 3 and shape[0] in (1, 3) and min(shape[1:]) >= 4


def pilot_recipe(
    samples: Samples,
    network: str,
    device: torch.device,
    *,
    steps: int,
    eval_steps: tuple[int, ...],
    sampling_steps: tuple[int, ...],
) -> Recipe:
    """Return the recipe for ``samples``: by itself an MLP on a CPU, a U-Net for images elsewhere.

    Both are preconditioned, as a network that has to pass the noise on hides the differences between couplings; so
    would the noise of the last steps, and the rate decays to 0.

    ValueError: an unknown network, or a U-Net for data that it cannot take.
    """
    if network not in NETWORKS:
        raise ValueError(f"network must be one of {', '.join(NETWORKS)}, got {network!r}")
    shape = samples.shape
    fits = len(shape) == 3 and shape[1] == shape[2] and shape[1] % 4 == 0
    fits = fits and 8 <= shape[1] <= MAX_IMAGE_SIZE and not samples.condition_shapes
    if network == "unet" and not fits:
        raise ValueError(
            f"the U-Net takes images [C, S, S] with S a multiple of 4 from 8 to {MAX_IMAGE_SIZE}, "
            f"conditioned on a label or nothing, got {shape} with conditions "
            f"{', '.join(samples.condition_names) or 'none'}; use --network mlp"
        )
    large = math.prod(shape) > 256
    model: MLP | UNet = MLP(width=256 if large else 160, depth=4)
    lr, batch_size = (2e-3, 128) if large else (4e-3, 256)
    if network == "unet" or (network == "auto" and fits and device.type != "cpu"):
        model, lr, batch_size = UNET, 1e-3, 128
    return Recipe(
        name="pilot",
        task=Arrays(
            data=ArrayConfig(samples.name, shape, samples.digest, samples.condition_names),
            eval=EvalConfig(sampling_steps=sampling_steps, steps=eval_steps),
        ),
        model=model,
        path=FlowMatchingPath(time="logit_normal"),
        conditional=samples.condition_matrix is not None,
        optim=OptimizerConfig(lr=lr, warmup_steps=50, lr_schedule="cosine"),
        ema=EMAConfig(0.995, warmup=True),
        batch_size=min(batch_size, len(samples)),
        steps=steps,
        sampler=SamplerConfig(steps=max(sampling_steps)),
        log_every=50,
        validate_every=steps,
        preview_every=0,
        checkpoint_every=steps,
    )
