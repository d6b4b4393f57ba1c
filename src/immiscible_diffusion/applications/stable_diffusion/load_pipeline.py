"""The frozen parts of a pipeline of diffusers, from a folder or the hub."""

import importlib
from dataclasses import dataclass
from typing import Any

import torch

from immiscible_diffusion.applications.stable_diffusion.silence import quiet

MAKE_ONE = (
    "a folder written by save_pretrained, or a name on the hub; without a network, "
    "`python -m examples.tiny_stable_diffusion` makes a tiny one from local images"
)


@dataclass(frozen=True, eq=False)
class TextPart:
    """A tokenizer and its text encoder."""

    tokenizer: Any
    encoder: Any


def check_given(pretrained: str | None, option: str) -> str:
    """``pretrained``; ValueError says what belongs there if it is None."""
    if not pretrained:
        raise ValueError(f"{option} says which pipeline to take and is not set; give {MAKE_ONE}")
    return pretrained


def read_index(pretrained: str) -> dict[str, Any]:
    """What ``model_index.json`` of the pipeline says; ValueError if it cannot be had."""
    try:
        with quiet():
            from diffusers import DiffusionPipeline

            index: dict[str, Any] = DiffusionPipeline.load_config(pretrained)
    except (OSError, ValueError) as error:
        raise ValueError(absent(pretrained, error)) from error
    return index


def absent(pretrained: str, error: Exception) -> str:
    """What to say when there is no pipeline, or a part of it is missing."""
    reason = str(error).strip().partition("\n")[0]
    return (
        f"no pipeline at {pretrained} ({reason}); fetch it where there is a network (`hf download "
        f"{pretrained} --local-dir FOLDER`) and give that folder: {MAKE_ONE}"
    )


def load_part(pretrained: str, index: dict[str, Any], name: str, **options: Any) -> Any:
    """Part ``name`` of the pipeline, of the class that its index names.

    Raises:
        ValueError: the pipeline has no such part, or its files are not there.
    """
    package, kind = index.get(name) or (None, None)
    if package not in ("diffusers", "transformers"):
        raise ValueError(f"the pipeline {pretrained} has no {name}: its index says {package!r}")
    with quiet():
        part = getattr(importlib.import_module(package), str(kind), None)
    if part is None:
        raise ValueError(f"{package} has no {kind}, which {pretrained} names as its {name}")
    try:
        with quiet():
            return part.from_pretrained(pretrained, subfolder=name, **options)
    except (OSError, ValueError) as error:
        raise ValueError(absent(pretrained, error)) from error


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


def precision_of(name: str) -> torch.dtype:
    """What frozen parts are in under mixed precision ``name``."""
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(name, torch.float32)
