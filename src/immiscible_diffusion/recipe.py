"""A recipe: one experiment, whole. Names one of each part and says how long to train."""

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from immiscible_diffusion.coupling.scaling import ImageScaling
from immiscible_diffusion.data import Batch, DataConfig, DemonstrationConfig
from immiscible_diffusion.evaluation import Evaluation, PolicyEvaluation
from immiscible_diffusion.loss import ConsistencyLoss, RegressionLoss
from immiscible_diffusion.model import MLP, DiT, PolicyMLP, UNet, UNet1D
from immiscible_diffusion.path import DiffusionPath, FlowPath, SigmaPath
from immiscible_diffusion.sampler import Sampler

DECAYS = ("none", "linear", "cosine")


@dataclass(frozen=True)
class Optimiser:
    """Adam, with warm-up, clipping and an average of the weights.

    Args:
        lr: learning rate after warm-up.
        warmup: steps of linear warm-up from 0.
        decay: of the learning rate after warm-up, to 0 at the last step: ``none`` (as published),
            ``linear`` or ``cosine``.
        clip: bound on the gradient's norm; 0 = none.
        betas: Adam's.
        weight_decay: decoupled (AdamW); 0 = Adam.
        ema: decay of the exponential moving average of the weights, in [0, 1).
        ema_ramp: let the decay grow as (1 + step) / (10 + step) up to ``ema``, so that short runs
            forget their start; off as published.
    """

    lr: float = 2e-4
    warmup: int = 5000
    decay: Literal["none", "linear", "cosine"] = "none"
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    ema: float = 0.9999
    ema_ramp: bool = False

    def __post_init__(self) -> None:
        if not self.lr > 0 or self.warmup < 0 or self.clip < 0 or not 0 <= self.ema < 1:
            raise ValueError(
                f"expected lr > 0, warmup >= 0, clip >= 0 and 0 <= ema < 1; got lr={self.lr}, "
                f"warmup={self.warmup}, clip={self.clip}, ema={self.ema}"
            )
        if self.decay not in DECAYS:
            raise ValueError(f"decay must be one of {', '.join(DECAYS)}, got {self.decay!r}")

    @property
    def averaging(self) -> str:
        """How the weights that are judged were averaged."""
        if not self.ema:
            return "none"
        return f"{self.ema:g}" + (", ramped up" if self.ema_ramp else "")


