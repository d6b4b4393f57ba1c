"""From the run folders of a comparison to its report, whatever is there so far."""

import dataclasses
from datetime import date
from pathlib import Path
from typing import Any

from immiscible_diffusion.applications.pusht.compare import all_rollouts, draw_film, policy_entries
from immiscible_diffusion.applications.pusht.evaluator import PolicyEvaluator
from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.experiments.compare.excess_loss import excess_points, measure_excess
from immiscible_diffusion.experiments.compare.plan import BASELINE, Plan, Trial
from immiscible_diffusion.experiments.compare.trajectories import draw_trajectory
from immiscible_diffusion.experiments.compare.trial import (
    TrialRunner,
    headline_steps,
    is_finished,
    with_steps,
)
from immiscible_diffusion.reporting.compare import (
    Comparison,
    CouplingEntry,
    Dataset,
    ExcessPoint,
    Floor,
    LossPoint,
    SampleMetrics,
    findings,
    summary,
    write_report,
)
from immiscible_diffusion.reporting.compare import Trial as TrialRecord
from immiscible_diffusion.training.builders import make_model
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.utils.atomic_files import read_json


def report(plan: Plan, command: str, *, irreducible: bool = True) -> tuple[Path, list[str]]:
    """Write results and page into the plan's folder; the page's path and its sentences.

    Args:
        plan: the comparison.
        command: that made it.
        irreducible: compute the irreducible losses too, for the excess loss.

    Raises:
        ValueError: no trial has been evaluated yet.
    """
    comparison = collect(plan, command, irreducible=irreducible)
    page = write_report(comparison, plan.folder)
    return page, [summary(comparison), *(finding.text for finding in findings(comparison))]


def collect(plan: Plan, command: str, *, irreducible: bool = True) -> Comparison:
    """The record of a comparison; unfinished trials come with what they have."""
    begun = [trial for trial in plan.trials if plan.trial_dir(trial).exists()]
    if not any(RunDir(plan.trial_dir(trial)).records("quality") for trial in begun):
        raise ValueError(f"nothing has been evaluated yet in {plan.folder}; run some trials first")
    runner, recipe = TrialRunner(plan), plan.recipe
    dataset = runner.dataset
    measured = irreducible and recipe.in_pixels
    excess, optimal = measure_excess(plan, dataset) if measured else (None, {})
    trials = []
    for trial in begun:
        losses = optimal.get(trial.unmatched)
        points = excess_points(trained_run(plan, trial), losses) if losses else ()
        trials.append(trial_record(plan, trial, dataset, points))
    hardware, versions = trained_on(plan)
    comparison = Comparison(
        recipe=recipe.name,
        command=command,
        note=dataset.note,
        hardware=hardware,
        date=date.today().isoformat(),
        versions=versions,
        dataset=Dataset(dataset.name, len(dataset)),
        **(of_policies(runner) if recipe.is_policy else of_images(runner)),
        sampling_steps=recipe.evaluation.sampling_steps,
        headline_steps=headline_steps(recipe),
        sampler=with_steps(recipe.sampler, 1).method,
        sampling=sampling_of(recipe),
        eval_steps=plan.eval_steps,
        batch_size=recipe.batch_size,
        total_steps=recipe.steps,
        parameters=sum(p.numel() for p in make_model(recipe, dataset, runner.codec).parameters()),
        couplings=tuple(
            CouplingEntry(name, name, plan.control_of(name), name == BASELINE)
            for name in plan.couplings
        ),
        trials=tuple(trials),
        excess=excess,
    )
    return with_rollouts(plan, comparison) if recipe.is_policy else comparison


def sampling_of(recipe: Recipe) -> str:
    """How samples were made, which stands beside every figure."""
    sampler = recipe.sampler
    clip = "" if sampler.clip is None else f", clipped at {sampler.clip:g}"
    guidance = "" if sampler.guidance == 1 else f", guidance {sampler.guidance:g}"
    return f"steps {sampler.selection}{clip}{guidance}; EMA of the weights {recipe.optim.averaging}"


