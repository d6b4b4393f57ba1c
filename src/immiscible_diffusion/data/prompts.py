"""What is said of pictures: captions as they are written, or the names of their classes."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

Synonyms = Literal["first", "random", "all"]
Tokenize = Callable[[Sequence[str]], Tensor | dict[str, Tensor]]
"""Texts to ``[B, L]`` int64, or several such by name where there are several text encoders."""

WORDNET = re.compile(r"n\d{8}")
SYNSETS = "LOC_synset_mapping.txt"


class Prompts(Protocol):
    """The texts of a data set, by row."""

    def all_of(self, row: int) -> Sequence[str]:
        """What may be said of a row; the first is said where nothing is drawn."""


@dataclass(frozen=True, eq=False)
class ColumnCaptions:
    """Captions in a column of a table, a text or a list of texts each.

    Attributes:
        rows: an addressable table.
        column: of the captions.
    """

    rows: Any
    column: str

    def all_of(self, row: int) -> Sequence[str]:
        """The captions of a row; ValueError where there is none."""
        value = self.rows[row][self.column]
        texts = [value] if isinstance(value, str) else list(value or ())
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"row {row} has no caption in column '{self.column}': {value!r}")
        return texts


@dataclass(frozen=True, eq=False)
class SidecarCaptions:
    """Captions in text files beside the pictures.

    Attributes:
        files: one for each row.
    """

    files: Sequence[Path]

    def all_of(self, row: int) -> Sequence[str]:
        """The whole text of the file, on one line."""
        return [" ".join(self.files[row].read_text(encoding="utf-8").split())]


@dataclass(frozen=True, eq=False)
class ListCaptions:
    """Captions that are in memory: those of a latent cache, or yours.

    Attributes:
        texts: of each row.
    """

    texts: Sequence[Sequence[str]]

    def all_of(self, row: int) -> Sequence[str]:
        """What may be said of a row."""
        return self.texts[row]


@dataclass(frozen=True, eq=False)
class ClassNamePrompts:
    """The names of classes in a sentence.

    Attributes:
        labels: ``[N]`` int64.
        names: of the classes, synonyms parted by commas.
        template: with ``{label}`` where the name goes.
        synonyms: which to say: first, all (as they are written), or one at random.
    """

    labels: Tensor
    names: Sequence[str]
    template: str = "{label}"
    synonyms: Synonyms = "first"

    def __post_init__(self) -> None:
        check_template(self.template)

    def all_of(self, row: int) -> Sequence[str]:
        """The sentences with each of the synonyms that may be said."""
        return self.of_class(int(self.labels[row]))

    def of_class(self, label: int) -> Sequence[str]:
        """The sentences of a class; ValueError for a label that is none."""
        if not 0 <= label < len(self.names):
            raise ValueError(f"label {label} is none of {len(self.names)} classes")
        name = self.names[label]
        said = [name] if self.synonyms == "all" else [part.strip() for part in name.split(",")]
        said = said[:1] if self.synonyms == "first" else said
        return [self.template.replace("{label}", part.replace("_", " ")) for part in said]


def check_template(template: str) -> None:
    """Raise ValueError unless the class can be named in it."""
    if "{label}" not in template:
        raise ValueError(f"the template must say {{label}} where the class goes, got {template!r}")


def sample_prompts(prompts: Prompts, rows: Tensor, generator: torch.Generator | None) -> list[str]:
    """A text for each of ``rows`` ``[B]``: the first, or one at random if a generator is given."""
    choices = [prompts.all_of(int(row)) for row in rows]
    if generator is None:
        return [texts[0] for texts in choices]
    # Drawn for every row: a row of one caption does not shift what the next one draws.
    shares = torch.rand(len(choices), generator=generator, dtype=torch.float64).tolist()
    return [texts[int(u * len(texts))] for texts, u in zip(choices, shares, strict=True)]


def class_prompts(
    names: Sequence[str], template: str = "{label}", synonyms: Synonyms = "first"
) -> list[str]:
    """What is said of each class when pictures of it are asked for."""
    named = ClassNamePrompts(torch.arange(len(names)), names, template, synonyms)
    return [named.all_of(label)[0] for label in range(len(names))]


def load_class_names(
    names: Sequence[str], listed: str | None, folder: Path | None
) -> Sequence[str]:
    """Class names that can be said: read from ``listed`` (or ImageNet's own list) if need be.

    Args:
        names: as the data set has them.
        listed: a file of names, one a line in the order of the classes, or each after the name of
            its folder, ``n01440764 tench, Tinca tinca``.
        folder: of the data set: ImageNet's list is looked for there and above.

    Raises:
        ValueError: the file is not there or lacks a class, or WordNet's numbers cannot be said.
    """
    file = Path(listed) if listed else None
    numbers = all(WORDNET.fullmatch(name) for name in names)
    if file is None and not numbers:
        return names
    if file is None and folder is not None:
        above = [folder, *folder.resolve().parents][:5]
        file = next((path / SYNSETS for path in above if (path / SYNSETS).is_file()), None)
    if file is None:
        raise ValueError(
            f"the classes are named {names[0]} ..., which no text encoder knows; put ImageNet's "
            f"{SYNSETS} beside the folders, or give a file of names"
        )
    return _from_list(file, names)


def _from_list(file: Path, names: Sequence[str]) -> Sequence[str]:
    if not file.is_file():
        raise ValueError(f"there is no file of class names {file}")
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line]
    by_folder = dict(line.split(maxsplit=1) for line in lines if len(line.split(maxsplit=1)) == 2)
    if all(name in by_folder for name in names):
        return [by_folder[name] for name in names]
    if len(lines) != len(names) or all(WORDNET.match(line) for line in lines):
        missing = next(name for name in names if name not in by_folder)
        raise ValueError(
            f"{file} has {len(lines)} names; expected one for each of {len(names)} classes in "
            f"their order, or each after its folder ('{missing}' is not there)"
        )
    return lines
