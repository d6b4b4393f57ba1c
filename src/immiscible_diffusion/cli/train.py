"""``immiscible train RECIPE``."""

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from immiscible_diffusion.cli.options import (
    Device,
    RecipeOptions,
    WholeRecipe,
    named_recipe,
    parse,
    run_path,
    take_name,
)
from immiscible_diffusion.couplings import check_coupling_name
from immiscible_diffusion.experiments.compare.plan import slug
from immiscible_diffusion.recipes.flow_matching import digits_flow
from immiscible_diffusion.training.dry_run import dry_run
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.run_dir import RunDir, hardware
from immiscible_diffusion.training.trainer import Trainer
from immiscible_diffusion.utils.checks import PositiveInt


@dataclass(frozen=True)
class Options:
    """Train a recipe. The same command resumes; with --tiny it shrinks to a smoke run of seconds.

    --model.kind NAME, --path.kind NAME and --loss.kind NAME take another network (MLP, UNet, DiT, UNet1D), path
    (FlowMatchingPath, VPPath, EDMPath) or loss (RegressionLoss, ConsistencyLoss), whose options are then listed here.

    Args:
        out: run folder; by default runs/RECIPE/COUPLING-seedN.
        device: where to train.
        resume_from_checkpoint: go back to this step, whose checkpoint was kept (--checkpoints_total_limit); what came
            after it is removed. By default the last.
        dry_run: only print the recipe, what is missing, and what a run would take.
        recipe: any field of the recipe.
    """

    out: Path | None = None
    device: Device = "auto"
    resume_from_checkpoint: PositiveInt | None = None
    dry_run: bool = False
    recipe: WholeRecipe = field(default_factory=lambda: RecipeOptions.of(digits_flow()))


def main(arguments: list[str]) -> int:
    """Train, or say what training would take."""
    name, rest = take_name(arguments, "train")
    recipe, rest = named_recipe(name, rest)
    options = parse(Options, rest, f"train {name}", Options(recipe=RecipeOptions.of(recipe)))
    recipe = options.recipe.recipe()
    out = run_path(options.out, recipe.name, default_folder(recipe))
    if options.dry_run:
        return 2 if dry_run(recipe, options.device, partial(print, flush=True)) is None else 0
    check_coupling_name(recipe.coupling, allow_import=True)  # before the data are loaded
    run = RunDir.open(out, recipe)
    trainer = Trainer(recipe, run, device=options.device)
    if trainer.is_main:
        number = trainer.accelerator.num_processes
        used = hardware(trainer.device, number)
        sys.stderr.write(f"{recipe.name}: {number} process{'es' * (number > 1)} on {used}\n")
    trainer.train(resume_from=options.resume_from_checkpoint)
    if trainer.is_main:
        if trainer.step > recipe.steps:
            sys.stderr.write(f"{out} was trained for longer than the {recipe.steps} steps that are asked for\n")
        next_step = recipe.task.next_step.format(run=out)
        sys.stderr.write(f"{out}: {trainer.step} steps; {next_step}\n")
    return 0


def default_folder(recipe: Recipe) -> str:
    """A folder name of its own for every coupling and seed."""
    return f"{slug(recipe.coupling)}-seed{recipe.seed}"
