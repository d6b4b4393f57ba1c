"""CMMD against brute force and closed forms; CLIPScore and CMMD on a CLIP of random weights."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fixtures.tiny_clip import save_clip
from immiscible_diffusion.metrics import extract
from immiscible_diffusion.metrics.clip import Clip, clip_scores, cmmd, cmmd_features
from immiscible_diffusion.utils.optional_deps import MissingDependencyError


def brute_force(a: torch.Tensor, b: torch.Tensor, sigma: float = 10.0) -> float:
    def kernel(x: torch.Tensor, y: torch.Tensor) -> float:
        return math.exp(-float((x - y).square().sum()) / (2 * sigma**2))

    def mean(u: torch.Tensor, v: torch.Tensor) -> float:
        return math.fsum(kernel(x, y) for x in u for y in v) / (len(u) * len(v))

    return 1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b))


@pytest.mark.parametrize("sigma", [10.0, 0.7])
def test_cmmd_equals_brute_force(generator: torch.Generator, sigma: float) -> None:
    a = torch.randn(13, 5, generator=generator).double()
    b = torch.randn(9, 5, generator=generator).double() + 0.3
    assert cmmd(a, b, sigma=sigma) == pytest.approx(brute_force(a, b, sigma), rel=1e-9)


def test_cmmd_of_unit_features_keeps_its_digits(generator: torch.Generator) -> None:
    a, b = (torch.nn.functional.normalize(torch.randn(12, 64, generator=generator)).double() for _ in range(2))
    assert cmmd(a, b) == pytest.approx(brute_force(a, b), rel=1e-7)
    assert cmmd(a.float(), b.float()) == pytest.approx(cmmd(a, b), rel=1e-4)
    assert cmmd(a, a.flip(0)) == pytest.approx(0, abs=1e-10)
    assert cmmd(a, b) == pytest.approx(cmmd(b, a), rel=1e-12)


def test_cmmd_in_blocks(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = torch.randn(20, 4, generator=generator), torch.randn(31, 4, generator=generator)
    whole = cmmd(a, b)
    monkeypatch.setattr("immiscible_diffusion.metrics.clip._BLOCK", 50)
    assert cmmd(a, b) == pytest.approx(whole, rel=1e-9)


def test_cmmd_of_gaussians(generator: torch.Generator) -> None:
    """Under N(m, s^2 I) the mean kernel is known: (1 + 2 s^2 / sigma^2)^(-F/2) e^(...)."""
    width, shift, count, sigma = 3, 1.0, 4000, 2.0
    a = torch.randn(count, width, generator=generator)
    b = torch.randn(count, width, generator=generator)
    b[:, 0] += shift
    spread = 1 + 2 / sigma**2
    expected = 2000 * spread ** (-width / 2) * -math.expm1(-(shift**2) / (2 * sigma**2 * spread))
    # Standard error over seeds about 2.5; the diagonal adds 2,000 (1 - k) / 4,000, under 0.5.
    assert cmmd(a, b, sigma=sigma) == pytest.approx(expected, abs=10)


def test_bad_features() -> None:
    good = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"expected features \[B, 3\]"):
        cmmd(good, torch.zeros(2, 4))
    with pytest.raises(ValueError, match="CMMD needs features in each set"):
        cmmd(good, torch.zeros(0, 3))
    with pytest.raises(ValueError, match="sigma above 0"):
        cmmd(good, good, sigma=0)
    with pytest.raises(ValueError, match="NaN"):
        cmmd(good, good * float("nan"))


def test_scores_are_cosines_without_the_negative() -> None:
    pictures = torch.tensor([[1.0, 0], [2, 0], [0, 1], [1, 0]])
    texts = torch.tensor([[3.0, 0], [1, 1], [1, 0], [-1, 0]])
    expected = torch.tensor([100, 100 / 2**0.5, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(clip_scores(pictures, texts), expected)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


def data(generator: torch.Generator, count: int = 5, size: int = 24) -> torch.Tensor:
    levels = torch.randint(0, 256, (count, 3, size, size), generator=generator)
    return levels.float() / 127.5 - 1


def reference(folder: Path) -> tuple[Any, Any]:
    from transformers import CLIPModel, CLIPTokenizer

    return CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)


def test_score_is_that_of_transformers(folder: Path, generator: torch.Generator) -> None:
    model, tokenizer = reference(folder)
    pictures, texts = data(generator), ["a cat", "dog", "", "x" * 40, "two words"]
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    read = tokenizer(texts, padding=True, truncation=True, max_length=12, return_tensors="pt")
    with torch.no_grad():
        out = model(pixel_values=((pictures + 1) / 2 - mean) / std, **read)
    cosine = (out.image_embeds * out.text_embeds).sum(dim=1)
    clip = Clip.load(str(folder))
    score = clip.score([(pictures[:3], texts[:3]), (pictures[3:], texts[3:])])
    assert score.mean == pytest.approx(float(100 * cosine.clamp(min=0).mean()), abs=1e-3)
    assert score.count == 5
    assert score.standard_error is not None
    assert "8 24 px" in score.model


def test_score_wants_a_text_for_each_picture(folder: Path, generator: torch.Generator) -> None:
    clip = Clip.load(str(folder))
    with pytest.raises(ValueError, match="a text for each of 5 images, got 2"):
        clip.score([(data(generator), ["a", "b"])])
    with pytest.raises(ValueError, match="at least one image"):
        clip.score([])
    one = clip.score([(data(generator, 1, size=30)[..., :20], ["a"])])  # center squares
    assert (one.count, one.standard_error) == (1, None)


def test_cmmd_features_are_of_length_1_and_of_no_batch(folder: Path, generator: torch.Generator) -> None:
    features = cmmd_features(source=str(folder))
    found = extract(features, [data(generator, 4), data(generator, 2)])
    assert found.shape == (6, 10)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(6))
    assert features.distance.startswith("CMMD")
    assert "24 px bicubic" in features.preprocessing
    assert features.preprocessing in features.identity
    pictures = data(generator, 3)
    torch.testing.assert_close(features(pictures)[1:2], features(pictures[1:2]))


def test_missing_weights_say_what_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"not at .*none.*hf download openai/clip-vit-large-patch14 "):
        Clip.load(str(tmp_path / "none"))
    monkeypatch.setenv("IMMISCIBLE_CMMD_CLIP", str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"patch14-336.*set IMMISCIBLE_CMMD_CLIP"):
        cmmd_features()
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="kind 'bert', not clip"):
        Clip.load(str(tmp_path))


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match=r"CLIPScore and CMMD needs .*\[clip\]"):
        Clip.load("anywhere")
