"""From a folder of pictures to a folder that ``StableDiffusionPipeline.from_pretrained`` reads."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from immiscible_diffusion.smallsd.judged import judge_on
from immiscible_diffusion.smallsd.latents import (
    held_out_psnr,
    latent_figures,
    reconstructions,
    standardize,
)
from immiscible_diffusion.smallsd.minilm import load_minilm
from immiscible_diffusion.smallsd.pictures import Pictures, load_pictures
from immiscible_diffusion.smallsd.settings import SmallSD
from immiscible_diffusion.smallsd.text import (
    TextTraining,
    in_sentences,
    make_text_encoder,
    separability,
)
from immiscible_diffusion.smallsd.theirs import diffusers, quiet_transformers, transformers
from immiscible_diffusion.smallsd.tokenizer import make_tokenizer, save_tokenizer
from immiscible_diffusion.smallsd.vae import VAETraining, make_vae
from immiscible_diffusion.utils.progress import Progress
from immiscible_diffusion.utils.atomic_files import atomic_path, read_json, write_json
from immiscible_diffusion.utils.images import image_grid
from immiscible_diffusion.utils.random import key, keyed_generator

RECORD, FIGURES, PIPELINE = "small_sd.json", "figures.json", "model_index.json"
VAE_STATE = "vae_state.pt"
MEASURED = 2048
SHOWN = 16
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def make_small_sd(folder: Path, settings: SmallSD, *, quiet: bool = True) -> dict[str, Any]:
    """Make the pipeline of ``settings`` in ``folder``, or go on making it; nothing if it is whole.

    Args:
        folder: new, empty, or of the same settings.
        settings: what to make.
        quiet: show no progress.

    Returns:
        The figures, which ``figures.json`` keeps.

    Raises:
        ValueError: the folder is of other settings or holds something else; the pictures or their
            captions are not there, too few, or not of a size that fits.
        Interrupted: on a signal, with a state written to go on from.
    """
    if begun(folder, settings) and (folder / PIPELINE).is_file():
        figures: dict[str, Any] = read_json(folder / FIGURES)
        return figures
    pictures = load_pictures(settings)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RECORD, settings.to_dict())
    maker = _Maker(folder, settings, pictures, quiet)
    with quiet_transformers():
        maker.vae()
        maker.text()
        maker.judge()
        return maker.pipeline()


def begun(folder: Path, settings: SmallSD) -> bool:
    """Whether the making of ``settings`` was begun in ``folder``; writes nothing.

    Raises:
        ValueError: the folder holds something else.
    """
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder")
    if not (folder / RECORD).is_file():
        if any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty and holds no small pipeline; give another")
        return False
    there, wanted = _flat(read_json(folder / RECORD)), _flat(settings.to_dict())
    changed = [
        f"{name}: {there.get(name)} -> {wanted.get(name)}"
        for name in sorted(there.keys() | wanted.keys())
        if there.get(name) != wanted.get(name)
    ]
    if changed:
        raise ValueError(
            f"{folder} is of other settings ({'; '.join(changed)}); give another folder, or those"
        )
    return True


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        inner = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return flat


@dataclass
class _Maker:
    """The stages; each leaves its part in the folder, whole, and skips what is there."""

    folder: Path
    settings: SmallSD
    pictures: Pictures
    quiet: bool

    def vae(self) -> None:
        """Train the VAE, set its latents to mean 0 and standard deviation 1, save and measure."""
        if (self.folder / "vae").is_dir():
            return
        how, pictures = self.settings.vae, self.pictures
        vae = make_vae(how, pictures.images.shape, self.settings.seed)
        training = VAETraining(
            vae,
            pictures.images,
            pictures.rows,
            how,
            self.settings.seed,
            self.folder / VAE_STATE,
            self.settings.checkpoint_every,
            lambda trained: held_out_psnr(trained, pictures.held, pictures.held_rows),
        )
        started = training.resume()
        with Progress(how.steps, started, "VAE", quiet=self.quiet) as show:
            training.run(lambda step, loss: show.update(step, loss=loss), started)
        began = time.process_time()
        figures = self._measured(vae)
        figures["curve"] = [[int(step), round(value, 3)] for step, value in training.curve]
        seconds = training.seconds + time.process_time() - began
        self._note("vae", {**figures, "cpu_seconds": round(seconds, 1)})
        with _whole(self.folder / "vae") as place:
            vae.save_pretrained(place)
        (self.folder / VAE_STATE).unlink(missing_ok=True)

    def _measured(self, vae: Any) -> dict[str, Any]:
        """Standardize the latents, and say how good the VAE is."""
        pictures = self.pictures
        chosen = torch.randperm(
            len(pictures.rows), generator=keyed_generator(self.settings.seed, "small latents")
        )[:MEASURED]
        rows = pictures.rows[chosen]
        found = latent_figures(vae, pictures.images, rows)
        standardize(vae, torch.tensor(found.mean), torch.tensor(found.std))
        after = latent_figures(vae, pictures.images, rows)
        spread = sum(std**2 for std in after.std) / len(after.std)
        vae.register_to_config(scaling_factor=spread**-0.5)
        self._show(vae)
        return {
            "pictures": list(pictures.images.shape),
            "latents": list(self.settings.check_pictures(pictures.images.shape)),
            "psnr": round(held_out_psnr(vae, pictures.held, pictures.held_rows), 3),
            "held_out": pictures.held_from,
            "scaling_factor": spread**-0.5,
            "latent_figures": after.to_dict(),
            "weights": _count(vae),
        }

    def _show(self, vae: Any) -> None:
        """Held-out pictures above what the VAE makes of them."""
        rows = self.pictures.held_rows[:SHOWN]
        real, made = next(reconstructions(vae, self.pictures.held, rows))
        with atomic_path(self.folder / "reconstructions.png") as temporary:
            image_grid(torch.cat([real, made]), len(rows)).save(temporary, format="PNG")

    def text(self) -> None:
        """Make tokenizer and text encoder, and see how well prompts part."""
        if (self.folder / "text_encoder").is_dir():
            return
        how, began = self.settings.text, time.process_time()
        texts = self.pictures.all_texts()
        if how.kind == "minilm":
            encoder, tokenizer = load_minilm(how.length)
        else:
            encoder, tokenizer = self._trained_text(texts)
        figures: dict[str, Any] = {"kind": how.kind, "weights": _count(encoder)}
        figures["words"] = len(tokenizer)
        parted = separability(encoder, tokenizer, texts)
        figures |= {name: round(value, 4) for name, value in parted.items()}
        self._note("text", {**figures, "cpu_seconds": round(time.process_time() - began, 1)})
        with _whole(self.folder / "tokenizer") as place:
            save = save_tokenizer if how.kind == "clip" else _save_pretrained
            save(tokenizer, place)
        with _whole(self.folder / "text_encoder") as place:
            encoder.save_pretrained(place)

    def _trained_text(self, texts: list[str]) -> tuple[Any, Any]:
        how = self.settings.text
        tokenizer = make_tokenizer(in_sentences(texts), merges=how.vocabulary, length=how.length)
        encoder = make_text_encoder(how, tokenizer, self.settings.seed)
        training = TextTraining(encoder, tokenizer, self.pictures, how, self.settings.seed)
        with Progress(how.steps, 0, "text encoder", quiet=self.quiet) as show:
            training.run(lambda step, loss: show.update(step, loss=loss))
        return encoder, tokenizer

    def judge(self) -> None:
        """Train the classifier that judges labels, and see what it makes of reconstructions."""
        if not self.settings.judge or self.pictures.images.num_classes is None:
            return
        if "judge" in self._figures():
            return
        began = time.process_time()
        judge = judge_on(self.pictures.images)
        vae = diffusers("AutoencoderKL").from_pretrained(self.folder / "vae").eval()
        figures = judge.on_reconstructions(vae, self.pictures.held, self.pictures.held_rows)
        self._note("judge", {**figures, "cpu_seconds": round(time.process_time() - began, 1)})

    def pipeline(self) -> dict[str, Any]:
        """Add a U-Net with random weights and the schedule; the folder is whole then."""
        kind = self.settings.text.kind
        tokenizer, encoder = "CLIPTokenizer", "CLIPTextModel"
        if kind == "minilm":
            tokenizer, encoder = "BertTokenizer", "BertModel"
        text = transformers(encoder).from_pretrained(self.folder / "text_encoder")
        unet = self._unet(text.config.hidden_size)
        pipeline = diffusers("StableDiffusionPipeline")(
            vae=diffusers("AutoencoderKL").from_pretrained(self.folder / "vae"),
            text_encoder=text,
            tokenizer=transformers(tokenizer).from_pretrained(self.folder / "tokenizer"),
            unet=unet,
            scheduler=diffusers("DDPMScheduler")(
                num_train_timesteps=1000,
                clip_sample=False,
                steps_offset=1,
                prediction_type=self.settings.prediction,
                **BETAS,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        self._note("unet", {"weights": _count(unet), "trained": False})
        unet.save_pretrained(self.folder / "unet")
        pipeline.scheduler.save_pretrained(self.folder / "scheduler")
        pipeline.save_config(self.folder)
        return self._figures()

    def _unet(self, width: int) -> Any:
        how = self.settings.unet
        channels, side, _ = self.settings.check_pictures(self.pictures.images.shape)
        down = ["CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in how.attention]
        up = ["CrossAttnUpBlock2D" if yes else "UpBlock2D" for yes in reversed(how.attention)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key(self.settings.seed, "small unet"))
            return diffusers("UNet2DConditionModel")(
                sample_size=side,
                in_channels=channels,
                out_channels=channels,
                block_out_channels=how.channels,
                down_block_types=tuple(down),
                up_block_types=tuple(up),
                layers_per_block=how.layers,
                norm_num_groups=how.groups,
                cross_attention_dim=width,
                attention_head_dim=how.heads,  # diffusers' name for the number of heads
            )

    def _figures(self) -> dict[str, Any]:
        path = self.folder / FIGURES
        return dict(read_json(path)) if path.is_file() else {}

    def _note(self, stage: str, figures: dict[str, Any]) -> None:
        write_json(self.folder / FIGURES, {**self._figures(), stage: figures})


def _save_pretrained(thing: Any, place: Path) -> None:
    thing.save_pretrained(place)


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A folder to write to that takes the name ``folder`` when all is written."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def _count(model: Any) -> int:
    return sum(weight.numel() for weight in model.parameters())
