"""Pipelines of diffusers, from a folder or the hub: their frozen parts, and images of them."""

import hashlib
import importlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from immiscible_diffusion.metrics.features.preprocess import weights_digest
from immiscible_diffusion.utils.hub import split_revision
from immiscible_diffusion.utils.optional_deps import require_extra
from immiscible_diffusion.utils.random import keyed_generator

LIBRARIES = (None, "diffusers", "transformers", "stable_diffusion")  # that an index may name
Prediction = Literal["epsilon", "v", "data"]
PREDICTION_TYPES: dict[Prediction, str] = {"epsilon": "epsilon", "v": "v_prediction", "data": "sample"}
WEIGHTS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2")

PIPELINE_HINT = (
    "a folder written by save_pretrained, or a name on the hub; without a network, "
    "`python -m examples.tiny_stable_diffusion` makes a tiny one from local images"
)


@contextmanager
def silence_hf_logging() -> Iterator[None]:
    """Suppress progress bars and warnings of diffusers and transformers, not errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with require_extra("sd", "Stable Diffusion"):
            from diffusers.utils import logging as of_diffusers
            from transformers.utils import logging as of_transformers
        levels = [(log, log.get_verbosity()) for log in (of_diffusers, of_transformers)]
        bars = of_transformers.is_progress_bar_enabled()
        try:
            for log, _ in levels:
                log.set_verbosity_error()
            of_transformers.disable_progress_bar()
            yield
        finally:
            for log, level in levels:
                log.set_verbosity(level)
            if bars:
                of_transformers.enable_progress_bar()


class TextPart(NamedTuple):
    """A tokenizer and its text encoder."""

    tokenizer: Any
    encoder: Any


@dataclass(frozen=True)
class PretrainedPipeline:
    """A pipeline whose parts are loaded one by one."""

    source: str  # a folder, or a name on the hub, or name@revision
    index: dict[str, Any]  # its ``model_index.json``

    @classmethod
    def open(cls, source: str | None) -> "PretrainedPipeline":
        """Read the index; ValueError says what to download or to make if it cannot be read."""
        if not source:
            raise ValueError(f"codec.pretrained is not set; give {PIPELINE_HINT}")
        with silence_hf_logging():
            from diffusers import DiffusionPipeline

            try:
                name, revision = split_revision(source)
                index = DiffusionPipeline.load_config(name, **revision)
            except (OSError, ValueError) as error:
                raise missing(source, error) from error
        # diffusers would import what a pipeline names, or brings along.
        named = [part[0] for part in index.values() if isinstance(part, list) and part]
        if not all(name in LIBRARIES for name in named) or any(Path(source).rglob("*.py")):
            raise ValueError(f"the pipeline {source} has code of its own, which is never run")
        return cls(source, index)

    def load(self, name: str, **options: Any) -> Any:
        """Load part ``name``, of the class that the index names; ValueError if it is not there."""
        package, kind = self.index.get(name) or (None, None)
        if package not in ("diffusers", "transformers"):
            raise ValueError(f"the pipeline {self.source} has no {name}: its index has {package!r}")
        if package == "transformers" and str(kind).startswith("Auto"):  # they run code that the configuration names
            raise ValueError(f"{self.source} names {kind} as its {name}; name the class itself in model_index.json")
        with silence_hf_logging():
            part: Any = getattr(importlib.import_module(package), str(kind), None)
            if not hasattr(part, "from_pretrained"):
                raise ValueError(f"{package} has no {kind}, which {self.source} names as its {name}")
            try:
                source, revision = split_revision(self.source)
                return part.from_pretrained(source, subfolder=name, **revision, **options)
            except (OSError, ValueError) as error:
                raise missing(self.source, error, name) from error

    @property
    def prediction(self) -> Prediction | None:
        """What the network predicts, as ``VPPath.prediction`` names it; None of one on another path."""
        theirs = self.load("scheduler").config.get("prediction_type")
        return next((ours for ours, name in PREDICTION_TYPES.items() if name == theirs), None)

    def load_texts(self) -> list[TextPart]:
        """Load every text encoder, frozen, with its tokenizer: one, or two of SDXL."""
        return [
            TextPart(self.load(f"tokenizer{suffix}"), frozen(self.load(f"text_encoder{suffix}")))
            for suffix in ("", "_2")
            if self.index.get(f"text_encoder{suffix}", (None,))[0]
        ]


def missing(source: str, error: Exception, part: str = "pipeline") -> ValueError:
    """Return the error for a pipeline, or a part of it, that cannot be loaded."""
    name, revision = split_revision(source)
    pinned = "".join(f" --revision {commit}" for commit in revision.values())
    return ValueError(
        f"there is no {part} at {source} ({load_reason(error)}); download it where there is a network (`hf "
        f"download {name}{pinned} --local-dir FOLDER`) and give that folder: {PIPELINE_HINT}"
    )


def load_reason(error: BaseException) -> str:
    """Say why something of the hub cannot be loaded: diffusers names a missing file where there is no network."""
    chain = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    reason = str(error).strip().partition("\n")[0]
    if any(type(one).__name__ == "LocalEntryNotFoundError" for one in chain):
        last = str(chain[-1])
        reason = f"it is not on this machine, and the hub is out of reach: {last.partition(': ')[2] or last}"
    return reason


def frozen(part: Any) -> Any:
    """Return ``part`` in eval mode, without gradient."""
    return part.eval().requires_grad_(False)


def frozen_dtype(mixed_precision: str) -> torch.dtype:
    """Return the precision of frozen parts under ``mixed_precision``."""
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(mixed_precision, torch.float32)


# -- sampling whole pipelines ---------------------------------------------------------------------


def load_pipeline(source: str, device: torch.device, dtype: torch.dtype, *, text: bool) -> Any:
    """Load a pipeline by its folder or hub name, quiet and without a safety checker.

    With ``text`` it is a text-to-image pipeline; else an unconditional one, such as google/ddpm-cifar10-32, which is
    sampled by DDIM. ValueError if it is of the other kind, or not there.
    """
    with require_extra("train", "sampling a pipeline"):
        from diffusers import DDIMPipeline, DiffusionPipeline
    PretrainedPipeline.open(source)
    try:
        with warnings.catch_warnings():
            # torch_dtype is an older name of dtype, which older releases do not know.
            warnings.simplefilter("ignore", FutureWarning)
            name, revision = split_revision(source)
            pipeline = DiffusionPipeline.from_pretrained(name, torch_dtype=dtype, **revision)
    except (OSError, ValueError) as error:
        raise missing(source, error) from error
    if hasattr(pipeline, "tokenizer") != text:
        raise ValueError(
            f"{source} is a {type(pipeline).__name__}; a text-to-image pipeline needs --classes "
            f"FILE, --prompts FILE or --prompt TEXT, and others take none"
        )
    if not text:
        pipeline = DDIMPipeline(pipeline.unet, pipeline.scheduler)
    elif getattr(pipeline, "safety_checker", None) is not None:
        pipeline.safety_checker = None  # it would black out images, which no metric should see
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def sample_pipeline(
    pipeline: Any, prompts: Sequence[str], seed: int, indices: Sequence[int], **settings: Any
) -> Tensor:
    """Sample the images ``indices`` of a pipeline, ``[b, C, H, W]`` in [-1, 1].

    Image i starts from noise keyed by (seed, i), and is of prompt i mod their number if there are
    any. ``settings`` are passed on, such as ``num_inference_steps`` and ``guidance_scale``.
    """
    if prompts:
        settings["prompt"] = [prompts[index % len(prompts)] for index in indices]
    else:
        settings["batch_size"] = len(indices)
    generators = [keyed_generator(seed, index, "sample") for index in indices]
    images = pipeline(generator=generators, output_type="np", **settings).images
    return torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1


def pipeline_digests(pipeline: Any) -> dict[str, str]:
    """Hash all that decides the images of a pipeline: its networks and its scheduler."""
    parts = {name: getattr(pipeline, name, None) for name in WEIGHTS}
    digests = {name: weights_digest(part) for name, part in parts.items() if part is not None}
    scheduler = "\n".join(f"{k}={v}" for k, v in sorted(pipeline.scheduler.config.items()))
    return {**digests, "scheduler": hashlib.sha256(scheduler.encode()).hexdigest()[:16]}
