"""A recipe: one experiment, whole. Names one of each part and says how long to train."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from immiscible_diffusion.applications.pusht.config import DemonstrationConfig
from immiscible_diffusion.applications.stable_diffusion.config import StableDiffusionCodec
from immiscible_diffusion.applications.stable_diffusion.unet import StableDiffusionUNet
from immiscible_diffusion.data import DataConfig
from immiscible_diffusion.data.aspect_buckets import Buckets
from immiscible_diffusion.data.captions import Captions
from immiscible_diffusion.data.scaling import DataScaling
from immiscible_diffusion.diffusion.losses import ConsistencyLoss, RegressionLoss
from immiscible_diffusion.diffusion.paths import EDMPath, FlowMatchingPath, VPPath
from immiscible_diffusion.diffusion.samplers import SamplerConfig
from immiscible_diffusion.evaluation.config import Evaluation, PolicyEvaluation
from immiscible_diffusion.models import MLP, DiT, PolicyMLP, UNet, UNet1D
from immiscible_diffusion.training.optim import OptimizerConfig
from immiscible_diffusion.training.pixels import Pixels
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.serialization import flat, from_dict, to_dict

Model = MLP | UNet | DiT | UNet1D | PolicyMLP | StableDiffusionUNet


@dataclass(frozen=True)
class Recipe:
    """One experiment.

    Args:
        name: what it is called.
        data: the data set.
        coupling: which noise goes with which sample: ``independent``, ``knn:k=16``,
            ``knn:k=16,center=mean``, ``assignment``, ``shuffled:...``, or ``module:Class(k=3)``.
        codec: what stands between pictures and what is diffused: ``Pixels``, nothing, or
            ``StableDiffusionCodec``.
        captions: where prompts come from, for networks that are told by text.
        buckets: pictures of several shapes; None = all are cut to one square.
        latents: a folder written by ``immiscible encode``, read instead of the pictures.
        conditional: give the network the labels, or the text.
        cond_drop_prob: share of labels (prompts) that a conditional network does not see in
            training, so that it can be guided (2207.12598); usually 0.1.
        scaling: of the data before they are diffused; undone after sampling.
        path: how data and noise are mixed.
        loss: what the network is fitted by: ``RegressionLoss``, or ``ConsistencyLoss`` on a
            EDMPath.
        model: the network.
        optim: how it is fitted.
        batch_size: data per step over all devices and accumulated micro-batches.
        gradient_accumulation_steps: micro-batches per step; the pairing sees one at a time, or ``pool`` of them.
        prefetch: micro-batches (pools) paired in a thread before they are needed; 0 = in the step.
        steps: of training.
        seed: of everything.
        mixed_precision: as accelerate's; ``no`` is float32.
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
    data: DataConfig | DemonstrationConfig = field(default_factory=DataConfig)
    coupling: str = "independent"
    codec: Pixels | StableDiffusionCodec = field(default_factory=Pixels)
    captions: Captions | None = None
    buckets: Buckets | None = None
    latents: str | None = None
    conditional: bool = False
    cond_drop_prob: float = 0.0
    scaling: DataScaling = field(default_factory=DataScaling)
    path: FlowMatchingPath | VPPath | EDMPath = field(default_factory=FlowMatchingPath)
    loss: RegressionLoss | ConsistencyLoss = field(default_factory=RegressionLoss)
    model: Model = field(default_factory=UNet)
    optim: OptimizerConfig = field(default_factory=OptimizerConfig)
    batch_size: int = 256
    gradient_accumulation_steps: int = 1
    prefetch: int = 1
    steps: int = 400_000
    seed: int = 0
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    evaluation: Evaluation | PolicyEvaluation = field(default_factory=Evaluation)
    log_every: int = 100
    validate_every: int = 1000
    preview_every: int = 20_000
    checkpoint_every: int = 5000
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    prompts: tuple[str, ...] = ()
    push_to_hub: str | None = None

    def __post_init__(self) -> None:
        for name in (
            "batch_size",
            "gradient_accumulation_steps",
            "steps",
            "log_every",
            "validate_every",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.checkpoint_every < 1 or self.preview_every < 0 or self.prefetch < 0:
            raise ValueError(
                f"checkpoint_every must be >= 1, preview_every and prefetch >= 0, got "
                f"{self.checkpoint_every}, {self.preview_every} and {self.prefetch}"
            )
        if self.conditional and not self.data.labels and not self.by_text:
            raise ValueError("conditional needs labels; set data.labels or drop conditional")
        if not 0 <= self.cond_drop_prob < 1 or (self.cond_drop_prob and not self.conditional):
            raise ValueError(
                f"cond_drop_prob must be from 0 to below 1, and is of conditional recipes, got "
                f"{self.cond_drop_prob}"
            )
        if self.sampler.guidance != 1 and not (self.cond_drop_prob or self.by_text):
            raise ValueError(
                f"sampler.guidance {self.sampler.guidance} needs a network that was trained "
                f"without labels as well; set cond_drop_prob"
            )
        self._check_loss()
        self.sampler.check(self.path)
        self._check_text()
        if self.is_policy != isinstance(self.evaluation, PolicyEvaluation):
            raise ValueError(
                f"demonstrations are judged by PolicyEvaluation and images by Evaluation, got "
                f"{type(self.data).__name__} and {type(self.evaluation).__name__}"
            )
        if self.is_policy != isinstance(self.model, UNet1D | PolicyMLP):
            raise ValueError(
                f"UNet1D and PolicyMLP plan actions from observations, and nothing else does; got "
                f"{type(self.model).__name__} for {type(self.data).__name__}"
            )
        if self.is_policy and self.scaling.factor != 1:
            raise ValueError(
                f"scaling.factor is of images; actions keep their range, got {self.scaling.factor}"
            )
        if self.is_policy and self.preview_every:
            raise ValueError("previews are pictures, and plans are none; set preview_every 0")

        if getattr(self.data, "stream", False) and (self.buckets or self.latents):
            raise ValueError("a stream has pictures of one size; leave buckets and latents")

    def _check_loss(self) -> None:
        """Raise ValueError for a path or sampler that the loss does not go with."""
        if not isinstance(self.loss, ConsistencyLoss):
            if isinstance(self.path, EDMPath) and self.sampler.method == "consistency":
                raise ValueError(
                    f"sampler.method consistency goes with ConsistencyLoss, and nothing else does; "
                    f"got {self.sampler.method} and {type(self.loss).__name__}"
                )
            return
        if not isinstance(self.path, EDMPath):
            raise ValueError(f"ConsistencyLoss needs a EDMPath, got {type(self.path).__name__}")
        if self.sampler.method != "consistency":
            raise ValueError(
                f"a consistency model says the sample in one step, and sampler.method consistency "
                f"alone samples it; got {self.sampler.method}"
            )
        if self.path.time == "discrete":
            raise ValueError(
                "ConsistencyLoss has the curriculum of ECT, whose noise levels are continuous; "
                "path.time discrete is iCT's, which is not built: use lognormal"
            )

    def _check_text(self) -> None:
        """Raise ValueError for a network told by text that lacks a part."""
        codec, model = self.codec, self.model
        if self.latents is not None and (not self.by_text or self.buckets is not None):
            raise ValueError(
                "latents are of one size, and are read by networks told by text; leave latents, or "
                "buckets"
            )
        if not isinstance(model, StableDiffusionUNet):
            return
        if self.scaling.factor != 1 and (model.lora is not None or model.painting):
            raise ValueError(
                f"adapters and painters go with a VAE that is not scaled; leave scaling.factor 1, "
                f"got {self.scaling.factor}"
            )
        if not isinstance(codec, StableDiffusionCodec) or isinstance(self.path, EDMPath):
            raise ValueError(
                f"StableDiffusionUNet needs StableDiffusionCodec and no EDMPath, got "
                f"{type(codec).__name__} and {type(self.path).__name__}"
            )
        if model.painting != (codec.painting is not None) or not self.conditional:
            raise ValueError(
                f"a network told by text is conditional, and paints if parts are hidden; got "
                f"conditional={self.conditional}, model.painting={model.painting} and "
                f"codec.painting={codec.painting}"
            )

    def as_seen(self, batch: Batch) -> Batch:
        """``batch``, as the codec gives it, as the model sees it: scaled, and 0 where not valid.

        The network sees all of ``x_t``: padding must not tell it anything.
        """
        data = self.scaling.apply(batch.data)
        if batch.mask is not None:
            data = data.masked_fill(~batch.mask, 0)
        return Batch(data, batch.cond, batch.mask)

    @property
    def noise_path(self) -> FlowMatchingPath | VPPath | EDMPath:
        """``path`` for the data as they are diffused: scaled data have another sigma_data."""
        if not isinstance(self.path, EDMPath) or self.scaling.factor == 1:
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

    @property
    def in_pixels(self) -> bool:
        """Whether images are diffused as they are: neither latents nor actions."""
        return isinstance(self.codec, Pixels) and not self.is_policy

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
        data = self.data.tiny()
        if self.by_text and isinstance(data, DataConfig):
            data = data.at_hand()
        return dataclasses.replace(
            self,
            data=data,
            codec=self.codec.tiny(),
            buckets=None,
            model=self.model.tiny(),
            optim=self.optim.tiny(),
            batch_size=16,
            gradient_accumulation_steps=1,
            steps=8,
            mixed_precision="no",
            sampler=dataclasses.replace(self.sampler, steps=2, tolerance=1e-2),
            evaluation=self.evaluation.tiny(),
            log_every=2,
            validate_every=4,
            preview_every=4 if self.preview_every else 0,
            checkpoint_every=4,
        )

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON values; parts that could be of several kinds say which."""
        return to_dict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Recipe":
        """The recipe that ``to_dict`` wrote; ValueError on unknown or missing fields.

        Fields that an older version did not know may be missing: they get their defaults.
        """
        recipe = from_dict(cls, values, "recipe")
        assert isinstance(recipe, Recipe)
        return recipe


def differences(one: Recipe, other: Recipe) -> list[str]:
    """The fields in which two recipes differ, as ``field: value -> other value``."""
    left, right = flat(one.to_dict()), flat(other.to_dict())
    return [
        f"{key}: {left.get(key)} -> {right.get(key)}"
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    ]
