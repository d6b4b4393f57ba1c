"""Prompts of images: their captions, or the names of their classes in a template."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

Synonyms = Literal["first", "random", "all"]
Tokenize = Callable[[Sequence[str]], Tensor | dict[str, Tensor]]
"""Texts to ``[B, L]`` int64, or several such by name where there are several text encoders."""

WORDNET_ID = re.compile(r"n\d{8}")
IMAGENET_NAMES = "LOC_synset_mapping.txt"


class Prompts(Protocol):
    """The prompts of a data set, by row."""

    def choices(self, row: int) -> Sequence[str]:
        """The texts that the prompt of a row is sampled from; the first is the default."""


@dataclass(frozen=True, eq=False)
class StoredCaptions:
    """Captions that are read when asked for: ``choices`` is a function of the row."""

    choices: Callable[[int], Sequence[str]]


@dataclass(frozen=True, eq=False)
class ListCaptions:
    """Captions in memory, ``texts[row]``."""

    texts: Sequence[Sequence[str]]

    def choices(self, row: int) -> Sequence[str]:
        """The captions of a row."""
        return self.texts[row]


@dataclass(frozen=True, eq=False)
class ClassNamePrompts:
    """Class names in a template, ``{label}`` in place of the name."""

    labels: Tensor  # ``[N]`` int64
    names: Sequence[str]  # of the classes, synonyms separated by commas
    template: str = "{label}"  # of a prompt
    synonyms: Synonyms = "first"  # use the first, one at random, or all as they are written

    def __post_init__(self) -> None:
        check_template(self.template)

    def choices(self, row: int) -> Sequence[str]:
        """The template with each of the synonyms."""
        return self.of_class(int(self.labels[row]))

    def of_class(self, label: int) -> Sequence[str]:
        """The prompts of a class; ValueError for a label out of range."""
        if not 0 <= label < len(self.names):
            raise ValueError(f"label {label} is none of {len(self.names)} classes")
        name = self.names[label]
        names = [name] if self.synonyms == "all" else [part.strip() for part in name.split(",")]
        names = names[:1] if self.synonyms == "first" else names
        return [self.template.replace("{label}", name.replace("_", " ")) for name in names]


def check_template(template: str) -> None:
    """Raise ValueError unless the template has a place for the class name."""
    if "{label}" not in template:
        raise ValueError(f"the template must contain {{label}} for the name, got {template!r}")


def sample_prompts(prompts: Prompts, rows: Tensor, generator: torch.Generator | None) -> list[str]:
    """A text for each of ``rows`` ``[B]``: the first choice, or with a generator one at random."""
    choices = [prompts.choices(int(row)) for row in rows]
    if generator is None:
        return [texts[0] for texts in choices]
    # One number per row, so that a row with one caption does not shift the choice of the next.
    numbers = torch.rand(len(choices), generator=generator, dtype=torch.float64).tolist()
    return [texts[int(u * len(texts))] for texts, u in zip(choices, numbers, strict=True)]


def class_prompts(names: Sequence[str], template: str = "{label}", synonyms: Synonyms = "first") -> list[str]:
    """The prompt of each class, for sampling."""
    prompts = ClassNamePrompts(torch.arange(len(names)), names, template, synonyms)
    return [prompts.of_class(label)[0] for label in range(len(names))]


def read_names(file: Path) -> list[str]:
    """The lines of a file of class names; ValueError if it is absent."""
    if not file.is_file():
        raise ValueError(f"there is no file of class names {file}")
    lines = file.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip()]


def load_class_names(names: Sequence[str], file: str | Path | None, folder: Path | None) -> Sequence[str]:
    """Class names that a text encoder knows: ``names``, or for WordNet's ids those of a file.

    The ``file`` has names, one a line in the order of the classes, or each after the name of its folder, ``n01440764
    tench, Tinca tinca``. Without it, ImageNet's list is looked for in the ``folder`` of the data set and above.

    ValueError if the file is absent or lacks a class, or there is none for WordNet's ids.
    """
    if file is None and not all(WORDNET_ID.fullmatch(name) for name in names):
        return names
    if file is None and folder is not None:
        files = [path / IMAGENET_NAMES for path in (folder, *folder.resolve().parents[:4])]
        file = next((path for path in files if path.is_file()), None)
    if file is None:
        raise ValueError(
            f"the classes are named {names[0]} ..., which no text encoder knows; put ImageNet's "
            f"{IMAGENET_NAMES} beside the folders, or give a file of names"
        )
    lines = read_names(Path(file))
    by_folder = dict(line.split(maxsplit=1) for line in lines if len(line.split(maxsplit=1)) == 2)
    if all(name in by_folder for name in names):
        return [by_folder[name] for name in names]
    if len(lines) != len(names) or all(WORDNET_ID.match(line) for line in lines):
        missing = next(name for name in names if name not in by_folder)
        raise ValueError(
            f"{file} has {len(lines)} names; expected one for each of {len(names)} classes in "
            f"their order, or each after its folder ('{missing}' is not there)"
        )
    return lines