def of_images(runner: TrialRunner) -> dict[str, Any]:
    """How a comparison of images was evaluated."""
    evaluator, samples = runner.judge, runner.plan.recipe.of_images.samples
    floor = evaluator.floor(samples)
    return {
        "features": evaluator.extractor.name,
        "accuracy": getattr(evaluator.extractor, "accuracy", None),
        "samples": samples,
        "real_samples": evaluator.reference.statistics.count,
        "floor": floor and Floor(**dataclasses.asdict(floor), note=floor.note),
    }


def of_policies(runner: TrialRunner) -> dict[str, Any]:
    """How a comparison of policies was evaluated."""
    evaluator = PolicyEvaluator.of(runner.plan.recipe, runner.dataset)
    return {
        "features": "actions",
        "accuracy": None,
        "samples": len(evaluator.probes),
        "real_samples": len(evaluator.held_out),
        "floor": None,
        "metric": "action error",
    }


def with_rollouts(plan: Plan, comparison: Comparison) -> Comparison:
    """``comparison`` with the results of the simulator, if there are any."""
    rollouts = all_rollouts(plan)
    film = draw_film(plan, rollouts)
    name = None if film is None else film.relative_to(plan.folder).as_posix()
    return dataclasses.replace(comparison, policies=policy_entries(plan, rollouts), film=name)


def trained_on(plan: Plan) -> tuple[str, dict[str, str]]:
    """Hardware and versions that the trials were trained with, which need not be those here."""
    files = [plan.trial_dir(trial) / "environment.json" for trial in plan.trials]
    records = [read_json(file) for file in files if file.exists()]
    names = dict.fromkeys(name for record in records for name in record["versions"])
    versions = {
        name: " / ".join(sorted({record["versions"].get(name, "unknown") for record in records}))
        for name in names
    }
    return "; ".join(sorted({record["hardware"] for record in records})), versions


def trained_run(plan: Plan, trial: Trial) -> RunDir:
    """The run folder of the training: another trial's, where that was evaluated along with it."""
    run = RunDir(plan.trial_dir(trial))
    if trial.is_matched and not run.records("train"):
        return RunDir(plan.trial_dir(trial.unmatched))
    return run


def trial_record(
    plan: Plan, trial: Trial, dataset: DataSet, excess: tuple[ExcessPoint, ...] = ()
) -> TrialRecord:
    """The record of what a trial's run folder holds."""
    run, trained = RunDir(plan.trial_dir(trial)), trained_run(plan, trial)
    training = trained.records("train")
    steps = headline_steps(plan.recipe)
    method = with_steps(plan.recipe.sampler, steps).method
    grids = {
        str(step): path.relative_to(plan.folder).as_posix()
        for step in plan.eval_steps
        if (path := run.root / "samples" / f"{method}{steps}_step_{step:06d}.png").exists()
    }
    trajectory = None if plan.recipe.is_policy else draw_trajectory(plan, trial, dataset)
    return TrialRecord(
        coupling=trial.coupling,
        seed=trial.seed,
        metrics=tuple(metrics_record(record) for record in run.records("quality")),
        seconds_per_step=mean_of(training, "seconds_per_step"),
        pairing_share=mean_of(training, "pairing_share"),
        pairing_ms=mean_of(training, "pairing_ms"),
        validation=losses(trained.records("validation")),
        training=losses(training),
        grids=grids,
        trajectory=None if trajectory is None else trajectory.relative_to(plan.folder).as_posix(),
        finished=is_finished(plan, trial),
        excess=excess,
    )


def metrics_record(record: dict[str, Any]) -> SampleMetrics:
    """A line of metrics.jsonl as the report wants it."""
    names = SampleMetrics.__dataclass_fields__
    renamed = {"budget": "sampling_steps"}
    values = {renamed.get(name, name): value for name, value in record.items()}
    return SampleMetrics(**{name: value for name, value in values.items() if name in names})


def losses(records: list[dict[str, Any]]) -> tuple[LossPoint, ...]:
    """Steps and losses."""
    return tuple(LossPoint(record["step"], record["loss"]) for record in records)


def mean_of(records: list[dict[str, Any]], name: str) -> float | None:
    """Mean of a field after the first record, in which the machine warms up."""
    values = [record[name] for record in records[1:] or records]
    return sum(values) / len(values) if values else None
