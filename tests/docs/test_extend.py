"""``docs/extend.md``: its code runs as it stands, and its commands take what it defines."""

import contextlib
import re
import sys

import pytest
import torch

from helpers import ROOT
from immiscible_diffusion.couplings import parse_coupling
from immiscible_diffusion.experiments.compare.plan import Plan
from immiscible_diffusion.training.task import Task, TaskConfig

TEXT = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A module ``my_module`` of the page's blocks, run in a folder of its own."""
    folder = tmp_path_factory.mktemp("extend")
    (folder / "my_module.py").write_text("\n".join(BLOCKS), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(None):
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        import my_module

        yield my_module
        del sys.modules["my_module"]


def test_blocks_run(page):
    assert page.images.shape == (16, 1, 8, 8)
    assert page.recipe.coupling == "knn:k=4"


def test_couplings_do_what_their_docstrings_say(page):
    data = torch.ones(2000, 4)
    noise = page.farthest(data, generator=torch.Generator().manual_seed(0))
    assert (noise - data).norm(dim=1).mean() > (torch.randn(2000, 4) - data).norm(dim=1).mean()
    noise = page.Antithetic(strength=1.0)(data, generator=torch.Generator().manual_seed(0))
    assert ((noise * data).sum(dim=1) >= 0).all()


@pytest.mark.parametrize("name", ["my_module:Antithetic(strength=0.5)", "my_module:farthest"])
def test_couplings_are_taken_by_import_path(page, name, tmp_path):
    assert name in TEXT
    parse_coupling(name, allow_import=True)
    Plan(tmp_path, page.recipe, ("independent", name), (0,))


def test_table_names_the_abstract_methods():
    abstract = {f"{kind.__name__}.{name}" for kind in (Task, TaskConfig) for name in kind.__abstractmethods__}
    assert set(re.findall(r"\| `(\w+\.\w+)\(", TEXT)) == abstract
