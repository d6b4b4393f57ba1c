"""What CLIP says of pictures: CLIPScore (2104.08718) and CMMD (2401.09603)."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from immiscible_diffusion.metrics.features.preprocess import Preprocessing, exactly, to_bytes
from immiscible_diffusion.metrics.features.pretrained import NetworkFeatures, Prepared
from immiscible_diffusion.metrics.fid import check_features
from immiscible_diffusion.utils.optional_deps import require_extra

SCORE_MODEL = "openai/clip-vit-large-patch14"
CMMD_MODEL = "openai/clip-vit-large-patch14-336"
SIGMA, SCALE = 10.0, 1000.0  # of the paper, section 4
_MEAN = (255 * 0.48145466, 255 * 0.4578275, 255 * 0.40821073)
_STD = (255 * 0.26862954, 255 * 0.26130258, 255 * 0.27577711)
_BLOCK = 2**22  # kernel values held at a time


# --- CMMD ---------------------------------------------------------------------------------------


def cmmd(a: Tensor, b: Tensor, *, sigma: float = SIGMA, scale: float = SCALE) -> float:
    """``scale`` times the squared maximum mean discrepancy under ``exp(-|x - y|^2 / 2 sigma^2)``.

    The mean over all pairs, those of a picture with itself included, as the authors' code has it:
    never negative, 0 for equal sets, and above 0 by about ``scale (1 - k) (1/N + 1/M)`` for two
    samples of one law. CMMD is this of CLIP features of length 1, ``cmmd_features``.

    Args:
        a: features [N, F].
        b: features [M, F].
        sigma: width of the kernel.
        scale: what the result is multiplied by.

    Raises:
        ValueError: no features, unequal dimensions, not finite, or sigma not above 0.
    """
    a = check_features(a)
    b = check_features(b, a.shape[1])
    if not len(a) or not len(b) or sigma <= 0:
        raise ValueError(
            f"CMMD needs features in each set and sigma above 0, got {len(a)} and {len(b)} "
            f"features and sigma {sigma}"
        )
    # Kernels are all near 1, so their differences from 1 are summed: the ones cancel.
    return scale * (_mean(a, a, sigma) + _mean(b, b, sigma) - 2 * _mean(a, b, sigma))


def _mean(x: Tensor, y: Tensor, sigma: float) -> float:
    """The mean over all pairs of the kernel less 1."""
    lengths = y.square().sum(dim=1)
    total = 0.0
    for block in x.split(max(1, _BLOCK // len(y))):
        squared = block.square().sum(dim=1, keepdim=True) + lengths - 2 * block @ y.T
        total += float(torch.expm1(squared.clamp(min=0) / (-2 * sigma**2)).sum())
    return total / (len(x) * len(y))


def cmmd_features(device: torch.device | str = "cpu", source: str | None = None) -> NetworkFeatures:
    """CLIP's picture features of length 1; by default of ViT-L/14 at 336 pixels, as CMMD has them.

    Args:
        device: where it runs.
        source: folder of the weights, or their name on the hub; by default $IMMISCIBLE_CMMD_CLIP,
            then ``openai/clip-vit-large-patch14-336``.

    Raises:
        MissingDependencyError: transformers is not installed.
        ValueError: the weights are not there, or not CLIP's.
    """
    source = source or os.environ.get("IMMISCIBLE_CMMD_CLIP") or CMMD_MODEL
    model = _load(source, CMMD_MODEL, "IMMISCIBLE_CMMD_CLIP").to(device)
    prepare, name = _prepared_for(model, rounded=True)
    dim = int(model.config.projection_dim)
    return NetworkFeatures(
        _Pictures(model),
        f"CLIP {name} ({dim}-d)",
        dim,
        f"CMMD of CLIP {name}",
        str(prepare),
        prepare,
    )


# --- CLIPScore ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClipScore:
    """How well pictures fit their texts.

    Attributes:
        mean: of 100 max(cos, 0), in [0, 100]; 2.5 max(cos, 0) in the paper.
        standard_error: of the mean, over the pictures; None for one picture.
        count: number of pictures.
        model: which CLIP.
    """

    mean: float
    standard_error: float | None
    count: int
    model: str


@dataclass(frozen=True, eq=False)
class Clip:
    """Pictures and texts to features of length 1.

    Attributes:
        model: transformers' ``CLIPModel``, in evaluation mode.
        tokenizer: its own.
        name: for reports.
        prepare: pictures [B, 3, S, S] uint8 to what the model reads.
    """

    model: Any
    tokenizer: Any
    name: str
    prepare: Preprocessing

    @classmethod
    def load(cls, source: str | None = None, device: torch.device | str = "cpu") -> "Clip":
        """CLIP from a folder or the hub; by default $IMMISCIBLE_CLIP, then ViT-L/14.

        Raises:
            MissingDependencyError: transformers is not installed.
            ValueError: the weights are not there, or not CLIP's.
        """
        source = source or os.environ.get("IMMISCIBLE_CLIP") or SCORE_MODEL
        model = _load(source, SCORE_MODEL, "IMMISCIBLE_CLIP").to(device)
        from transformers import CLIPTokenizer

        try:
            tokenizer = CLIPTokenizer.from_pretrained(source)
        except (OSError, TypeError, ValueError) as error:
            raise ValueError(f"{source} has no tokenizer ({_first_line(error)})") from error
        prepare, name = _prepared_for(model, rounded=True)
        return cls(model, tokenizer, name, prepare)

    def pictures(self, data: Tensor) -> Tensor:
        """Features [B, F] of pictures [B, 1 or 3, H, W] in [-1, 1]; their center squares."""
        return exactly(Prepared(_Pictures(self.model), self.prepare), to_bytes(_center(data)))

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Features [B, F] of texts, cut where CLIP's text encoder ends."""
        length = int(self.model.config.text_config.max_position_embeddings)
        read = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt"
        ).to(next(self.model.parameters()).device)
        out = self.model.text_model(read["input_ids"], attention_mask=read["attention_mask"])
        features: Tensor = nn.functional.normalize(
            self.model.text_projection(out.pooler_output), dim=-1
        )
        return features

    def score(self, batches: Iterable[tuple[Tensor, Sequence[str]]]) -> ClipScore:
        """CLIPScore of pictures [b, 1 or 3, H, W] in [-1, 1], each with its text.

        Raises:
            ValueError: no pictures, or not a text for each.
        """
        scores = []
        for data, texts in batches:
            if len(data) != len(texts):
                raise ValueError(
                    f"expected a text for each of {len(data)} pictures, got {len(texts)}"
                )
            scores.append(scores_of(self.pictures(data), self.texts(texts)))
        if not scores:
            raise ValueError("CLIPScore needs at least one picture")
        values = torch.cat(scores)
        error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else None
        return ClipScore(float(values.mean()), error, len(values), self.name)


