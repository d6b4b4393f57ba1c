"""A small CLIP text encoder, trained against a small image encoder (Radford et al., 2103.00020)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from immiscible_diffusion.data.sampler import KeyedSampler
from immiscible_diffusion.metrics.features.classifier import Classifier
from immiscible_diffusion.smallsd.pictures import Pictures
from immiscible_diffusion.smallsd.settings import TEMPLATES, TextSettings
from immiscible_diffusion.smallsd.theirs import transformers
from immiscible_diffusion.utils.random import RandomStreams, key

SCALE = 1 / 0.07  # what CLIP's logit scale starts from
MOST_SCALE = 100.0


def make_text_encoder(settings: TextSettings, tokenizer: Any, seed: int) -> Any:
    """A ``CLIPTextModel`` with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(seed, "small text"))
        config = transformers("CLIPTextConfig")(
            vocab_size=len(tokenizer),
            hidden_size=settings.width,
            intermediate_size=4 * settings.width,
            num_hidden_layers=settings.depth,
            num_attention_heads=settings.heads,
            max_position_embeddings=settings.length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        return transformers("CLIPTextModel")(config)


def tokens_of(tokenizer: Any, texts: list[str]) -> Tensor:
    """Token ids ``[B, L]`` of ``texts``, cut and padded to the tokenizer's length."""
    found = tokenizer(
        texts,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    ids: Tensor = found.input_ids
    return ids


@dataclass
class TextTraining:
    """Text and image encoder brought to say the same of a picture and its prompt.

    Equal prompts in a batch are one prompt with several pictures, since class names recur.

    Attributes:
        encoder: of prompts, trained in place.
        tokenizer: of prompts.
        pictures: with prompts.
        settings: how.
        seed: of order and templates.
    """

    encoder: Any
    tokenizer: Any
    pictures: Pictures
    settings: TextSettings
    seed: int

    def run(self, told: Callable[[int, float], None]) -> None:
        """Train to the end, telling steps done and the loss."""
        tower = self._image_encoder()
        scale = nn.Parameter(torch.tensor(SCALE).log())
        weights = [*self.encoder.parameters(), *tower.parameters(), scale]
        how, steps = self.settings, self.settings.steps
        optimizer = torch.optim.AdamW(weights, lr=how.lr, weight_decay=1e-2)
        count = min(how.batch_size, len(self.pictures.rows))
        order = KeyedSampler(len(self.pictures.rows), count, key(self.seed, "small text order"))
        self.encoder.train().requires_grad_(True)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = how.lr * (1 - step / steps) * min(1.0, (step + 1) / 20)
            rows = self.pictures.rows[order.indices(step)]
            loss = self._loss(tower, scale, rows, step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            told(step + 1, loss.item())
        self.encoder.eval().requires_grad_(False)

    def _image_encoder(self) -> Classifier:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key(self.seed, "small image encoder"))
            return Classifier(tuple(self.pictures.images.shape), self.settings.width)

    def _loss(self, tower: nn.Module, scale: Tensor, rows: Tensor, step: int) -> Tensor:
        texts = self._said(rows, step)
        unique = sorted(set(texts))
        place = {text: number for number, text in enumerate(unique)}
        own = torch.tensor([place[text] for text in texts])
        spoken = self.encoder(tokens_of(self.tokenizer, unique)).pooler_output
        seen = nn.functional.normalize(tower(self.pictures.images.batch(rows).data), dim=1)
        match = seen @ nn.functional.normalize(spoken, dim=1).T
        return contrastive_loss(match * scale.exp().clamp(max=MOST_SCALE), own)

    def _said(self, rows: Tensor, step: int) -> list[str]:
        """What is said of the pictures: their captions, every third to fourth in a sentence."""
        generator = RandomStreams(self.seed, step).augment
        texts = self.pictures.captioned.texts(rows, generator)
        if self.pictures.captioned.num_classes is None:
            return texts
        drawn = torch.randint(len(TEMPLATES), (len(texts),), generator=generator).tolist()
        return [TEMPLATES[i].replace("{}", text) for i, text in zip(drawn, texts, strict=True)]


def in_sentences(texts: list[str]) -> list[str]:
    """``texts``, and each in the sentences that training says it in."""
    return [template.replace("{}", text) for template in TEMPLATES for text in texts]


def contrastive_loss(match: Tensor, own: Tensor) -> Tensor:
    """Symmetric cross-entropy of ``match`` ``[pictures, texts]``; ``own`` is each picture's text.

    From a text, all of its pictures are equally right.
    """
    from_pictures = nn.functional.cross_entropy(match, own)
    right = nn.functional.one_hot(own, match.shape[1]).to(match.dtype)
    from_texts = -(right * match.log_softmax(dim=0)).sum(0) / right.sum(0).clamp(min=1)
    return (from_pictures + from_texts.mean()) / 2


@torch.no_grad()
def states(encoder: Any, tokenizer: Any, texts: list[str]) -> Tensor:
    """What a U-Net attends to, ``[B, L, W]``, as StableDiffusionPipeline asks for it."""
    found = tokenizer(
        texts,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    masked = getattr(encoder.config, "use_attention_mask", False)
    result: Tensor = encoder(
        found.input_ids, attention_mask=found.attention_mask if masked else None
    )[0]
    return result


MEASURED = 64


def separability(encoder: Any, tokenizer: Any, texts: list[str]) -> dict[str, float]:
    """How well a U-Net could tell prompts apart by the mean of their states.

    Returns:
        ``closest``: distance of the two nearest prompts, in units of the root mean square distance
        of all pairs; ``cosine``: mean cosine between prompts, their common mean taken off;
        ``rephrased``: share of prompts that, said in a sentence, are still nearest to themselves.
    """
    texts = texts[:MEASURED]
    plain = states(encoder, tokenizer, texts).mean(1)
    if len(texts) < 2:
        return {}
    pairs = torch.pdist(plain.double())
    centerd = nn.functional.normalize(plain - plain.mean(0), dim=1)
    cosines = (centerd @ centerd.T)[~torch.eye(len(texts), dtype=torch.bool)]
    right = []
    for template in TEMPLATES[1:]:
        said = [template.replace("{}", text) for text in texts]
        sentence = states(encoder, tokenizer, said).mean(1)
        near = torch.cdist(sentence - sentence.mean(0), plain - plain.mean(0)).argmin(1)
        right.append(float((near == torch.arange(len(texts))).double().mean()))
    return {
        "closest": float(pairs.min() / pairs.pow(2).mean().sqrt()),
        "cosine": float(cosines.mean()),
        "rephrased": sum(right) / len(right),
    }
