"""``immiscible recipes``."""

import json
import sys

from immiscible_diffusion.recipes import RECIPES, recipe_from_name


def main(arguments: list[str]) -> int:
    """List the recipes, or print one as JSON."""
    if arguments and not arguments[0].startswith("-"):
        recipe = recipe_from_name(arguments[0])
        sys.stdout.write(json.dumps(recipe.to_dict(), indent=2) + "\n")
        return 0
    for name, make in RECIPES.items():
        summary = (make.__doc__ or "").strip().splitlines()[0]
        sys.stdout.write(f"{name:16}{summary}\n")
    sys.stdout.write("\nimmiscible recipes NAME prints one whole.\n")
    return 0
