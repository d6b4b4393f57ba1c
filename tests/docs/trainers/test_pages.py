"""Every page can be read from top to bottom by someone in a hurry."""

import ast

import pytest
import torch

from helpers import ROOT
from immiscible_diffusion import KNN

PAGES = ROOT / "docs" / "trainers"
TRAINERS = ["diffusers", "kohya", "lerobot", "onetrainer", "own", "simpletuner", "torchcfm"]
SHORT = ["ai-toolkit", "edm", "flow_matching", "jax", "lightning", "lucidrains", "musubi-tuner"]
# the data where the line stands
DATA = {"diffusers": "latents", "kohya": "latents", "flow_matching": "samples", "musubi-tuner": "latents"}


def test_all_pages_are_there():
    assert {path.stem for path in PAGES.glob("*.md")} == {"README", *TRAINERS, *SHORT}


@pytest.mark.parametrize("name", [*TRAINERS, *SHORT])
def test_the_table_has_every_page(page, name):
    assert f"]({name}.md)" in page("README").text


def test_the_check_of_the_table(page, latents, capsys):
    def step(batch):
        noise, layer = KNN(4)(batch), torch.nn.Conv2d(4, 4, 1)
        torch.nn.functional.mse_loss(layer(batch + noise), noise).backward()

    assert page("README").run("check", step=step, batch=latents).report.problems == []
    assert "no problem found" in capsys.readouterr().out


@pytest.mark.parametrize("name", SHORT)
def test_a_short_page_is_short(page, name):
    found = page(name)
    assert len(found.text.splitlines()) <= 64
    assert "published" in found.text.split("\n## ")[0]
    assert {"after"} <= found.blocks.keys()
    for code in found.blocks.values():
        ast.parse(code)


@pytest.mark.parametrize("name", DATA)
def test_times_dropout_and_order_are_those_without_pairing(page, name, latents):
    states = []
    for block, k in [("before", 1), ("after", 1), ("after", 4)]:
        torch.manual_seed(0)
        local = {DATA[name]: latents, "coupling": KNN(k), "device": "cpu"}
        page(name).run(block, **local)
        states.append(torch.get_rng_state().tolist())
    assert states[0] == states[1] == states[2]


@pytest.mark.parametrize("name", TRAINERS)
def test_a_page_says_what_is_known_first_and_then_what_to_type(page, name):
    text = page(name).text
    opening = text.split("\n## ")[0]
    assert "**" in opening
    assert any(word in opening for word in ("Published", "published"))
    assert text.split("\n## ")[1].startswith("Type this first")
    assert "## See that it is on" in text
    assert len(text.splitlines()) <= 130


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
