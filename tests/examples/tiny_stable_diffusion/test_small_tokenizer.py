import pytest

transformers = pytest.importorskip("transformers", reason="the tokenizer is of transformers")

from immiscible_diffusion.smallsd.tokenizer import byte_letters, make_tokenizer, save_tokenizer

NAMES = ["airplane", "ankle boot", "T-shirt/top", "Ankle boot", "frog"]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(NAMES, length=16)


def test_whole_words_of_the_texts_are_one_token(tokenizer):
    for word in ("airplane", "ankle", "boot", "frog"):
        assert len(tokenizer(word).input_ids) == 3  # the start, the word, the end


@pytest.mark.parametrize(
    "prompt", ["airplane", "a zebra, two yaks & 1 ox!", "日本", "é", "🙂 frog", "T-shirt/top"]
)
def test_any_prompt_comes_back_without_an_unknown_token(tokenizer, prompt):
    ids = tokenizer(prompt).input_ids
    assert tokenizer.unk_token_id not in ids[1:-1]
    back = tokenizer.decode(ids, skip_special_tokens=True)
    assert back.replace(" ", "") == prompt.lower().replace(" ", "")


def test_every_byte_is_a_token_within_a_word_and_at_its_end(tokenizer):
    vocabulary = tokenizer.get_vocab()
    assert len(byte_letters()) == 256
    assert all(c in vocabulary and f"{c}</w>" in vocabulary for c in byte_letters())
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
    again = transformers.CLIPTokenizer.from_pretrained(tmp_path)
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
