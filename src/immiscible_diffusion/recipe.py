"""A recipe: one experiment, whole. Names one of each part and says how long to train."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from immiscible_diffusion.codec import Pixels, StableDiffusionCodec
from immiscible_diffusion.coupling.scaling import ImageScaling
from immiscible_diffusion.data import DataConfig
from immiscible_diffusion.data.captions import Buckets, Captions
from immiscible_diffusion.loss import ConsistencyLoss, RegressionLoss
from immiscible_diffusion.model import MLP, DiT, StableDiffusionUNet, UNet
from immiscible_diffusion.path import DiffusionPath, FlowPath, SigmaPath
from immiscible_diffusion.plain import flat, from_plain, to_plain
from immiscible_diffusion.sampler import Sampler

DECAYS = ("none", "linear", "cosine")
LOCAL = ("digits", "fashion_mnist")  # data that need no path
Model = MLP | UNet | DiT | StableDiffusionUNet


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
        eight_bit: keep Adam's state in 8 bits (2110.02861); needs CUDA.
    """

    lr: float = 2e-4
    warmup: int = 5000
    decay: Literal["none", "linear", "cosine"] = "none"
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    ema: float = 0.9999
    ema_ramp: bool = False
    eight_bit: bool = False

    def __post_init__(self) -> None:
        if not self.lr > 0 or self.warmup < 0 or self.clip < 0 or not 0 <= self.ema < 1:
            raise ValueError(
                f"expected lr > 0, warmup >= 0, clip >= 0 and 0 <= ema < 1; got lr={self.lr}, "
                f"warmup={self.warmup}, clip={self.clip}, ema={self.ema}"
            )
        if self.decay not in DECAYS:
            raise ValueError(f"decay must be one of {', '.join(DECAYS)}, got {self.decay!r}")


@dataclass(frozen=True)
class Evaluation:
    """How samples are judged.

    Args:
        features: feature space: ``classifier``, ``pixels``, or of a pretrained network
            ``efficientnet``, ``inception`` (FID) or ``dinov2`` (FD-DINOv2); docs/evaluate.md.
        samples: images generated for every figure.
        budgets: numbers of Euler steps that ``compare`` samples with.
        points: how many training steps ``compare`` evaluates at, spaced evenly in their logarithm.
        first: the first of them, as a share of all steps.
        at: the training steps themselves, instead of ``points`` and ``first``; those beyond the
            end of training are left out, and the last step is always among them.
    """

    features: Literal["classifier", "pixels", "efficientnet", "inception", "dinov2"] = "classifier"
    samples: int = 10_000
    budgets: tuple[int, ...] = (2, 5, 20, 100)
    points: int = 6
    first: float = 0.1
    at: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.samples < 2 or self.points < 1 or not 0 < self.first <= 1:
            raise ValueError(
                f"expected samples >= 2, points >= 1 and 0 < first <= 1; got "
                f"samples={self.samples}, points={self.points}, first={self.first}"
            )
        if not self.budgets or min(self.budgets) < 1:
            raise ValueError(f"budgets must be numbers of steps >= 1, got {self.budgets}")
        if self.at and min(self.at) < 1:
            raise ValueError(f"at must be training steps >= 1, got {self.at}")

    def steps(self, total: int) -> tuple[int, ...]:
        """The training steps to evaluate at; the last is ``total``."""
        if self.at:
            return tuple(sorted({step for step in self.at if step < total} | {total}))
        shares = (self.first ** (1 - i / max(1, self.points - 1)) for i in range(self.points - 1))
        return tuple(sorted({max(1, round(total * share)) for share in shares} | {total}))


