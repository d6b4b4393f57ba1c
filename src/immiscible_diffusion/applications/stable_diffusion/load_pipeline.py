"""The frozen parts of a pipeline of diffusers, from a folder or the hub."""

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from immiscible_diffusion.utils.optional_deps import require_extra

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

    source: str  # a folder, or a name on the hub
    index: dict[str, Any]  # its ``model_index.json``

    @classmethod
    def open(cls, source: str | None) -> "PretrainedPipeline":
        """Read the index; ValueError says what to download or to make if it cannot be read."""
        if not source:
            raise ValueError(
                f"codec.pretrained names the pipeline and is not set; give {PIPELINE_HINT}"
            )
        with silence_hf_logging():
            from diffusers import DiffusionPipeline

            try:
                return cls(source, DiffusionPipeline.load_config(source))
            except (OSError, ValueError) as error:
                raise missing(source, error) from error

    def load(self, name: str, **options: Any) -> Any:
        """Load part ``name``, of the class that the index names; ValueError if it is not there."""
        package, kind = self.index.get(name) or (None, None)
        if package not in ("diffusers", "transformers"):
            raise ValueError(f"the pipeline {self.source} has no {name}: its index has {package!r}")
        with silence_hf_logging():
            try:
                part = getattr(importlib.import_module(package), str(kind))
                return part.from_pretrained(self.source, subfolder=name, **options)
            except (AttributeError, OSError, ValueError) as error:
                raise missing(self.source, error, name) from error

    def load_texts(self) -> list[TextPart]:
        """Load every text encoder, frozen, with its tokenizer: one, or two of SDXL."""
        return [
            TextPart(self.load(f"tokenizer{suffix}"), frozen(self.load(f"text_encoder{suffix}")))
            for suffix in ("", "_2")
            if self.index.get(f"text_encoder{suffix}", (None,))[0]
        ]


def missing(source: str, error: Exception, part: str = "pipeline") -> ValueError:
    """Return the error for a pipeline, or a part of it, that cannot be loaded."""
    reason = str(error).strip().partition("\n")[0]
    return ValueError(
        f"there is no {part} at {source} ({reason}); download it where there is a network (`hf "
        f"download {source} --local-dir FOLDER`) and give that folder: {PIPELINE_HINT}"
    )


def frozen(part: Any) -> Any:
    """Return ``part`` in eval mode, without gradient."""
    return part.eval().requires_grad_(False)


def frozen_dtype(mixed_precision: str) -> torch.dtype:
    """Return the precision of frozen parts under ``mixed_precision``."""
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(mixed_precision, torch.float32)
