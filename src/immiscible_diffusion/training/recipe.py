"""A recipe: one experiment. Names one of each part and says how long to train."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from immiscible_diffusion.data import DataScaling
from immiscible_diffusion.diffusion.losses import ConsistencyLoss, RegressionLoss
from immiscible_diffusion.diffusion.paths import EDMPath, FlowMatchingPath, VPPath
from immiscible_diffusion.diffusion.samplers import SamplerConfig
from immiscible_diffusion.models import ModelConfig
from immiscible_diffusion.training.ema import EMAConfig
from immiscible_diffusion.training.optim import OptimizerConfig
from immiscible_diffusion.training.task import TaskConfig, import_applications
from immiscible_diffusion.utils.checks import NonNegativeInt, PositiveInt, Probability, check_fields
from immiscible_diffusion.utils.serialization import flatten, from_dict, to_dict


@dataclass(frozen=True)
class Recipe:
    """One experiment.

    Args:
        name: what it is called.
        task: the application: its data, what is diffused of them, and how samples are evaluated.
        model: the network.
        coupling: which noise goes with which sample: ``independent``, ``knn:k=16``, ``knn:k=16,center=mean``,
            ``assignment``, ``assignment:pool=4,across_ranks=true``, ``gaussian_ot:eps=4``, ``semidiscrete``,
            ``calibrated:...``, ``shuffled:...``, or your own ``module:Class(k=3)``.
        conditional: give the network the conditions of the data: labels, text, observations.
        cond_drop_prob: probability that a condition is dropped in training, so that samples can be guided
            (2207.12598); usually 0.1.
        scaling: scaling of the data before they are diffused; undone after sampling.
        path: how data and noise are mixed.
        loss: what the network is fitted by: ``RegressionLoss``, or ``ConsistencyLoss`` on an EDMPath.
        optim: the optimizer.
        ema: the average of the weights.
        batch_size: data per step over all devices and accumulated micro-batches.
        gradient_accumulation_steps: micro-batches per step of each process; a coupling sees one at a time, or ``pool``
            of them. Of a run that resumes, draws and pairs stay those of its first start, and this is the least.
        prefetch: micro-batches (pools) paired in a thread before they are needed; 0 = in the step.
        steps: steps of training.
        seed: seed of everything that is drawn.
        mixed_precision: precision of the network, as accelerate's; ``no`` is float32.
        compile: compile the network, and its average for sampling; minutes before the first step, faster after it.
        channels_last: keep the weights of convolutions by pixel, as tensor cores read them.
        sampler: how samples are generated for previews, ``sample`` and ``evaluate``.
        log_every: steps between lines in metrics.jsonl.
        validate_every: steps between losses on fixed, independent noise and times.
        preview_every: steps between sample grids; 0 = none.
        checkpoint_every: steps between checkpoints to resume from.
        checkpoints_total_limit: how many of these are kept with their averaged weights, in checkpoints/: 1 = the last
            alone, None = all.
        num_workers: processes that load and decode data; 0 = the thread that pairs them.
        trackers: any of ``tensorboard`` and ``wandb``.
    """

    name: str
    task: TaskConfig
    model: ModelConfig
    coupling: str = "independent"
    conditional: bool = False
    cond_drop_prob: Probability = 0.0
    scaling: DataScaling = field(default_factory=DataScaling)
    path: FlowMatchingPath | VPPath | EDMPath = field(default_factory=FlowMatchingPath)
    loss: RegressionLoss | ConsistencyLoss = field(default_factory=RegressionLoss)
    optim: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    batch_size: PositiveInt = 256
    gradient_accumulation_steps: PositiveInt = 1
    prefetch: NonNegativeInt = 1
    steps: PositiveInt = 400_000
    seed: NonNegativeInt = 0
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    compile: bool = False
    channels_last: bool = False
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    log_every: PositiveInt = 100
    validate_every: PositiveInt = 1000
    preview_every: NonNegativeInt = 20_000
    checkpoint_every: PositiveInt = 5000
    checkpoints_total_limit: PositiveInt | None = 1
    num_workers: NonNegativeInt = 0
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        if self.cond_drop_prob and not self.conditional:
            raise ValueError(f"cond_drop_prob {self.cond_drop_prob} needs conditional; set it too")
        guided = self.sampler.guidance != 1
        if guided and not (self.cond_drop_prob or self.task.knows_unconditional):
            raise ValueError(
                f"sampler.guidance {self.sampler.guidance} needs a network that was trained "
                f"without conditions as well; train one with conditional and cond_drop_prob 0.1"
            )
        self.loss.check(self.path, self.sampler)
        self.sampler.check(self.path)
        self.task.check(self)

    @property
    def noise_path(self) -> FlowMatchingPath | VPPath | EDMPath:
        """``path`` for the data as they are diffused: scaled data have another ``sigma_data``."""
        if not isinstance(self.path, EDMPath) or self.scaling.is_identity:
            return self.path
        return dataclasses.replace(self.path, sigma_data=self.scaling.sigma_data(self.path.sigma_data))

    def tiny(self) -> "Recipe":
        """Shrink the experiment to a CPU smoke run of seconds, through the same code."""
        return dataclasses.replace(
            self,
            task=self.task.tiny(),
            model=self.model.tiny(),
            optim=self.optim.tiny(),
            ema=self.ema.tiny(),
            batch_size=16,
            gradient_accumulation_steps=1,
            steps=8,
            mixed_precision="no",
            compile=False,
            # One linear step would be none.
            sampler=dataclasses.replace(self.sampler, steps=2, tolerance=1e-2, spacing="trailing"),
            log_every=2,
            validate_every=4,
            preview_every=4 if self.preview_every else 0,
            checkpoint_every=4,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as JSON values; parts that could be of several kinds say which."""
        return to_dict(self)

    @classmethod
    def from_dict(cls, values: Any) -> "Recipe":
        """Read what ``to_dict`` wrote; ValueError on unknown or missing fields.

        Fields that an older version did not know may be missing: they get their defaults.
        """
        if isinstance(values, Mapping) and "task" not in values and "data" in values:
            raise ValueError(
                "recipe: written by a release before 0.2, whose recipes had no task; train the "
                "recipe again, or use immiscible-diffusion 0.1 for this run"
            )
        import_applications()
        return from_dict(cls, values, "recipe")


def differences(one: Recipe, other: Recipe) -> list[str]:
    """List the fields in which two recipes differ, as ``field: value -> other value``."""
    left, right = flatten(one.to_dict()), flatten(other.to_dict())
    return [
        f"{key}: {left.get(key)} -> {right.get(key)}"
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    ]