@dataclass(frozen=True)
class Recipe:
    """One experiment.

    Args:
        name: what it is called.
        data: the data set.
        coupling: which noise goes with which datum: ``independent``, ``knn:k=16``,
            ``knn:k=16,center=mean``, ``assignment``, ``shuffled:...``, or ``module:Class(k=3)``.
        codec: what stands between pictures and what is diffused: ``Pixels``, nothing, or
            ``StableDiffusionCodec``.
        captions: where prompts come from, for networks that are told by text.
        buckets: pictures of several shapes; None = all are cut to one square.
        latents: a folder written by ``immiscible encode``, read instead of the pictures.
        conditional: give the network the labels, or the text.
        label_dropout: share of labels (prompts) that a conditional network does not see in
            training, so that it can be guided (2207.12598); usually 0.1.
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
        prompts: what previews show; by default the classes, or the captions of the first data.
        push_to_hub: ``owner/name`` to publish to after the last step.
    """

    name: str
    data: DataConfig = field(default_factory=DataConfig)
    coupling: str = "independent"
    codec: Pixels | StableDiffusionCodec = field(default_factory=Pixels)
    captions: Captions | None = None
    buckets: Buckets | None = None
    latents: str | None = None
    conditional: bool = False
    label_dropout: float = 0.0
    scaling: ImageScaling = field(default_factory=ImageScaling)
    path: FlowPath | DiffusionPath | SigmaPath = field(default_factory=FlowPath)
    loss: RegressionLoss | ConsistencyLoss = field(default_factory=RegressionLoss)
    model: Model = field(default_factory=UNet)
    optimiser: Optimiser = field(default_factory=Optimiser)
    batch_size: int = 256
    accumulation: int = 1
    prefetch: int = 1
    steps: int = 400_000
    seed: int = 0
    precision: Literal["no", "fp16", "bf16"] = "no"
    sampler: Sampler = field(default_factory=Sampler)
    evaluation: Evaluation = field(default_factory=Evaluation)
    log_every: int = 100
    validate_every: int = 1000
    preview_every: int = 20_000
    checkpoint_every: int = 5000
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    prompts: tuple[str, ...] = ()
    push_to_hub: str | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulation", "steps", "log_every", "validate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.checkpoint_every < 1 or self.preview_every < 0 or self.prefetch < 0:
            raise ValueError(
                f"checkpoint_every must be >= 1, preview_every and prefetch >= 0, got "
                f"{self.checkpoint_every}, {self.preview_every} and {self.prefetch}"
            )
        if self.conditional and not self.data.labels and not self.by_text:
            raise ValueError("conditional needs labels; set data.labels or drop conditional")
        if not 0 <= self.label_dropout < 1 or (self.label_dropout and not self.conditional):
            raise ValueError(
                f"label_dropout must be from 0 to below 1, and is of conditional recipes, got "
                f"{self.label_dropout}"
            )
        if self.sampler.guidance != 1 and not (self.label_dropout or self.by_text):
            raise ValueError(
                f"sampler.guidance {self.sampler.guidance} needs a network that was trained "
                f"without labels as well; set label_dropout"
            )
        if isinstance(self.loss, ConsistencyLoss) and not isinstance(self.path, SigmaPath):
            raise ValueError(f"ConsistencyLoss needs a SigmaPath, got {type(self.path).__name__}")
        self.sampler.check(self.path)
        self._check_text()

    def _check_text(self) -> None:
        codec, model = self.codec, self.model
        if not isinstance(model, StableDiffusionUNet):
            return
        if not isinstance(codec, StableDiffusionCodec) or isinstance(self.path, SigmaPath):
            raise ValueError(
                f"StableDiffusionUNet needs StableDiffusionCodec and no SigmaPath, got "
                f"{type(codec).__name__} and {type(self.path).__name__}"
            )
        if model.painting != (codec.painting is not None) or not self.conditional:
            raise ValueError(
                f"a network told by text is conditional, and paints if parts are hidden; got "
                f"conditional={self.conditional}, model.painting={model.painting} and "
                f"codec.painting={codec.painting}"
            )

    @property
    def by_text(self) -> bool:
        """Whether the network is told by text."""
        return isinstance(self.model, StableDiffusionUNet)

    @property
    def network(self) -> Model:
        """The model; where it does not say whose weights, those of the codec's pipeline."""
        if isinstance(self.model, StableDiffusionUNet) and self.model.pretrained is None:
            assert isinstance(self.codec, StableDiffusionCodec)
            return dataclasses.replace(self.model, pretrained=self.codec.pretrained)
        return self.model

    def tiny(self) -> "Recipe":
        """The same experiment shrunk to a CPU smoke run of seconds, through the same code.

        Of a network that is told by text, the pipeline has to be given (``codec.pretrained``), and
        data that lie nowhere are replaced by digits.
        """
        model: Model = MLP(width=32, depth=1)
        if isinstance(self.model, UNet):
            model = dataclasses.replace(
                self.model, channels=8, blocks=1, groups=4, head_channels=4, dropout=0.0
            )
        if isinstance(self.model, DiT):
            model = dataclasses.replace(self.model, heads=2, head_channels=8, depth=2)
        data = dataclasses.replace(self.data, limit=min(self.data.limit or 256, 256))
        codec = self.codec
        if isinstance(self.model, StableDiffusionUNet):
            model = dataclasses.replace(self.model, gradient_checkpointing=False)
            data = _at_hand(data)
        if isinstance(codec, StableDiffusionCodec):
            codec = dataclasses.replace(codec, pretrained=None)
        return dataclasses.replace(
            self,
            data=data,
            codec=codec,
            buckets=None,
            model=model,
            optimiser=dataclasses.replace(self.optimiser, warmup=2, ema=0.9, ema_ramp=True),
            batch_size=16,
            accumulation=1,
            steps=8,
            precision="no",
            sampler=dataclasses.replace(self.sampler, steps=2, tolerance=1e-2),
            evaluation=dataclasses.replace(
                self.evaluation, samples=128, budgets=(1, 2), points=2, first=0.5, at=()
            ),
            log_every=2,
            validate_every=4,
            preview_every=4 if self.preview_every else 0,
            checkpoint_every=4,
        )

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON values; parts that could be of several kinds say which."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Recipe":
        """The recipe that ``to_dict`` wrote; ValueError on unknown or missing fields.

        Fields that an older version did not know may be missing: they get their defaults.
        """
        recipe = from_plain(cls, values, "recipe")
        assert isinstance(recipe, Recipe)
        return recipe


def _at_hand(data: DataConfig) -> DataConfig:
    """``data`` if they are there without being fetched, else 32 x 32 colour pictures of digits."""
    if data.path or data.name in LOCAL:
        return data
    return DataConfig("digits", size=32, channels=3, flip=data.flip, limit=data.limit)


def differences(one: Recipe, other: Recipe) -> list[str]:
    """The fields in which two recipes differ, as ``field: value -> other value``."""
    left, right = flat(one.to_dict()), flat(other.to_dict())
    return [
        f"{key}: {left.get(key)} -> {right.get(key)}"
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    ]
