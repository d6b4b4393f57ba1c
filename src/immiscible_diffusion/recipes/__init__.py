"""The recipes by name; each is a function that returns a frozen Recipe.

Every public function of a file in this folder is one: ``def digits_flow()`` is ``digits-flow``.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable

from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.utils.checks import did_you_mean

RECIPES: dict[str, Callable[[], Recipe]] = {
    name.replace("_", "-"): function
    for file in pkgutil.iter_modules(__path__)
    for module in [importlib.import_module(f"{__name__}.{file.name}")]
    for name, function in inspect.getmembers(module, inspect.isfunction)
    if function.__module__ == module.__name__ and not name.startswith("_")
}


def recipe_from_name(name: str) -> Recipe:
    """Return the recipe called ``name``; ValueError lists the names there are."""
    if name not in RECIPES:
        raise ValueError(f"unknown recipe '{name}'; known: {', '.join(RECIPES)}{did_you_mean(name, RECIPES)}")
    return RECIPES[name]()
