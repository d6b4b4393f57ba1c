"""One trial of a comparison: a training, evaluated at the steps of the plan."""

import warnings
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import nn

from immiscible_diffusion.couplings import Moments, NoiseDistribution, SemidiscretePlan, parse_coupling
from immiscible_diffusion.couplings.semidiscrete_plan import UNFITTED, plan_of
from immiscible_diffusion.diffusion.pipeline import SamplingPipeline
from immiscible_diffusion.evaluation.evaluator import Evaluator
from immiscible_diffusion.experiments.compare.excess_loss import Probes, keep_losses, losses_by_level
from immiscible_diffusion.experiments.compare.plan import Plan, Trial
from immiscible_diffusion.training.builders import build_coupling
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.training.task import Task
from immiscible_diffusion.training.trainer import Trainer
from immiscible_diffusion.utils.atomic_files import read_record, write_record
from immiscible_diffusion.utils.device import pick_device
from immiscible_diffusion.utils.folder_lock import folder_lock
from immiscible_diffusion.utils.serialization import from_dict

SAMPLES_TRIED = 64


class Finished(NamedTuple):
    """finished.json."""

    steps: int
    evaluations: int = 0


@dataclass
class TrialRunner:
    """Runs trials of a plan; data and evaluator are loaded once for all trials of a process."""

    plan: Plan
    device: str = "auto"
    quiet: bool = True
    trainer: type[Trainer] = Trainer

    @cached_property
    def task(self) -> Task:
        """The task of the recipe, on the device that trains."""
        return self.plan.recipe.task.build(self.plan.recipe, pick_device(self.device))

    @cached_property
    def evaluator(self) -> Evaluator:
        """What scores the models of all trials."""
        evaluator: Evaluator = self.task.evaluator()
        return evaluator

    def __call__(self, trial: Trial) -> None:
        """Train ``trial`` from where it stands to the end; Interrupted on a signal, after writing a checkpoint."""
        if is_finished(self.plan, trial) or is_carried(self.plan, trial):
            return
        recipe = self.plan.trial_recipe(trial)
        run_dir = RunDir.open(self.plan.trial_dir(trial), recipe)
        trainer = self.trainer(recipe, run_dir, device=self.device, dataset=self.task.dataset)
        outputs = [(run_dir, trainer.pipeline)]
        with ExitStack() as held:
            if (companion := matched_trial(self.plan, trial)) is not None:
                matched = self.plan.trial_recipe(companion)
                beside = RunDir.open(self.plan.trial_dir(companion), matched)
                held.enter_context(folder_lock(beside.root))
                beside.begin(matched, trainer.device)
                outputs.append((beside, trainer.run.with_sampler(matched.sampler).pipeline()))
            probes: list[Probes] = []

            def evaluate(step: int, model: nn.Module) -> None:
                if recipe.task.diffuses_data_set:
                    if not probes:  # not before, as the run's moments count once it has begun
                        coupling = build_coupling(recipe, trainer.task, run_dir, torch.device("cpu"))
                        probes.append(Probes.draw(recipe, self.task.dataset, coupling))
                    keep_losses(run_dir, step, losses_by_level(recipe, model.eval(), probes[0], trainer.device))
                for where, pipeline in outputs:
                    if where is not run_dir:  # the run drops records of an earlier attempt itself
                        where.truncate_log_after(step - 1)
                    evaluate_model(self.evaluator, pipeline, model, recipe, where, step)

            trainer.train(evaluate=evaluate, evaluate_at=self.plan.eval_steps, quiet=self.quiet)
            for where, _ in reversed(outputs):  # the matched one alone would train all over again
                done = {"steps": recipe.steps, "evaluations": len(where.records("quality"))}
                write_record(where.root / "finished.json", done)

    def try_couplings(self) -> None:
        """Call every coupling once; ValueError names one that fails, before hours are spent."""
        rows = self.task.dataset.common_rows()[:SAMPLES_TRIED]
        batch = self.task.encode(self.task.dataset.batch(rows))
        data, labels = batch.data, (batch.cond or {}).get("label")
        moments = partial(Moments.fit, data if labels is None else [(data, labels)])
        if batch.index is not None:
            batch = replace(batch, index=torch.arange(len(batch), device=data.device))

        def plan(within: bool, **options: Any) -> SemidiscretePlan:
            return plan_of(data, labels, moments(), within, **(options | UNFITTED))

        for name in {trial.unmatched.coupling: None for trial in self.plan.trials}:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of a pool, which is the trainer's to give
                    standard = lambda _: NoiseDistribution.standard(moments())  # noqa: E731
                    coupling = parse_coupling(name, moments, standard, plan, epoch=1, allow_import=True)
                    coupling(data, cond=batch.pairing_cond, mask=batch.mask, generator=torch.Generator(data.device))
            except Exception as error:
                raise ValueError(f"coupling '{name}' fails on the data: {error}") from error


