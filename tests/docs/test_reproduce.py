"""docs/reproduce.md: its commands share folders as they may, and it names every recipe."""

import shlex

import pytest

from fixtures.commands import check, commands
from helpers import ROOT
from immiscible_diffusion.recipes import RECIPES, recipe_from_name

TEXT = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
CPU_RECIPES = [name for name in RECIPES if name.startswith(("digits", "fashion"))]


def test_options_reach_the_recipe():
    recipe = check("immiscible compare cifar10-ddim --eval.sampling_steps 20 1000 --batch-size 128")
    assert (recipe.task.eval.sampling_steps, recipe.batch_size) == ((20, 1000), 128)
    assert check("immiscible train cifar10-ddim --scaling.factor 2").scaling.factor == 2


def test_comparisons_that_share_a_folder_have_one_recipe():
    of_folder = {}
    for command in commands(TEXT):
        words = shlex.split(command)
        if words[1] != "compare":
            continue
        folder = words[words.index("--out") + 1] if "--out" in words else words[2]
        assert of_folder.setdefault(folder, check(command)) == check(command), command
    assert len(of_folder) > 5


def test_every_recipe_is_on_the_page():
    assert [name for name in RECIPES if name not in TEXT] == []


@pytest.mark.parametrize("name", CPU_RECIPES)
def test_cpu_recipes_take_minutes(name):
    recipe = recipe_from_name(name)
    assert recipe.steps * recipe.batch_size <= 6_000_000
    assert recipe.task.eval.samples <= 2000
