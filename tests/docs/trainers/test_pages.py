"""Every page can be read from top to bottom by someone in a hurry."""

import ast

import pytest

from helpers import ROOT

PAGES = ROOT / "docs" / "trainers"
TRAINERS = ["diffusers", "kohya", "lerobot", "onetrainer", "own", "simpletuner", "torchcfm"]


def test_all_pages_are_there():
    assert sorted(path.stem for path in PAGES.glob("*.md")) == TRAINERS


@pytest.mark.parametrize("name", TRAINERS)
def test_a_page_says_what_is_known_first_and_then_what_to_type(page, name):
    text = page(name).text
    opening = text.split("\n## ")[0]
    assert "**" in opening
    assert any(word in opening for word in ("Published", "published"))
    assert text.split("\n## ")[1].startswith("Type this first")
    assert "## See that it is on" in text
    assert len(text.splitlines()) <= 120


@pytest.mark.parametrize("name", TRAINERS)
def test_a_page_names_what_was_read(page, name):
    if name != "own":
        opening = page(name).text.split("\n## ")[0]
        assert "2026-" in opening
        assert f"tests/docs/trainers/test_{name}.py" in opening


@pytest.mark.parametrize("name", TRAINERS)
def test_every_block_is_python_and_has_a_name(page, name):
    found = page(name)
    assert "" not in found.blocks
    assert {"setup", "before", "after", "check"} <= found.blocks.keys()
    assert found.text.count("```python") == len(found.blocks)
    for code in found.blocks.values():
        ast.parse(code)


@pytest.mark.parametrize("name", [name for name in TRAINERS if name != "torchcfm"])
def test_setup_makes_a_coupling(page, name, latents):
    assert page(name).run("setup").coupling(latents).shape == latents.shape


@pytest.mark.parametrize("name", TRAINERS)
def test_links_between_pages_lead_somewhere(page, name):
    if "own.md#which-k" in page(name).text:
        assert "\n## Which k\n" in page("own").text
