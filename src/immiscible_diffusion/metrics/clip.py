"""CLIPScore (2104.08718) of images and texts, and CMMD (2401.09603) between sets of images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from immiscible_diffusion.metrics.features.preprocess import Preprocessing
from immiscible_diffusion.metrics.features.pretrained import NetworkFeatures, load_transformer
from immiscible_diffusion.metrics.fid import check_features
from immiscible_diffusion.utils.optional_deps import require_extra

SCORE_MODEL = "openai/clip-vit-large-patch14"
CMMD_MODEL = "openai/clip-vit-large-patch14-336"
SIGMA, SCALE = 10.0, 1000.0  # of the paper, section 4
_MEAN = (255 * 0.48145466, 255 * 0.4578275, 255 * 0.40821073)
_STD = (255 * 0.26862954, 255 * 0.26130258, 255 * 0.27577711)
_BLOCK = 2**22  # kernel values held at a time


def cmmd(a: Tensor, b: Tensor, *, sigma: float = SIGMA, scale: float = SCALE) -> float:
    """``scale`` times the squared maximum mean discrepancy under ``exp(-|x - y|^2 / 2 sigma^2)``.

    The mean over all pairs, those of an image with itself included, as in the authors' code: never
    negative, 0 for equal sets, and above 0 by about ``scale (1 - k) (1/N + 1/M)`` for two samples
    of one distribution. CMMD is this of CLIP features of length 1, ``cmmd_features``. ``a`` is [N, F], ``b`` [M, F].

    ValueError for no features, unequal dimensions, not finite ones, or sigma not above 0.
    """
    a = check_features(a)
    b = check_features(b, a.shape[1])
    if not len(a) or not len(b) or sigma <= 0:
        raise ValueError(
            f"CMMD needs features in each set and sigma above 0, got {len(a)} and {len(b)} features and sigma {sigma}"
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
    """CLIP's image features of length 1; by default of ViT-L/14 at 336 pixels, as in the paper.

    The ``source`` is a folder of the weights, or their name on the hub; by default
    $IMMISCIBLE_CMMD_CLIP, then ``openai/clip-vit-large-patch14-336``. MissingDependencyError without transformers;
    ValueError if the weights are not there, or not CLIP's.
    """
    return _image_features(_load(source, "IMMISCIBLE_CMMD_CLIP", CMMD_MODEL).to(device))


@dataclass(frozen=True)
class ClipScore:
    """How well images fit their texts."""

    mean: float  # of 100 max(cos, 0), in [0, 100]; 2.5 max(cos, 0) in the paper
    standard_error: float | None  # of the mean, over the images; None for one image
    count: int  # number of images
    model: str  # which CLIP


@dataclass(frozen=True, eq=False)
class Clip:
    """CLIP, transformers' ``model`` and ``tokenizer``: images and texts to features of length 1."""

    model: Any
    tokenizer: Any
    image_features: NetworkFeatures

    @classmethod
    def load(cls, source: str | None = None, device: torch.device | str = "cpu") -> "Clip":
        """CLIP from a folder or the hub; by default $IMMISCIBLE_CLIP, then ViT-L/14.

        MissingDependencyError without transformers; ValueError if the weights are not there, or not CLIP's.
        """
        model = _load(source, "IMMISCIBLE_CLIP", SCORE_MODEL).to(device)
        from transformers import CLIPTokenizer

        try:
            tokenizer = CLIPTokenizer.from_pretrained(model.name_or_path)
        except (OSError, TypeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{model.name_or_path} has no tokenizer ({reason})") from error
        return cls(model, tokenizer, _image_features(model))

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Features [B, F] of texts, truncated to the length of CLIP's text encoder."""
        length = int(self.model.config.text_config.max_position_embeddings)
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        tokens = tokens.to(next(self.model.parameters()).device)
        out = self.model.text_model(tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return nn.functional.normalize(self.model.text_projection(out.pooler_output), dim=-1)

    def score(self, batches: Iterable[tuple[Tensor, Sequence[str]]]) -> ClipScore:
        """CLIPScore of the center squares of images [b, 1 or 3, H, W] in [-1, 1] and their texts, one for each."""
        scores = []
        for data, texts in batches:
            if len(data) != len(texts):
                raise ValueError(f"expected a text for each of {len(data)} images, got {len(texts)}")
            side = min(data.shape[-2:])
            top, left = ((length - side) // 2 for length in data.shape[-2:])
            square = data[..., top : top + side, left : left + side]
            scores.append(clip_scores(self.image_features(square), self.text_features(texts)))
        if not scores:
            raise ValueError("CLIPScore needs at least one image")
        values = torch.cat(scores)
        error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else None
        return ClipScore(float(values.mean()), error, len(values), self.image_features.name)


def clip_scores(images: Tensor, texts: Tensor) -> Tensor:
    """100 max(cos, 0) [B] of features [B, F] of images and of their texts."""
    cosine = nn.functional.cosine_similarity(images.cpu().double(), texts.cpu().double())
    return 100 * cosine.clamp(min=0)


def _image_features(model: Any) -> NetworkFeatures:
    def embed(model: Any, images: Tensor) -> Tensor:
        pooled = model.vision_model(pixel_values=images).pooler_output
        return nn.functional.normalize(model.visual_projection(pooled), dim=-1)

    vision, dim = model.config.vision_config, int(model.config.projection_dim)
    size = {512: "S", 768: "B", 1024: "L", 1280: "H"}.get(vision.hidden_size, "?")
    kind = f"CLIP ViT-{size}/{vision.patch_size} {vision.image_size} px"
    prepare = Preprocessing(int(vision.image_size), _MEAN, _STD, rounded=True)
    name, distance = f"{kind} ({dim}-d)", f"CMMD of {kind}"
    return NetworkFeatures(model, embed, name, dim, distance, prepare, str(prepare))


def _load(source: str | None, variable: str, usual: str) -> Any:
    with require_extra("clip", "CLIPScore and CMMD"):
        from transformers import CLIPModel
    return load_transformer(CLIPModel, "clip", source, variable, usual)