@dataclass(frozen=True)
class Recipe:
    """One experiment.

    Args:
        name: what it is called.
        data: the data set.
        coupling: which noise goes with which datum: ``independent``, ``knn:k=16``,
            ``knn:k=16,center=mean``, ``assignment``, ``shuffled:...``, or ``module:Class(k=3)``.
        conditional: give the network the labels.
        label_dropout: share of labels that a conditional network does not see in training, so that
            it can be guided (2207.12598); usually 0.1.
        scaling: of the data before they are diffused; undone after sampling.
        path: how data and noise are mixed.
        loss: what the network is fitted by: ``RegressionLoss``, or ``ConsistencyLoss`` on a
            SigmaPath.
        model: the network.
        optimiser: how it is fitted.
        batch_size: data per step over all devices and accumulated micro-batches.
        accumulation: micro-batches per step; the pairing sees one at a time, or ``pool`` of them.
        prefetch: micro-batches (pools) paired in a thread before they are needed; 0 = in the step.
        steps: of training.
        seed: of everything.
        precision: mixed precision; ``no`` is float32.
        sampler: how images are made for previews, ``sample`` and ``evaluate``.
        evaluation: how they are judged.
        log_every: steps between lines in metrics.jsonl.
        validate_every: steps between losses on fixed, independent noise and times.
        preview_every: steps between sample grids; 0 = none.
        checkpoint_every: steps between checkpoints to resume from.
        trackers: any of ``tensorboard`` and ``wandb``.
    """

    name: str
    data: DataConfig | DemonstrationConfig = field(default_factory=DataConfig)
    coupling: str = "independent"
    conditional: bool = False
    label_dropout: float = 0.0
    scaling: ImageScaling = field(default_factory=ImageScaling)
    path: FlowPath | DiffusionPath | SigmaPath = field(default_factory=FlowPath)
    loss: RegressionLoss | ConsistencyLoss = field(default_factory=RegressionLoss)
    model: MLP | UNet | DiT | UNet1D | PolicyMLP = field(default_factory=UNet)
    optimiser: Optimiser = field(default_factory=Optimiser)
    batch_size: int = 256
    accumulation: int = 1
    prefetch: int = 1
    steps: int = 400_000
    seed: int = 0
    precision: Literal["no", "fp16", "bf16"] = "no"
    sampler: Sampler = field(default_factory=Sampler)
    evaluation: Evaluation | PolicyEvaluation = field(default_factory=Evaluation)
    log_every: int = 100
    validate_every: int = 1000
    preview_every: int = 20_000
    checkpoint_every: int = 5000
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulation", "steps", "log_every", "validate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.checkpoint_every < 1 or self.preview_every < 0 or self.prefetch < 0:
            raise ValueError(
                f"checkpoint_every must be >= 1, preview_every and prefetch >= 0, got "
                f"{self.checkpoint_every}, {self.preview_every} and {self.prefetch}"
            )
        if self.conditional and not self.data.labels:
            raise ValueError("conditional needs labels; set data.labels or drop conditional")
        if not 0 <= self.label_dropout < 1 or (self.label_dropout and not self.conditional):
            raise ValueError(
                f"label_dropout must be from 0 to below 1, and is of conditional recipes, got "
                f"{self.label_dropout}"
            )
        if self.sampler.guidance != 1 and not self.label_dropout:
            raise ValueError(
                f"sampler.guidance {self.sampler.guidance} needs a network that was trained "
                f"without labels as well; set label_dropout"
            )
        self._check_loss()
        self.sampler.check(self.path)
        if self.is_policy != isinstance(self.evaluation, PolicyEvaluation):
            raise ValueError(
                f"demonstrations are judged by PolicyEvaluation and images by Evaluation, got "
                f"{type(self.data).__name__} and {type(self.evaluation).__name__}"
            )
        if self.is_policy and self.preview_every:
            raise ValueError("previews are pictures, and plans are none; set preview_every 0")

    def _check_loss(self) -> None:
        """Raise ValueError for a path or sampler that the loss does not go with."""
        if not isinstance(self.loss, ConsistencyLoss):
            if isinstance(self.path, SigmaPath) and self.sampler.method == "consistency":
                raise ValueError(
                    f"sampler.method consistency goes with ConsistencyLoss, and nothing else does; "
                    f"got {self.sampler.method} and {type(self.loss).__name__}"
                )
            return
        if not isinstance(self.path, SigmaPath):
            raise ValueError(f"ConsistencyLoss needs a SigmaPath, got {type(self.path).__name__}")
        if self.sampler.method != "consistency":
            raise ValueError(
                f"a consistency model says the datum in one step, and sampler.method consistency "
                f"alone samples it; got {self.sampler.method}"
            )
        if self.path.time == "discrete":
            raise ValueError(
                "ConsistencyLoss has the curriculum of ECT, whose noise levels are continuous; "
                "path.time discrete is iCT's, which is not built: use lognormal"
            )

    def as_seen(self, batch: Batch) -> Batch:
        """``batch`` of the data set as the model sees it: scaled, and 0 where it is not valid.

        The network sees all of ``x_t``: padding must not tell it anything.
        """
        data = self.scaling.apply(batch.data)
        if batch.mask is not None:
            data = data.masked_fill(~batch.mask, 0)
        return Batch(data, batch.cond, batch.mask)

    @property
    def noise_path(self) -> FlowPath | DiffusionPath | SigmaPath:
        """``path`` for the data as they are diffused: scaled data have another sigma_data."""
        if not isinstance(self.path, SigmaPath) or self.scaling.factor == 1:
            return self.path
        wide = self.path.sigma_data * self.scaling.factor
        return dataclasses.replace(self.path, sigma_data=wide)

    @property
    def of_images(self) -> Evaluation:
        """How the images are judged; ValueError for a policy, which makes none."""
        if not isinstance(self.evaluation, Evaluation):
            raise ValueError(f"{self.name} trains a policy, which makes no images to judge")
        return self.evaluation

    @property
    def is_policy(self) -> bool:
        """Whether it is actions that are generated, given observations."""
        return isinstance(self.data, DemonstrationConfig)

    def tiny(self) -> "Recipe":
        """The same experiment shrunk to a CPU smoke run of seconds, through the same code."""
        return dataclasses.replace(
            self,
            data=self.data.tiny(),
            model=self.model.tiny(),
            optimiser=dataclasses.replace(self.optimiser, warmup=2, ema=0.9, ema_ramp=True),
            batch_size=16,
            accumulation=1,
            steps=8,
            precision="no",
            sampler=dataclasses.replace(self.sampler, steps=2, tolerance=1e-2),
            evaluation=self.evaluation.tiny(),
            log_every=2,
            validate_every=4,
            preview_every=4 if self.preview_every else 0,
            checkpoint_every=4,
        )

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON values; parts that could be of several kinds say which."""
        return _to_json(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Recipe":
        """The recipe that ``to_dict`` wrote; ValueError on unknown or missing fields.

        Fields that an older version did not know may be missing: they get their defaults.
        """
        recipe = _from_json(cls, values, "recipe")
        assert isinstance(recipe, Recipe)
        return recipe


def differences(one: Recipe, other: Recipe) -> list[str]:
    """The fields in which two recipes differ, as ``field: value -> other value``."""
    left, right = _flat(one.to_dict()), _flat(other.to_dict())
    return [
        f"{key}: {left.get(key)} -> {right.get(key)}"
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    ]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat


def _to_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"kind": type(value).__name__} | fields
    if isinstance(value, (tuple, list)):
        return [_to_json(item) for item in value]
    return value


def _from_json(kind: Any, value: Any, where: str) -> Any:
    """``value`` as an instance of the annotation ``kind``, for the few kinds recipes use."""
    options: list[Any] = [
        option
        for option in (typing.get_args(kind) if _is_union(kind) else (kind,))
        if dataclasses.is_dataclass(option)
    ]
    if not options:
        return tuple(value) if isinstance(value, list) else value
    if value is None and _is_union(kind):
        return None
    names = {option.__name__: option for option in options}
    if not isinstance(value, dict) or value.get("kind") not in names:
        raise ValueError(f"{where} must be one of {', '.join(names)}, got {value!r}")
    chosen = names[value["kind"]]
    hints = typing.get_type_hints(chosen)
    known = dataclasses.fields(chosen)
    given = value.keys() - {"kind"}
    needed = {f.name for f in known if f.default is f.default_factory is dataclasses.MISSING}
    if wrong := (given - {f.name for f in known}) | (needed - given):
        raise ValueError(f"{where}: unknown or missing fields: {', '.join(sorted(wrong))}")
    return chosen(
        **{name: _from_json(hints[name], value[name], f"{where}.{name}") for name in given}
    )


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)
