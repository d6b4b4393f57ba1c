"""From the run folders of a comparison to its report, whatever is there so far."""

from datetime import date
from pathlib import Path
from typing import Any

from immiscible_diffusion.couplings.registry import parse_without_data
from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.data.in_memory import join_notes
from immiscible_diffusion.experiments.compare.excess_loss import OptimalLosses, excess_points, measure_excess
from immiscible_diffusion.experiments.compare.plan import BASELINE, MATCHED, SMOKE_RUN, TINY, Plan, Trial
from immiscible_diffusion.experiments.compare.trajectories import draw_trajectory
from immiscible_diffusion.experiments.compare.trial import (
    TrialRunner,
    evaluations,
    headline_steps,
    is_finished,
    trained_run,
    variant_records,
)
from immiscible_diffusion.reporting.compare import Comparison, write_report
from immiscible_diffusion.reporting.compare.records import (
    CouplingEntry,
    Dataset,
    LossPoint,
    SampleMetrics,
    SamplerVariant,
)
from immiscible_diffusion.reporting.compare.records import Trial as TrialRecord
from immiscible_diffusion.reporting.compare.speedup import speedups
from immiscible_diffusion.reporting.compare.summary import sentences
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.utils.serialization import from_dict


def report(plan: Plan, command: str, *, irreducible: bool = True) -> tuple[Path, list[str]]:
    """Write results and page into the plan's folder; the page's path and its sentences.

    ``irreducible`` computes the irreducible losses too, for the excess loss. ValueError: see ``collect``.
    """
    comparison = collect(plan, command, irreducible=irreducible)
    results = speedups(comparison)
    lines = sentences(comparison, results)
    if plan.recipe.name.endswith(TINY):
        lines = [f"{SMOKE_RUN.capitalize()}.", *lines]
    return write_report(comparison, plan.folder, results), lines


def collect(plan: Plan, command: str, *, irreducible: bool = True, runner: TrialRunner | None = None) -> Comparison:
    """The record of a comparison; unfinished trials come with what they have, ValueError if nothing is evaluated.

    ``runner`` has the data and the evaluator, if they are loaded already.
    """
    begun = [trial for trial in plan.trials if plan.trial_dir(trial).exists()]
    if not any(RunDir(plan.trial_dir(trial)).records("quality") for trial in begun):
        raise ValueError(f"nothing has been evaluated yet in {plan.folder}; run some trials first")
    runner, recipe = runner or TrialRunner(plan), plan.recipe
    task, dataset = runner.task, runner.task.dataset
    measured = irreducible and recipe.task.diffuses_data_set
    excess, optimal = measure_excess(plan, task) if measured else (None, {})
    trials = [trial_record(plan, trial, dataset, optimal.get(trial.unmatched)) for trial in begun]
    hardware, versions = trained_on(plan)
    sampler = recipe.sampler
    clip = "" if sampler.clip is None else f", clipped at {sampler.clip:g}"
    guidance = "" if sampler.guidance == 1 else f", guidance {sampler.guidance:g}"
    runs = {name: {seed: RunDir(plan.trial_dir(Trial(name, seed))) for seed in plan.seeds} for name in plan.couplings}
    return Comparison(
        recipe=recipe.name,
        command=command,
        note=join_notes(dataset.note, SMOKE_RUN if recipe.name.endswith(TINY) else ""),
        hardware=hardware,
        date=date.today().isoformat(),
        versions=versions,
        dataset=Dataset(dataset.name, len(dataset)),
        **runner.evaluator.summary(runs, plan.folder, recipe.steps),
        sampling_steps=recipe.task.eval.sampling_steps,
        headline_steps=headline_steps(recipe),
        sampler=sampler.with_steps(1).method,
        sampling=f"steps {sampler.selection}{clip}{guidance}; EMA of the weights {recipe.ema}",
        eval_steps=plan.eval_steps,
        batch_size=recipe.batch_size,
        total_steps=recipe.steps,
        parameters=sum(p.numel() for p in task.build_model().parameters()),
        couplings=tuple(coupling_entry(plan, name) for name in plan.couplings),
        trials=tuple(trials),
        excess=excess,
        variants=tuple(variant for trial in begun for variant in variants(plan, trial)),
    )


def coupling_entry(plan: Plan, name: str) -> CouplingEntry:
    """What the record says of a coupling itself."""
    exact = parse_without_data(name.removeprefix(MATCHED), allow_import=True).preserves_marginal
    return CouplingEntry(name, name, plan.control_of(name), name == BASELINE, exact)


def trained_on(plan: Plan) -> tuple[str, dict[str, str]]:
    """Hardware and versions that the trials were trained with, which need not be those here."""
    records = [start for trial in plan.trials for start in RunDir(plan.trial_dir(trial)).starts()]
    names = dict.fromkeys(name for record in records for name in record["versions"])
    versions = {n: " / ".join(sorted({record["versions"].get(n, "unknown") for record in records})) for n in names}
    return "; ".join(sorted({record["hardware"] for record in records})), versions


def trial_record(plan: Plan, trial: Trial, dataset: DataSet, optimal: OptimalLosses | None) -> TrialRecord:
    """The record of what a trial's run folder holds."""
    run, trained = RunDir(plan.trial_dir(trial)), trained_run(plan, trial)
    training = trained.records("train")
    steps = headline_steps(plan.recipe)
    method = plan.recipe.sampler.with_steps(steps).method
    grids = {
        str(step): path.relative_to(plan.folder).as_posix()
        for step in plan.eval_steps
        if (path := run.root / "samples" / f"{method}{steps}_step_{step:06d}.png").exists()
    }
    trajectory = draw_trajectory(plan, trial, dataset) if plan.recipe.task.makes_images else None
    return TrialRecord(
        coupling=trial.coupling,
        seed=trial.seed,
        metrics=tuple(_record(SampleMetrics, record, run) for record in evaluations(plan, trial)),
        seconds_per_step=mean_of(training, "seconds_per_step"),
        pairing_share=mean_of(training, "pairing_share"),
        pairing_ms=mean_of(training, "pairing_ms"),
        validation=tuple(_record(LossPoint, record, trained) for record in trained.records("validation")),
        training=tuple(_record(LossPoint, record, trained) for record in training),
        grids=grids,
        trajectory=None if trajectory is None else trajectory.relative_to(plan.folder).as_posix(),
        finished=is_finished(plan, trial),
        excess=excess_points(trained, optimal) if optimal else (),
    )


def variants(plan: Plan, trial: Trial) -> list[SamplerVariant]:
    """What was evaluated of a trial with other options of the sampler."""
    run, named = RunDir(plan.trial_dir(trial)), {"coupling": trial.coupling, "seed": trial.seed}
    records = [record for record in variant_records(plan, trial) if record.get("frechet") is not None]
    return [_record(SamplerVariant, record | named, run) for record in records]


def _record(kind: Any, values: dict[str, Any], run: RunDir) -> Any:
    """Read the fields of ``kind`` from a line of a run's log; ValueError if it is of another form."""
    names = kind.__dataclass_fields__
    return from_dict(kind, {k: v for k, v in values.items() if k in names}, f"{run.metrics}: {kind.__name__}")


def mean_of(records: list[dict[str, Any]], name: str) -> float | None:
    """Mean of a field after the first record, in which the machine warms up."""
    values: list[float] = [from_dict(float, record.get(name), name) for record in records[1:] or records]
    return sum(values) / len(values) if values else None
