"""Other options of the sampler with the weights of finished trials: controls and a sweep of guidance, no training."""

import dataclasses
import math
import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

from immiscible_diffusion.couplings.empty_axes import MAX_DIM
from immiscible_diffusion.diffusion.pipeline import SamplingPipeline
from immiscible_diffusion.diffusion.samplers import METHODS, start_noise
from immiscible_diffusion.evaluation.images import ImageEvaluator
from immiscible_diffusion.evaluation.load_run import load_run
from immiscible_diffusion.experiments.compare.plan import BASELINE, Plan, Trial
from immiscible_diffusion.experiments.compare.trial import TrialRunner, trained_run, variant_records
from immiscible_diffusion.experiments.compare.workers import Bar, run_in_workers
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.utils.folder_lock import folder_lock

SHIFTS = (0.5, 0.67, 1.5, 2.0, 3.0)
STARTS = (*(("init_scale", value) for value in (0.95, 0.97, 0.985)), *(("prune", value) for value in (2.0, 2.7)))
LEAST_ACCEPTED = 0.01  # share of pruned starts; fewer take too long to draw
Variant = tuple[str, float, int]
"""An option of the sampler, its value and the sampling steps."""


@dataclass(frozen=True)
class Sweep:
    """What to evaluate: ``controls``, and weights of guidance.

    Controls are shifted times, for every coupling, and other starts, for the baseline: what is gained so is not due to
    pairing.
    """

    controls: bool = False
    guidances: tuple[float, ...] = ()
    starts: tuple[tuple[str, float], ...] = STARTS

    def check(self, runner: TrialRunner) -> "Sweep":
        """Return what of it can be evaluated of the recipe; ValueError if it means nothing there."""
        recipe = runner.plan.recipe
        if not (self.controls or self.guidances):
            return self
        if not isinstance(runner.evaluator, ImageEvaluator):
            raise ValueError(
                f"controls and guidances compare Frechet distances of images, and {recipe.name} is not scored by "
                f"them; leave them out"
            )
        if self.controls and recipe.sampler.method == "consistency":
            raise ValueError(
                f"controls are other starts and times of a path from noise to data, and {recipe.name} has a "
                f"consistency model, which jumps; leave controls out"
            )
        if self.guidances and not (recipe.cond_drop_prob or recipe.task.knows_unconditional):
            raise ValueError(
                f"guidances need a network that was trained without conditions as well, and {recipe.name} has "
                f"cond_drop_prob 0; leave them out, or train another comparison with cond_drop_prob 0.1"
            )
        values, cause = math.prod(runner.task.shape), ""
        if values > MAX_DIM:
            cause = f"a sample has {values} values, and it takes {MAX_DIM} at most"
        elif recipe.sampler.init_noise == "matched":
            cause = "it rejects noise of N(0, I), and init_noise is matched"
        if not self.controls or not cause:
            return self
        warnings.warn(f"the pruned start is left out: {cause}", stacklevel=2)
        return dataclasses.replace(self, starts=tuple(start for start in self.starts if start[0] != "prune"))

    def settings(self, plan: Plan, trial: Trial) -> list[Variant]:
        """What is to be evaluated of a trial."""
        options = [("guidance", weight) for weight in self.guidances]
        if self.controls and plan.recipe.sampler.with_steps(1).method in METHODS:
            options += [("shift", shift) for shift in SHIFTS]
        if self.controls and trial.coupling == BASELINE:
            options += self.starts
        return [(name, value, steps) for name, value in options for steps in plan.recipe.task.eval.sampling_steps]

    def missing(self, plan: Plan, trial: Trial) -> list[Variant]:
        """What is not evaluated yet of it."""
        names = ("option", "setting", "sampling_steps")
        known = {tuple(record[name] for name in names) for record in variant_records(plan, trial)}
        return [setting for setting in self.settings(plan, trial) if setting not in known]


@dataclass
class SweepRunner:
    """Evaluates what is missing of finished trials and keeps it in their run folders, one by one."""

    runner: TrialRunner  # has the data and the evaluator
    sweep: Sweep

    def __call__(self, trial: Trial) -> None:
        """Evaluate ``trial``."""
        with folder_lock(self.runner.plan.trial_dir(trial)):
            self._evaluate(trial)

    def _evaluate(self, trial: Trial) -> None:
        plan = self.runner.plan
        if not (missing := self.sweep.missing(plan, trial)):
            return
        log = RunDir(plan.trial_dir(trial))
        log.truncate_log_after(plan.recipe.steps)  # and a line that a killed process left unfinished
        dataset, recipe = self.runner.task.dataset, plan.trial_recipe(trial)
        run = load_run(trained_run(plan, trial), self.runner.device, dataset, allow_code=recipe.coupling)
        for option, value, steps in missing:
            changes: dict[str, Any] = {option: value}
            sampler = dataclasses.replace(recipe.sampler.with_steps(steps), **changes)
            pipeline = run.with_sampler(sampler).pipeline()
            values = {"option": option, "setting": value, "sampling_steps": steps}
            if option == "prune" and (share := accepted_share(pipeline)) < LEAST_ACCEPTED:
                note = f"prune {value:g} accepts {share:.1%} of the starts, too few to draw; it is left out"
                warnings.warn(f"{trial}: {note}", stacklevel=2)
                log.log("variant", run.step, **values, frechet=None, note=note)
                continue
            scores = self.runner.evaluator(
                pipeline, run.model, seed=trial.seed, step=run.step, final=False, headline=False
            ).scores
            log.log("variant", run.step, **values, frechet=scores["frechet"], pixels=scores.get("pixels"))


def accepted_share(pipeline: SamplingPipeline) -> float:
    """Share of 1000 starts that the sampler's ``prune`` accepts."""
    assert pipeline.pruning is not None
    assert pipeline.sampler.prune is not None
    noise = start_noise(0, range(1000), pipeline.shape, pipeline.device)
    return float(pipeline.pruning.accepts(noise, pipeline.sampler.prune).float().mean())


def run_sweep(plan: Plan, sweep: Sweep, *, device: str, workers: int) -> None:
    """Evaluate what is missing in ``workers`` processes, showing progress; errors as of ``run_trials``."""
    open_trials = [trial for trial in plan.trials if sweep.missing(plan, trial)]
    total = sum(len(sweep.settings(plan, trial)) for trial in plan.trials)

    def done() -> int:
        return total - sum(len(sweep.missing(plan, trial)) for trial in plan.trials)

    runner = partial(SweepRunner, TrialRunner(plan, device), sweep)
    bar = Bar(total, done, "other samplers", "score")
    run_in_workers(plan, runner, open_trials, bar, device=device, workers=workers)
