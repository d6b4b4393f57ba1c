"""A CLIP tokenizer whose words are learnt from prompts, and which can spell any other."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from immiscible_diffusion.utils.atomic_files import write_text
from immiscible_diffusion.utils.optional_deps import require_extra

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"


def make_tokenizer(texts: Iterable[str], *, merges: int = 2000, length: int = 16) -> Any:
    """A ``CLIPTokenizer`` whose whole words are those of ``texts``.

    Byte-pair merges are learnt from the texts, the most frequent pairs first. Every byte is a token
    of its own too, within a word and at its end: so every prompt has tokens, and none is unknown.

    Args:
        texts: prompts.
        merges: how many merges at most.
        length: tokens of a prompt, the start and the end included.

    Raises:
        ValueError: no word in any of the texts.
    """
    with require_extra("sd", "the tokenizer"):
        from transformers import CLIPTokenizer
    learnt: Any = learnt_merges(texts, merges)  # pairs, which BPE takes; CLIP's hint says words
    letters = byte_letters()
    words = [*letters, *(letter + WORD_END for letter in letters)]
    words += dict.fromkeys(a + b for a, b in learnt if a + b not in words)
    words += [START, END]
    return CLIPTokenizer(
        vocab={word: number for number, word in enumerate(words)},
        merges=learnt,
        model_max_length=length,
    )


def learnt_merges(texts: Iterable[str], count: int) -> list[tuple[str, str]]:
    """The ``count`` most frequent byte-pair merges within the words of ``texts``, at most."""
    with require_extra("sd", "the tokenizer"):
        from tokenizers.trainers import BpeTrainer
        from transformers import CLIPTokenizer
    letters = byte_letters()
    words = [*letters, *(letter + WORD_END for letter in letters), START, END]
    blank = CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])
    texts = list(texts)
    if not any(len(blank(text).input_ids) > 2 for text in texts):
        raise ValueError(f"none of {len(texts)} texts has a word; give captions, or class names")
    trainer = BpeTrainer(
        vocab_size=len(words) + count,
        initial_alphabet=letters,
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    engine = blank.backend_tokenizer
    engine.train_from_iterator(texts, trainer)
    found = json.loads(engine.to_str())["model"]["merges"]
    return [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in found][
        :count
    ]


def byte_letters() -> list[str]:
    """One letter for each of the 256 bytes, as GPT-2 and CLIP write them."""
    with require_extra("sd", "the tokenizer"):
        from tokenizers.pre_tokenizers import ByteLevel
    return sorted(ByteLevel.alphabet())


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """``save_pretrained``, and the two files that older versions of transformers read."""
    tokenizer.save_pretrained(folder)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    write_text(folder / "vocab.json", json.dumps(model["vocab"], ensure_ascii=False) + "\n")
    write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *pairs]) + "\n")
