"""The frozen parts of a pipeline of diffusers, from a folder or the hub."""

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from immiscible_diffusion.utils.optional_deps import require_extra

PIPELINE_HINT = (
    "a folder written by save_pretrained, or a name on the hub; without a network, "
    "`python -m examples.tiny_stable_diffusion` makes a tiny one from local images"
)


@contextmanager
def silence_hf_logging() -> Iterator[None]:
    """Suppress progress bars and warnings of diffusers and transformers, not errors."""
    with require_extra("sd", "Stable Diffusion"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers.utils import logging as of_diffusers
        from transformers.utils import logging as of_transformers
    before = of_diffusers.get_verbosity(), of_transformers.get_verbosity()
    bars = of_transformers.is_progress_bar_enabled()
    try:
        of_diffusers.set_verbosity_error()
        of_transformers.set_verbosity_error()
        of_transformers.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        of_diffusers.set_verbosity(before[0])
        of_transformers.set_verbosity(before[1])
        if bars:
            of_transformers.enable_progress_bar()


@dataclass(frozen=True, eq=False)
class TextPart:
    """A tokenizer and its text encoder."""

    tokenizer: Any
    encoder: Any


def check_given(pretrained: str | None, option: str) -> str:
    """Return ``pretrained``; ValueError says what belongs there if it is None."""
    if not pretrained:
        raise ValueError(f"{option} names the pipeline and is not set; give {PIPELINE_HINT}")
    return pretrained


def read_index(pretrained: str) -> dict[str, Any]:
    """The ``model_index.json`` of the pipeline; ValueError if it cannot be read."""
    try:
        with silence_hf_logging():
            from diffusers import DiffusionPipeline

            index: dict[str, Any] = DiffusionPipeline.load_config(pretrained)
    except (OSError, ValueError) as error:
        raise missing(pretrained, error) from error
    return index


def missing(pretrained: str, error: Exception, part: str = "pipeline") -> ValueError:
    """The error for a pipeline, or a part of it, that cannot be loaded."""
    reason = str(error).strip().partition("\n")[0]
    return ValueError(
        f"no {part} at {pretrained} ({reason}); download it where there is a network (`hf download "
        f"{pretrained} --local-dir FOLDER`) and give that folder: {PIPELINE_HINT}"
    )


def load_part(pretrained: str, index: dict[str, Any], name: str, **options: Any) -> Any:
    """Part ``name`` of the pipeline, of the class that its index names.

    Raises:
        ValueError: the pipeline has no such part, or its files are not there.
    """
    package, kind = index.get(name) or (None, None)
    if package not in ("diffusers", "transformers"):
        raise ValueError(f"the pipeline {pretrained} has no {name}: its index has {package!r}")
    with silence_hf_logging():
        part = getattr(importlib.import_module(package), str(kind), None)
        if part is None:
            raise ValueError(f"{package} has no {kind}, which {pretrained} names as its {name}")
        try:
            return part.from_pretrained(pretrained, subfolder=name, **options)
        except (OSError, ValueError) as error:
            raise missing(pretrained, error, name) from error


def text_parts(pretrained: str, index: dict[str, Any]) -> list[TextPart]:
    """Every text encoder of the pipeline with its tokenizer: one, or two of SDXL."""
    names = [("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")]
    return [
        TextPart(load_part(pretrained, index, words), frozen(load_part(pretrained, index, states)))
        for words, states in names
        if index.get(states, (None,))[0]
    ]


def frozen(part: Any) -> Any:
    """``part`` in eval mode, without gradient."""
    return part.eval().requires_grad_(False)


def frozen_dtype(mixed_precision: str) -> torch.dtype:
    """The precision of frozen parts under ``mixed_precision``."""
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(mixed_precision, torch.float32)