def scores_of(pictures: Tensor, texts: Tensor) -> Tensor:
    """100 max(cos, 0) [B] of features [B, F] of pictures and of their texts."""
    cosine = nn.functional.cosine_similarity(pictures.cpu().double(), texts.cpu().double())
    return 100 * cosine.clamp(min=0)


# --- Loading ------------------------------------------------------------------------------------


class _Pictures(nn.Module):
    """The projected features of pictures, of length 1."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision, self.projection = model.vision_model, model.visual_projection

    def forward(self, pictures: Tensor) -> Tensor:
        pooled = self.vision(pixel_values=pictures).pooler_output
        features: Tensor = nn.functional.normalize(self.projection(pooled), dim=-1)
        return features


def _center(data: Tensor) -> Tensor:
    side = min(data.shape[-2:])
    top, left = ((length - side) // 2 for length in data.shape[-2:])
    return data[..., top : top + side, left : left + side]


def _prepared_for(model: Any, *, rounded: bool) -> tuple[Preprocessing, str]:
    vision = model.config.vision_config
    sizes = {512: "S", 768: "B", 1024: "L", 1280: "H"}
    name = f"ViT-{sizes.get(vision.hidden_size, '?')}/{vision.patch_size} {vision.image_size} px"
    return Preprocessing(int(vision.image_size), _MEAN, _STD, rounded=rounded), name


def _load(source: str, usual: str, variable: str) -> Any:
    with require_extra("clip", "CLIPScore and CMMD"):
        from transformers import AutoConfig, CLIPModel
    try:
        kind = AutoConfig.from_pretrained(source).model_type
        if kind != "clip":
            raise ValueError(f"{source} is a model of the kind '{kind}', not clip")
        model = CLIPModel.from_pretrained(source, use_safetensors=True, dtype=torch.float32)
    except OSError as error:
        raise ValueError(
            f"the weights of CLIP are not at {source} ({_first_line(error)}); fetch {usual} where "
            f"there is a network (`hf download {usual} --local-dir FOLDER`), and set {variable} "
            f"to its folder (config.json, model.safetensors, the tokenizer's files)"
        ) from error
    return model.eval().requires_grad_(False)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
