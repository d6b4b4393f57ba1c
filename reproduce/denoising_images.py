"""The strips of a comparison's first seed below each other, as in docs/images/denoising.png.

    python -m reproduce.denoising_images runs/compare/digits-ddim image.png \
        --coupling independent --coupling assignment --coupling knn:k=4

A row for each coupling: of two images what the network saw, and the image it predicted, from
noise (left) to image (right). The strips are those of the comparison's report.
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw

import immiscible_diffusion.recipes  # noqa: F401 (tasks and networks that a run may name)
from immiscible_diffusion.data import load_images
from immiscible_diffusion.experiments.compare.plan import Plan, Trial
from immiscible_diffusion.experiments.compare.trajectories import IMAGES, draw_trajectory
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.utils.atomic_files import read_json

SHOWN, SCALE, LABEL, GAP = 2, 5, 180, 12


def strips(folder: Path, couplings: list[str]) -> list[tuple[str, Image.Image]]:
    """Of each coupling the first ``SHOWN`` images of its strip, enlarged."""
    values = read_json(folder / "plan.json")
    recipe, seeds = Recipe.from_dict(values["recipe"]), tuple(values["seeds"])
    plan = Plan(folder, recipe, tuple(values["couplings"]), seeds)
    dataset, found = load_images(recipe.task.data), []
    for name in couplings:
        if name not in plan.couplings:
            raise SystemExit(f"{folder} has {', '.join(plan.couplings)}, not {name}")
        path = draw_trajectory(plan, Trial(name, seeds[0]), dataset)
        if path is None:
            raise SystemExit(f"{name} is not trained to the end in {folder}")
        with Image.open(path) as strip:
            height = (strip.height + 1) * SHOWN // IMAGES - 1
            shown = strip.crop((0, 0, strip.width, height))
        size = (shown.width * SCALE, shown.height * SCALE)
        found.append((name, shown.resize(size, Image.Resampling.NEAREST)))
    return found


def below_each_other(rows: list[tuple[str, Image.Image]]) -> Image.Image:
    """One image with a name beside each."""
    width = LABEL + max(image.width for _, image in rows)
    sheet = Image.new(rows[0][1].mode, (width, sum(image.height + GAP for _, image in rows)), "white")
    pen, top = ImageDraw.Draw(sheet), 0
    for name, image in rows:
        pen.text((6, top + image.height // 2 - 6), name, fill="black", font_size=13)
        sheet.paste(image, (LABEL, top))
        top += image.height + GAP
    return sheet


def main() -> None:
    """Write the image."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--coupling", action="append", required=True)
    options = parser.parse_args()
    below_each_other(strips(options.folder, options.coupling)).save(options.out, optimize=True)


if __name__ == "__main__":
    main()
