"""Stable Diffusion pipelines of a few weights, in the layout of ``save_pretrained``."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from immiscible_diffusion.files import write_json

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def make_parts(*, sdxl: bool = False, prediction: str = "epsilon") -> dict[str, Any]:
    """VAE, text encoders, tokenizers, U-Net and scheduler; words are spelt letter by letter."""
    for package in ("diffusers", "transformers", "peft"):
        pytest.importorskip(package, reason="Stable Diffusion is diffusers' and transformers'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import AutoencoderKL, DDPMScheduler
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts: dict[str, Any] = {
            "vae": AutoencoderKL(
                block_out_channels=(8, 8),
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                norm_num_groups=4,
                latent_channels=4,
                scaling_factor=0.9,
            ),
            "scheduler": DDPMScheduler(clip_sample=False, prediction_type=prediction, **BETAS),
            "unet": make_unet(sdxl),
            **make_text(16 if sdxl else 8, projection=False),
        }
        if sdxl:
            second = make_text(8, projection=True)
            parts |= {f"{name}_2": part for name, part in second.items()}
    return parts


def make_text(width: int, *, projection: bool) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    config = transformers.CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        projection_dim=6,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
    )
    kind = "CLIPTextModelWithProjection" if projection else "CLIPTextModel"
    vocabulary = {word: place for place, word in enumerate(words)}
    return {
        "text_encoder": getattr(transformers, kind)(config),
        "tokenizer": transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=12),
    }


def make_unet(sdxl: bool = False, **changes: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import UNet2DConditionModel
    sizes: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": 24 if sdxl else 8,
        "attention_head_dim": 2,
    }
    if sdxl:
        sizes |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 6 + 6 * 4,
            "use_linear_projection": True,
            "layers_per_block": 2,
        }
    return UNet2DConditionModel(**{**sizes, **changes})


def save_small_sd(folder: Path, *, sdxl: bool = False, prediction: str = "epsilon") -> Path:
    """Write a pipeline to ``folder``."""
    parts = make_parts(sdxl=sdxl, prediction=prediction)
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.30"}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        package = type(part).__module__.partition(".")[0]
        index[name] = [package, type(part).__name__]
    if sdxl:
        index |= {"_class_name": "StableDiffusionXLPipeline", "feature_extractor": [None, None]}
        index |= {"force_zeros_for_empty_prompt": True, "image_encoder": [None, None]}
    else:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
        index |= {"requires_safety_checker": False}
    write_json(folder / "model_index.json", index)
    return folder
