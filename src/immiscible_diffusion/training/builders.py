"""From a recipe to the objects that train: accelerator, task, network, coupling."""

import importlib.util
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from immiscible_diffusion.couplings import Coupling, EmptyAxes, Moments, NoiseDistribution, parse_coupling
from immiscible_diffusion.couplings.distributed import ranks_together
from immiscible_diffusion.couplings.moments import TensorFields
from immiscible_diffusion.couplings.semidiscrete_plan import UNFITTED, SemidiscretePlan
from immiscible_diffusion.data import DataSet
from immiscible_diffusion.diffusion.paths import Preconditioned
from immiscible_diffusion.diffusion.pipeline import SamplingPipeline
from immiscible_diffusion.diffusion.samplers import SamplerConfig
from immiscible_diffusion.models.trainable import trainable_names
from immiscible_diffusion.training import sharding
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.training.task import Task
from immiscible_diffusion.utils.batch import Batch, Cond
from immiscible_diffusion.utils.device import TIMEOUT, is_accelerated
from immiscible_diffusion.utils.optional_deps import MissingDependencyError, how_to_install, require_extra
from immiscible_diffusion.utils.progress import Progress
from immiscible_diffusion.utils.random import RandomStreams

MOMENTS_SAMPLES = 10_000
SAMPLES_PER_LABEL = 100
DISTRIBUTION_SAMPLES, DISTRIBUTION_PASSES = 50_000, 50
PLAN_STEPS = 4000  # of the fit of a semidiscrete plan, at most
T = TypeVar("T", bound=TensorFields)


