"""Images on their way from noise to data, drawn when a training of a comparison is over."""

from pathlib import Path

from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.evaluation.load_run import load_run
from immiscible_diffusion.experiments.compare.plan import Plan, Trial
from immiscible_diffusion.experiments.compare.trial import headline_steps, is_finished
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.utils.png import is_whole_png

IMAGES, COLUMNS = 3, 8


def draw_trajectory(plan: Plan, trial: Trial, dataset: DataSet) -> Path | None:
    """The PNG of a finished trial of the first seed, drawn if it is not there yet; None for other trials.

    With the headline sampling steps, or the most if that is one step. Trials that share another's weights have none.
    """
    folder = plan.trial_dir(trial)
    if trial.seed != plan.trials[0].seed or trial.is_matched or not is_finished(plan, trial):
        return None
    recipe = plan.trial_recipe(trial)
    steps = headline_steps(recipe)
    sampler = recipe.sampler.with_steps(steps if steps > 1 else max(recipe.task.eval.sampling_steps))
    name = f"trajectory_{sampler.method}{sampler.steps}_step_{recipe.steps:06d}"
    path = folder / "samples" / f"{name}.png"
    if not (path.exists() and is_whole_png(path.read_bytes())):
        run = load_run(RunDir(folder), "cpu", dataset, allow_code=recipe.coupling).with_sampler(sampler)
        images = run.pipeline().trajectories(run.model, IMAGES, seed=recipe.seed, columns=COLUMNS)
        RunDir(folder).save_grid(images, name, columns=len(images) // (2 * IMAGES))
    return path
