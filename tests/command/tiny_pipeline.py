"""A Stable Diffusion pipeline of a few weights, its words spelt letter by letter."""

import warnings
from pathlib import Path

import pytest
import torch


def save_pipeline(folder: Path) -> Path:
    for package in ("diffusers", "transformers"):
        pytest.importorskip(package, reason="the pipeline is diffusers' with transformers' CLIP")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import (
            AutoencoderKL,
            DDIMScheduler,
            StableDiffusionPipeline,
            UNet2DConditionModel,
        )
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = StableDiffusionPipeline(
            vae=AutoencoderKL(
                block_out_channels=(4, 4),
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                norm_num_groups=2,
            ),
            text_encoder=CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=len(words),
                    num_attention_heads=2,
                    max_position_embeddings=16,
                    bos_token_id=len(words) - 2,
                    eos_token_id=len(words) - 1,
                    **sizes,
                )
            ),
            tokenizer=CLIPTokenizer(
                vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=16
            ),
            unet=UNet2DConditionModel(
                sample_size=8,
                in_channels=4,
                out_channels=4,
                block_out_channels=(8, 8),
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                layers_per_block=1,
                norm_num_groups=4,
                cross_attention_dim=8,
                attention_head_dim=4,
            ),
            scheduler=DDIMScheduler(
                beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
    return folder
