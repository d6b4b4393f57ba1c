"""A CLIP of a few random weights, its words spelt letter by letter."""

from pathlib import Path

import pytest
import torch


def save_clip(out: Path) -> Path:
    """Save it to a folder, with its tokenizer."""
    transformers = pytest.importorskip("transformers", reason="CLIP is transformers'")
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    text = sizes | ends | {"vocab_size": len(words), "max_position_embeddings": 12}
    vision = sizes | {"image_size": 24, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.CLIPConfig(
            text_config=text | {"num_attention_heads": 2},
            vision_config=vision | {"num_attention_heads": 2},
            projection_dim=10,
        )
        model = transformers.CLIPModel(config)
    model.save_pretrained(out)
    vocab = {word: number for number, word in enumerate(words)}
    transformers.CLIPTokenizer(vocab=vocab, merges=[], model_max_length=12).save_pretrained(out)
    return out
