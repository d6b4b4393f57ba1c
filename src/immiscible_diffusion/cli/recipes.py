"""``immiscible recipes``."""

import inspect
import json
import sys

from immiscible_diffusion.recipes import RECIPES, recipe_from_name


def main(arguments: list[str]) -> int:
    """List the recipes; or print one as JSON, and what is known of it on stderr."""
    if arguments and not arguments[0].startswith("-"):
        recipe = recipe_from_name(arguments[0])
        sys.stderr.write(f"{inspect.getdoc(RECIPES[arguments[0]])}\n".replace("``", ""))
        sys.stdout.write(json.dumps(recipe.to_dict(), indent=2) + "\n")
        return 0
    for name, make in RECIPES.items():
        summary = (make.__doc__ or "").strip().splitlines()[0].replace("``", "")
        sys.stdout.write(f"{name:{max(map(len, RECIPES))}}  {summary}\n")
    sys.stdout.write("\nimmiscible recipes NAME says more of one, and prints it whole as JSON.\n")
    return 0
