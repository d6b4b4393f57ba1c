"""docs/reproduce.md and the README name commands that exist: recipes, options, couplings, files."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from helpers import ROOT
from immiscible_diffusion.cli import compare, describe, encode, evaluate, report, sample, train
from immiscible_diffusion.cli.main import COMMANDS
from immiscible_diffusion.cli.options import RecipeOptions, named_recipe, parse, split_known
from immiscible_diffusion.couplings import check_coupling_name
from immiscible_diffusion.experiments.compare.plan import Plan
from immiscible_diffusion.recipes import RECIPES, recipe_from_name

PAGE = ROOT / "docs" / "reproduce.md"
COMMAND = re.compile(r"`((?:immiscible|python) [^`]+)`")
OF_A_RUN = {
    "sample": sample,
    "evaluate": evaluate,
    "describe": describe,
    "encode": encode,
    "report": report,
}
CPU_TWINS = [name for name in RECIPES if name.startswith(("digits", "fashion"))]


def commands(text):
    return sorted(set(COMMAND.findall(text)))


def checked(command):
    """Parse a command as the command line would; returns the recipe, if it is of one."""
    program, word, *rest = shlex.split(command)
    if program == "python" and word == "-m":
        return check_module(*rest)
    if program == "python":
        return check_script(ROOT / word, rest)
    assert word in COMMANDS
    if word in OF_A_RUN:
        options = parse(OF_A_RUN[word].Options, rest, word)
        for name in getattr(options, "couplings", ()):
            check_coupling_name(name)
        return None
    if word == "recipes":
        assert rest in (["NAME"], [])
        return None
    recipe, rest = named_recipe(rest[0], rest[1:])
    if word == "compare":
        options, recipe = split_known(compare.Options, recipe, rest, word)
        Plan(Path("unused"), recipe, compare.couplings(options), options.seeds)
        return recipe
    assert word in ("train", "download")
    given = train.Options(recipe=RecipeOptions.of(recipe))
    recipe = parse(train.Options, rest, word, given).recipe.recipe()
    check_coupling_name(recipe.coupling)
    return recipe


def check_module(name, *rest):
    """Parse the options of ``python -m name``, a dataclass as of our commands or argparse's."""
    path = ROOT.joinpath(*name.split("."))
    script = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    if "argparse" in script.read_text(encoding="utf-8"):
        return check_script(script, rest)
    parse(importlib.import_module(f"{name}.__main__").Options, rest, name)
    return None


def check_script(script, rest):
    source = script.read_text(encoding="utf-8")
    for option in filter(lambda word: word.startswith("--"), rest):
        assert f'"{option}"' in source, f"{script.name} has no {option}"


@pytest.mark.parametrize("command", commands(PAGE.read_text(encoding="utf-8")))
def test_every_command_of_the_page_can_be_given(command):
    checked(command)


@pytest.mark.parametrize("page", ["stable-diffusion.md"])
def test_every_command_of_stable_diffusion_can_be_given(page):
    text = (PAGE.parent / page).read_text(encoding="utf-8")
    blocks = "".join(re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    blocks = re.sub(r"accelerate launch .*-m immiscible_diffusion", "immiscible", blocks)
    found = re.findall(r"^((?:immiscible|python -m) .*)$", blocks, re.MULTILINE)
    for command in found:
        checked(shlex.join(shlex.split(command, comments=True)))
    assert found
    links = re.findall(r"\]\(([^)]+)\)", text)
    folder = (PAGE.parent / page).parent
    assert [link for link in links if not (folder / link.partition("#")[0]).exists()] == []


@pytest.mark.parametrize(
    "command",
    [
        "immiscible train cifar10-flow --coupling knm:k=4",
        "immiscible train cifar10-flows",
        "immiscible train cifar10-flow --optim.rate 1",
        "immiscible compare cifar10-flow --coupling knn:k=4 --seeds zero",
        "immiscible compare cifar10-flow --coupling knn:j=4",
        "immiscible evaluate RUN --color red",
    ],
)
def test_the_check_finds_what_does_not_exist(command):
    with pytest.raises((ValueError, SystemExit)):  # tyro exits
        checked(command)


def test_options_reach_the_recipe():
    recipe = checked(
        "immiscible compare cifar10-ddim --eval.sampling_steps 20 1000 --batch-size 128"
    )
    assert (recipe.task.eval.sampling_steps, recipe.batch_size) == ((20, 1000), 128)
    assert checked("immiscible train cifar10-ddim --scaling.factor 2").scaling.factor == 2


def test_comparisons_that_share_a_folder_are_of_one_recipe():
    of_folder = {}
    for command in commands(PAGE.read_text(encoding="utf-8")):
        words = shlex.split(command)
        if words[1] != "compare":
            continue
        folder = words[words.index("--out") + 1] if "--out" in words else words[2]
        assert of_folder.setdefault(folder, checked(command)) == checked(command), command
    assert len(of_folder) > 5


def test_every_recipe_is_on_the_page():
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in RECIPES if name not in text] == []


def test_every_link_of_the_page_leads_somewhere():
    links = re.findall(r"\]\(([^)]+)\)", PAGE.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (PAGE.parent / link.partition("#")[0]).exists()] == []


def test_every_row_has_every_cell():
    for block in re.split(r"\n\n+", PAGE.read_text(encoding="utf-8")):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in rows}) <= 1, rows[:1]


@pytest.mark.parametrize("name", CPU_TWINS)
def test_the_twins_are_of_minutes(name):
    recipe = recipe_from_name(name)
    assert recipe.steps * recipe.batch_size <= 6_000_000
    assert recipe.task.eval.samples <= 2000
