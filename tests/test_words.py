"""One word for one thing, the field's own: no name of the package and no page uses the others."""

import ast
import re

import pytest

from helpers import ROOT

SOURCE = ROOT / "src" / "immiscible_diffusion"
# What docs/design.md and CONTRIBUTING.md call otherwise: the word to use instead.
WORDS = {
    "datum": "sample, data",
    "pictures?": "image",
    "laws?": "noise distribution",
    "judge[sd]?|judging|judgement": "evaluate, evaluator, metric",
    "cells?": "trial (of a table: entry, field)",
    "budgets?": "sampling steps",
    "told(?! apart)": "conditioned on, given",
    "lineup|rehearsals?|rehearsed?|companion": "couplings, time estimate, matched trial",
    "(?<!-)(?:painted|paintings?)|holes?": "in-painting, mask",
    "films?|strips?": "video, trajectories",
    "cent(?:re[sd]?|ring)": "center",
    "colour(?:s|ed)?|greys?": "color, gray",
    "neighbours?|neighbourhoods?|behaviours?|favours?": "American spelling",
    "(?:optimi|(?:re)?normali|initiali|randomi|reali|summari)s(?:e[srd]?|ing|ations?)": "-ize",
    "analys(?:e|ed|ing)": "analyze",
}
DIALECT = re.compile("|".join(WORDS))
# Whole names with another meaning of a word, or the established term of a field.
NAMES = {
    "time_budget",  # minutes to divide, not sampling steps
    "cell",  # of a table of data or of HTML
    "information_budget",  # nats
    "assignment_budget",
}
# Phrases of pages: other meanings, titles of papers, names of others' functions.
PHRASES = re.compile("(?:time|information|memory) budgets?|budgets? of (?:minutes|time|nats)|law of large numbers")
# Modules, variables and fields are nouns; a participle alone says what happened, not what it is.
PARTICIPLES = re.compile(
    "told|said|seen|shown|given|found|made|wanted|kept|drawn|held|brought|taken|judged|painted|"
    "examined|recorded|assigned"
)
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
MODULES = sorted(SOURCE.rglob("*.py"))


def words_of(name):
    """``load_RunDir`` as ``load run dir``: words of snake_case and CamelCase, in lower case."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return [word.lower() for word in spaced.split("_") if word]


def public_names(tree, inside=""):
    """Classes, functions, their parameters, and the annotated fields of classes (options too)."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if node.name.startswith("_") and node.name != "__init__" and node.name != "__call__":
                continue
            yield node.name
            if isinstance(node, ast.ClassDef):
                yield from public_names(node, node.name)
            else:
                arguments = node.args
                for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
                    yield argument.arg
        elif isinstance(node, ast.AnnAssign) and inside and isinstance(node.target, ast.Name):
            yield node.target.id


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_public_names_use_the_words_of_the_field(module):
    names = {*module.relative_to(SOURCE).with_suffix("").parts}
    names |= set(public_names(ast.parse(module.read_text("utf-8"))))
    wrong = {
        name
        for name in names - NAMES
        if PARTICIPLES.fullmatch(name) or any(DIALECT.fullmatch(word) for word in words_of(name))
    }
    assert not wrong, f"rename {sorted(wrong)}; {instead(wrong)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_pages_use_the_words_of_the_field(page):
    text = re.sub(r"\]\([^)]*\)", "]", page.read_text("utf-8"))  # without addresses
    text = PHRASES.sub("", text)
    found = re.finditer(rf"\b(?:{DIALECT.pattern})\b", text, re.IGNORECASE)
    wrong = [f"line {text[: m.start()].count(chr(10)) + 1}: {m[0]}" for m in found]
    assert not wrong, f"{wrong}; {instead(wrong)}"


def instead(wrong):
    """What to write in place of the words in ``wrong``."""
    text = " ".join(" ".join(words_of(name)) for name in wrong)
    return "; ".join(f"{w}: {new}" for w, new in WORDS.items() if re.search(rf"\b(?:{w})\b", text))


@pytest.mark.parametrize("name", ["load_pictures", "StartLaw", "judge", "CellRecord", "data_grey"])
def test_dialect_is_found(name):
    assert any(DIALECT.fullmatch(word) for word in words_of(name))


@pytest.mark.parametrize("name", ["LawrenceDeformable", "cellular", "colors", "analyses"])
def test_other_words_are_not(name):
    assert not any(DIALECT.fullmatch(w) for w in words_of(name))