def evaluate_model(
    evaluator: Evaluator, pipeline: SamplingPipeline, model: nn.Module, recipe: Recipe, run_dir: RunDir, step: int
) -> None:
    """Record scores at every number of sampling steps, with a grid of the first images."""
    headline = headline_steps(recipe)
    for steps in recipe.task.eval.sampling_steps:
        with_steps = pipeline.with_steps(steps)
        final, is_headline = step == recipe.steps, steps == headline
        result = evaluator(
            with_steps, model, seed=recipe.seed, step=step, final=final, headline=is_headline, run_dir=run_dir
        )
        run_dir.log("quality", step, sampling_steps=steps, **result.scores)
        if result.images is not None:
            run_dir.save_grid(result.images, f"{with_steps.sampler.method}{steps}_step_{step:06d}", columns=8)


def headline_steps(recipe: Recipe) -> int:
    """The sampling steps of the recipe's own sampler, or the nearest to them (by ratio)."""
    own = recipe.sampler.steps
    return min(recipe.task.eval.sampling_steps, key=lambda n: max(n, own) / min(n, own))


def is_finished(plan: Plan, trial: Trial) -> bool:
    """Whether ``trial`` was trained to the end of the plan."""
    path = plan.trial_dir(trial) / "finished.json"
    if not path.exists():
        return False
    done: Finished = from_dict(Finished, read_record(path), str(path))
    return done.steps >= plan.recipe.steps


def evaluations(plan: Plan, trial: Trial) -> list[dict[str, Any]]:
    """What the log of ``trial`` says of its samples; ValueError if a finished trial lost some of it."""
    run, path = RunDir(plan.trial_dir(trial)), plan.trial_dir(trial) / "finished.json"
    records = run.records("quality")
    if path.exists() and len(records) < from_dict(Finished, read_record(path), str(path)).evaluations:
        raise ValueError(f"{run.metrics} was cut short: evaluations of a finished training are missing")
    return records


def trained_run(plan: Plan, trial: Trial) -> RunDir:
    """The run folder of the training: another trial's, where that was evaluated along with it."""
    run = RunDir(plan.trial_dir(trial))
    carried = trial.is_matched and not run.records("train")
    return RunDir(plan.trial_dir(trial.unmatched)) if carried else run


def variant_records(plan: Plan, trial: Trial) -> list[dict[str, Any]]:
    """What the run folder of ``trial`` says of other options of the sampler with its last weights."""
    records = RunDir(plan.trial_dir(trial)).records("variant")
    return [record for record in records if record["step"] == plan.recipe.steps]


def matched_trial(plan: Plan, trial: Trial) -> Trial | None:
    """The matched trial that is evaluated along with the training of ``trial``, if there is one.

    One that came into the plan when this training was under way already trains by itself.
    """
    matched = plan.matched_trial(trial)
    if matched is None or is_finished(plan, matched):
        return None
    begun, beside = (RunDir(plan.trial_dir(t)).has_begun for t in (trial, matched))
    return matched if beside or not begun else None


def is_carried(plan: Plan, trial: Trial) -> bool:
    """Whether ``trial`` is evaluated along with the training of another that is not finished."""
    other = trial.unmatched
    if not trial.is_matched or other not in plan.trials or is_finished(plan, other):
        return False
    return matched_trial(plan, other) == trial
