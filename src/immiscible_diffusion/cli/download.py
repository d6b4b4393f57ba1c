"""``immiscible download RECIPE``."""

import importlib.util
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from immiscible_diffusion.cli.options import Device, RecipeOptions, WholeRecipe, named_recipe, parse, take_name
from immiscible_diffusion.couplings import check_coupling_name
from immiscible_diffusion.recipes.flow_matching import digits_flow
from immiscible_diffusion.training.builders import check_trackers
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.task import Task
from immiscible_diffusion.utils.device import pick_device
from immiscible_diffusion.utils.optional_deps import MissingDependencyError, how_to_install

PACKAGES = ("accelerate", "diffusers", "safetensors", "tqdm", "matplotlib")


@dataclass(frozen=True)
class Options:
    """Get everything a recipe needs, before a job on a node without a network.

    Data go into the cache of ``datasets`` ($HF_HOME, ~/.cache/huggingface), networks for features into
    $IMMISCIBLE_CACHE (~/.cache/immiscible-diffusion): the job must see the same folders. Prints what is there and what
    is missing; exit code 2 if something is.

    Args:
        device: where a classifier for features is trained, if the recipe asks for one.
        recipe: any field of the recipe, as for train.
    """

    device: Device = "auto"
    recipe: WholeRecipe = field(default_factory=lambda: RecipeOptions.of(digits_flow()))


@dataclass(frozen=True)
class Item:
    """One thing that a recipe needs: ``note`` says what is there, or how to get it."""

    name: str
    there: bool
    note: str


def main(arguments: list[str]) -> int:
    """Download, print a line for everything, and count what is missing."""
    name, rest = take_name(arguments, "download")
    recipe, rest = named_recipe(name, rest)
    options = parse(Options, rest, f"download {name}", Options(recipe=RecipeOptions.of(recipe)))
    recipe = options.recipe.recipe()
    # A misspelled one is an error, not missing.
    check_coupling_name(recipe.coupling, allow_import=True)
    items = download(recipe, options.device)
    for item in items:
        sys.stdout.write(f"{'there' if item.there else 'missing':9}{item.name}: {item.note}\n")
    missing = sum(not item.there for item in items)
    if missing:
        sys.stdout.write(f"\n{missing} of {len(items)} missing; {name} cannot run offline yet\n")
    return 2 if missing else 0


def download(recipe: Recipe, device: str = "cpu") -> list[Item]:
    """Return everything that ``recipe`` needs, downloaded where it can be."""
    items: list[Item] = []
    tasks: list[Task] = []  # the task, once its data are there

    def get(name: str, note: Callable[[], str]) -> None:
        """Add an item: ``note`` gets it and says what it is, or raises what is missing."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error" if name == "data for validation" else "ignore")
                items.append(Item(name, True, note()))
        except (ValueError, MissingDependencyError, OSError, UserWarning) as error:
            items.append(Item(name, False, " ".join(str(error).split())))

    def packages() -> str:
        check_trackers(recipe.trackers)
        if absent := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
            raise MissingDependencyError(f"{', '.join(absent)} not installed; {how_to_install(' '.join(absent))}")
        return ", ".join([*PACKAGES, *recipe.trackers])

    def data() -> str:
        task = recipe.task.build(recipe, pick_device("cpu" if device == "auto" else device))
        tasks.append(task)
        dataset = task.dataset
        note = f", {dataset.note}" if dataset.note else ""
        return f"{dataset.name}, {len(dataset):,} of {' x '.join(map(str, dataset.shape))}{note}"

    def loaded(load: Callable[[], Any]) -> str:
        load()
        return "is there"

    def validation() -> str:
        dataset, split = tasks[0].validation_data()
        return f"{dataset.name}, {split}"

    def network() -> str:
        count = sum(parameter.numel() for parameter in tasks[0].build_model().parameters())
        return f"{type(recipe.model).__name__}, {count:,} parameters"

    get("packages", packages)
    get("data", data)
    if not tasks:
        if parts := recipe.task.parts():
            items.pop()  # whose error is of the first part that is missing
        for name, load in parts.items():
            get(name, partial(loaded, load))
        return [*items, Item("network and evaluation", False, "need the data first")]
    get("data for validation", validation)
    get("network", network)
    get("evaluation", lambda: tasks[0].evaluator().check())
    return items