@dataclass(frozen=True)
class Run:
    """A recipe with everything that it needs on a device.

    ``task`` is its application, loaded; ``model`` has initial weights, or those of ``step``. ``allow_code`` is the
    code that its coupling may import, as ``parse_coupling`` has it: True only for recipes that the user wrote.
    Without ``fit_plans``, those of semidiscrete couplings stay as a fit begins: enough to time steps.
    """

    recipe: Recipe
    run_dir: RunDir
    device: torch.device
    task: Task
    model: nn.Module
    step: int = 0
    allow_code: bool | str = True
    fit_plans: bool = True

    def with_sampler(self, sampler: SamplerConfig) -> "Run":
        """Return the run with another sampler; ValueError for one that cannot sample it."""
        return replace(self, recipe=replace(self.recipe, sampler=sampler))

    @cached_property
    def coupling(self) -> Coupling:
        """The recipe's coupling; what it needs to know of the data is measured on first use."""
        return build_coupling(
            self.recipe, self.task, self.run_dir, self.device, allow_code=self.allow_code, fit_plans=self.fit_plans
        )

    @cached_property
    def init_noise(self) -> NoiseDistribution | None:
        """The distribution that the sampler starts from; None for N(0, I)."""
        if self.recipe.sampler.init_noise != "matched":
            return None
        return _noise_distribution(self.coupling, self.recipe, self.task, self.run_dir, "noise_distribution").to(
            self.device
        )

    def fit_preconditioning(self, world: int = 1) -> None:
        """Measure data, or pairs as ``world`` ranks make them, if a network that is yet to be trained asks for it."""
        asked = self.recipe.model.precondition
        if not isinstance(self.model, Preconditioned) or asked == "none" or self.run_dir.checkpoint.exists():
            return
        if trainable_names(self.model) is not None:
            raise ValueError(f"model.precondition {asked} needs a network that is trained as a whole; use none")
        unpaired = ((batch.data, None) for batch in _some_batches(self.recipe, self.task))
        self.model.fit(self._pairs(world) if asked == "pairs" else unpaired)

    def _pairs(self, world: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield at least ten thousand data with their noise, in the batches of a call of the coupling."""
        recipe, coupling = self.recipe, self.coupling.within_process()
        rows = recipe.batch_size // recipe.gradient_accumulation_steps * self.coupling.pool_size
        rows = rows // world * ranks_together(self.coupling.across_ranks)
        generator = RandomStreams(recipe.seed, rank=0, device=self.device).noise
        full = min(rows, len(self.task.dataset.complete_rows()))
        for epoch in range(-(-MOMENTS_SAMPLES // min(len(self.task.dataset), MOMENTS_SAMPLES))):
            for batch in _some_batches(recipe, self.task, epoch, max(rows, MOMENTS_SAMPLES), rows, labels_only=False):
                if len(batch) == full:
                    yield (
                        batch.data,
                        coupling(batch.data, cond=batch.pairing_cond, mask=batch.mask, generator=generator),
                    )

    @cached_property
    def pruning(self) -> EmptyAxes | None:
        """The axes that a sampler with ``prune`` avoids, found once among at most 50,000 data and kept; or None."""
        if self.recipe.sampler.prune is None:
            return None

        def fit() -> EmptyAxes:
            return EmptyAxes.fit(lambda: _some_data(self.recipe, self.task, count=DISTRIBUTION_SAMPLES))

        return _kept(self.run_dir, "empty_axes", EmptyAxes, fit).to(self.device)

    def pipeline(self, batch_size: int = 512, prompts: tuple[str, ...] = ()) -> SamplingPipeline:
        """Return what samples the network; ``prompts`` instead of the data's own conditions."""
        recipe, task = self.recipe, self.task
        return SamplingPipeline(
            recipe.noise_path,
            recipe.sampler.scaled(recipe.scaling.bound),
            task.shape,
            device=self.device,
            batch_size=min(batch_size, task.max_batch_size or batch_size),
            conditions=lambda indices: task.conditions(indices, prompts),
            unconditional=task.unconditional,
            decode=task.decode,
            init_noise=self.init_noise,
            pruning=self.pruning,
        )


def build_run(
    recipe: Recipe,
    run_dir: RunDir,
    device: torch.device,
    dataset: DataSet | None = None,
    *,
    allow_code: bool | str = True,
    fit_plans: bool = True,
) -> Run:
    """Load what ``recipe`` needs, or ``dataset`` for its data; the weights are initial ones.

    ValueError says what to do if data or networks are not there, or do not fit.
    """
    task = recipe.task.build(recipe, device, dataset)
    return Run(recipe, run_dir, device, task, task.build_model(), allow_code=allow_code, fit_plans=fit_plans)


def build_coupling(
    recipe: Recipe,
    task: Task,
    run_dir: RunDir,
    device: torch.device,
    *,
    allow_code: bool | str = True,
    fit_plans: bool = True,
) -> Coupling:
    """Return the recipe's coupling, with moments and calibration measured or read from the run."""

    def calibration(inner: Coupling) -> NoiseDistribution:
        return _noise_distribution(inner, recipe, task, run_dir, "calibration").to(device)

    def moments() -> Moments:
        return _moments(recipe, task, run_dir).to(device)

    def plan(within: bool, **options: Any) -> SemidiscretePlan:
        options = {"state": run_dir.root / "semidiscrete_fit.safetensors", "max_steps": PLAN_STEPS} | options
        options |= {} if fit_plans else UNFITTED
        fit = lambda: _plan(recipe, task, moments(), within, options)  # noqa: E731
        return _kept(run_dir, "semidiscrete", SemidiscretePlan, fit).to(device)

    epoch = len(task.dataset) / recipe.batch_size
    sources = (moments, calibration, plan)
    coupling = parse_coupling(recipe.coupling, *sources, seed=recipe.seed, epoch=epoch, allow_import=allow_code)
    return task.coupling(coupling)


def _plan(recipe: Recipe, task: Task, moments: Moments, within: bool, options: dict[str, Any]) -> SemidiscretePlan:
    """Fit noise to the samples of the data set, mirror images among them, encoded without chance."""
    dataset = task.dataset
    if within and dataset.labels is None:
        raise ValueError(f"cond_key=label needs data with labels, and {dataset.name} has none; leave it out")

    def encoded() -> Iterator[Tensor | tuple[Tensor, Tensor]]:
        for index in torch.arange(dataset.index_count).split(task.max_batch_size or recipe.batch_size):
            batch = task.encode(dataset.indexed(index))
            if batch.index is None:
                raise ValueError(
                    f"a plan is of all samples by their index, and batches of {dataset.name} do not name theirs; "
                    f"use KNN, say"
                )
            if batch.mask is not None:
                raise ValueError("a plan takes no data with a mask; use KNN, say")
            yield (batch.data, (batch.cond or {})["label"]) if within else batch.data

    with Progress(options["max_steps"], 0, "fitting the semidiscrete plan, at most") as bar:
        report = lambda step, chi_square: bar.update(step, chi_square=chi_square)  # noqa: E731
        return SemidiscretePlan.fit(
            encoded(), moments, seed=recipe.seed, device=task.device, progress=report, **options
        )


def _moments(recipe: Recipe, task: Task, run_dir: RunDir) -> Moments:
    return _kept(run_dir, "moments", Moments, lambda: Moments.fit(_some_data(recipe, task)))


def _kept(run_dir: RunDir, name: str, kind: type[T], fit: Callable[[], T]) -> T:
    """Fit once and read again; what a run that never began has kept may be of other data."""
    path = run_dir.root / f"{name}.safetensors"
    if not (run_dir.has_begun and path.exists()):
        fit().save(path)
    return kind.load(path)


def _noise_distribution(
    coupling: Coupling, recipe: Recipe, task: Task, run_dir: RunDir, name: str
) -> NoiseDistribution:
    """Measure the distribution of the coupling's noise once and keep it under ``name``."""

    def measure() -> NoiseDistribution:
        count = min(len(task.dataset), MOMENTS_SAMPLES)
        passes = min(DISTRIBUTION_PASSES, -(-DISTRIBUTION_SAMPLES // count))
        return NoiseDistribution.measure(
            coupling.within_process(),
            (batch for epoch in range(passes) for batch in _some_data(recipe, task, epoch)),
            _moments(recipe, task, run_dir),
            by_label=recipe.conditional and task.dataset.num_classes is not None,
            generator=RandomStreams(recipe.seed, rank=0).noise,
        )

    return _kept(run_dir, name, NoiseDistribution, measure)


def _some_data(
    recipe: Recipe, task: Task, epoch: int = 0, count: int = MOMENTS_SAMPLES
) -> Iterator[tuple[Tensor, Cond]]:
    """Yield data of ``_some_batches`` on the CPU, with their labels and index."""
    for batch in _some_batches(recipe, task, epoch, count):
        batch = batch.to("cpu")
        yield batch.data, batch.pairing_cond or {}


def _some_batches(
    recipe: Recipe,
    task: Task,
    epoch: int = 0,
    count: int = MOMENTS_SAMPLES,
    rows: int | None = None,
    labels_only: bool = True,
) -> Iterator[Batch]:
    """Yield some data, augmented, encoded and scaled as in training, with their labels, or all their conditions.

    ``count`` of them, and more where a conditional recipe has many labels; ``rows`` at a time.
    """
    dataset = task.dataset
    if recipe.conditional and dataset.num_classes:
        count = max(count, SAMPLES_PER_LABEL * dataset.num_classes)
    streams = RandomStreams(recipe.seed, epoch, rank=0)
    complete = dataset.complete_rows()
    order = complete[torch.randperm(len(complete), generator=streams.order)[:count]]
    augment, encode = streams.augment, replace(streams, device=task.device).encode
    # What is encoded at a time must not depend on how many ranks share a batch.
    micro_batch = recipe.batch_size // recipe.gradient_accumulation_steps
    for indices in order.split(rows or task.max_batch_size or micro_batch):
        batch = dataset.batch(indices, augment)
        if labels_only:  # text costs time and is not needed
            labels = (batch.cond or {}).get("label")
            batch = Batch(batch.data, None if labels is None else {"label": labels}, batch.mask, batch.index)
        yield task.encode(batch, encode)


def make_accelerator(recipe: Recipe, device: str, run_dir: RunDir) -> Any:
    """Return accelerate's view of the machine; ``device`` is auto, cpu, cuda or mps."""
    with require_extra("train", "training"):
        from accelerate import Accelerator
        from accelerate.utils import DistributedType, GradientAccumulationPlugin, InitProcessGroupKwargs
    check_trackers(recipe.trackers)
    if device not in ("auto", "cpu", "cuda", "mps"):
        raise ValueError(f"device must be auto, cpu, cuda or mps, got {device!r}")
    accelerator = Accelerator(
        # Without an accelerator said so: else processes on a CPU would not know of each other.
        cpu=device == "cpu" or (device == "auto" and not is_accelerated()),
        mixed_precision=recipe.mixed_precision,
        fsdp_plugin=(fsdp := sharding.plugin(recipe)),
        # As a plugin, since accelerate's environment overrides the plain number.
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=recipe.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        log_with=list(recipe.trackers) or None,
        project_dir=str(run_dir.root),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=TIMEOUT)],
    )
    if fsdp is not None and accelerator.distributed_type == DistributedType.MULTI_CPU:  # which accelerate leaves out
        accelerator.state.distributed_type, accelerator.state.fsdp_plugin = DistributedType.FSDP, fsdp
    if device != "auto" and accelerator.device.type != device:
        raise ValueError(f"device {device} is not available here; use auto or cpu")
    if recipe.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        warnings.warn("mixed_precision fp16 has no effect on a CPU: it trains in float32", stacklevel=2)
    return accelerator


def check_trackers(names: Iterable[str]) -> None:
    """Raise MissingDependencyError for a tracker that is not installed: accelerate would not."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise MissingDependencyError(f"the tracker {name} is not installed; {how_to_install(name)}")
