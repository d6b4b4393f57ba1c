"""Images on their way from noise to data, drawn when a training of a comparison is over."""

from pathlib import Path

from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.evaluation.load_run import load_run
from immiscible_diffusion.experiments.compare.plan import Plan, Trial
from immiscible_diffusion.experiments.compare.trial import headline_steps, is_finished
from immiscible_diffusion.training.run_dir import RunDir

IMAGES, COLUMNS = 3, 8


def draw_trajectory(plan: Plan, trial: Trial, dataset: DataSet) -> Path | None:
    """The PNG of a finished trial of the first seed, drawn if it is not there yet.

    With the headline sampling steps, or the most if that is one step. None for other trials, and
    for those that share another's weights.
    """
    folder = plan.trial_dir(trial)
    if trial.seed != plan.trials[0].seed or trial.is_matched or not is_finished(plan, trial):
        return None
    recipe = plan.trial_recipe(trial)
    steps = headline_steps(recipe)
    if steps == 1:
        steps = max(recipe.task.eval.sampling_steps)
    sampler = recipe.sampler.with_steps(steps)
    name = f"trajectory_{sampler.method}{steps}_step_{recipe.steps:06d}"
    path = folder / "samples" / f"{name}.png"
    if not path.exists():
        run = load_run(RunDir(folder), "cpu", dataset, allow_code=True).with_sampler(sampler)
        images = run.pipeline().trajectories(run.model, IMAGES, seed=recipe.seed, columns=COLUMNS)
        RunDir(folder).save_grid(images, name, columns=len(images) // (2 * IMAGES))
    return path
