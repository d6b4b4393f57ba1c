"""Images on their way from noise to data, drawn once a training of a comparison is over."""

from pathlib import Path

from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.evaluation.load_run import LoadedRun
from immiscible_diffusion.experiments.compare.plan import Plan, Trial
from immiscible_diffusion.experiments.compare.trial import headline_steps, is_finished, with_steps
from immiscible_diffusion.training.run_dir import RunDir

IMAGES, COLUMNS = 3, 8


def strip_of(plan: Plan, cell: Trial, dataset: DataSet) -> Path | None:
    """The strip of a finished cell of the first seed, drawn if it is not there yet.

    By the sampler of the headline budget, or of the largest if that is one step. None for other
    cells, and for those that share another's weights.
    """
    folder = plan.trial_dir(cell)
    if cell.seed != plan.cells[0].seed or cell.is_matched or not is_finished(plan, cell):
        return None
    recipe = plan.trial_recipe(cell)
    budget = headline_steps(recipe)
    if budget == 1:
        budget = max(recipe.evaluation.sampling_steps)
    sampler = with_steps(recipe.sampler, budget)
    name = f"strip_{sampler.method}{budget}_step_{recipe.steps:06d}"
    path = folder / "samples" / f"{name}.png"
    if not path.exists():
        trained = LoadedRun.load(RunDir(folder), "cpu", dataset)
        generator = trained.generator(sampler)
        pictures = generator.strip(
            trained.model, IMAGES, seed=recipe.seed, sampler=sampler, columns=COLUMNS
        )
        RunDir(folder).save_grid(pictures, name, columns=len(pictures) // (2 * IMAGES))
    return path
