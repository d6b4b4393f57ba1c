"""The pages of ``docs/trainers``: their fenced lines are run in stand-ins of the trainers."""

import re
from types import SimpleNamespace

import pytest
import torch

from fixtures.recorder import recorder
from helpers import ROOT

__all__ = ["recorder"]
PAGES = ROOT / "docs" / "trainers"
BLOCK = re.compile(r"^```python(?: (\w+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Page:
    """The named blocks of a page, and how to run one where its line stands in the trainer."""

    def __init__(self, name):
        self.text = (PAGES / f"{name}.md").read_text()
        self.blocks = dict(BLOCK.findall(self.text))

    def run(page, name, /, **local):
        """Run block ``name`` with the variables ``local``; what it leaves, as attributes."""
        local.setdefault("torch", torch)
        local.setdefault("own_generator", lambda device: torch.Generator(device).manual_seed(7))
        exec(compile(page.blocks[name], name, "exec"), local)
        return SimpleNamespace(**local)


@pytest.fixture(autouse=True)
def _seed():
    """Trainers draw from the global generator."""
    torch.manual_seed(0)


@pytest.fixture
def page():
    """``page("kohya")``."""
    return Page


@pytest.fixture
def latents():
    """Latents of unit variance."""
    return torch.randn(64, 4, 16, 16, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def many():
    """So many latents that the mean of their pull is known to 0.02."""
    return torch.randn(2500, 4, 8, 8, generator=torch.Generator().manual_seed(8))
