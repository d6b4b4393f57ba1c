"""From the run folders of a comparison to its report, whatever is there so far."""

import dataclasses
from datetime import date
from pathlib import Path
from typing import Any

from immiscible_diffusion.applications.pusht.compare import all_rollouts, draw_film, policy_entries
from immiscible_diffusion.applications.pusht.evaluator import PolicyEvaluator
from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.experiments.compare.excess import excess_of, excess_points
from immiscible_diffusion.experiments.compare.plan import BASELINE, Plan, Trial
from immiscible_diffusion.experiments.compare.trajectories import strip_of
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
    Excess,
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

QUALITY_FIELDS = set(SampleMetrics.__dataclass_fields__)


def report(plan: Plan, command: str, *, irreducible: bool = True) -> tuple[Path, list[str]]:
    """Write results and page into the plan's folder; the page's path and its sentences.

    Args:
        plan: what is compared.
        command: that made it.
        irreducible: compute the irreducible losses too, for the excess loss.

    Raises:
        ValueError: no cell has been judged yet.
    """
    comparison = gather(plan, command, irreducible=irreducible)
    page = write_report(comparison, plan.folder)
    return page, [summary(comparison), *(finding.text for finding in findings(comparison))]


def gather(plan: Plan, command: str, *, irreducible: bool = True) -> Comparison:
    """The record of a comparison; unfinished cells come with what they have."""
    begun = [cell for cell in plan.cells if plan.trial_dir(cell).exists()]
    if not any(RunDir(plan.trial_dir(cell)).records("quality") for cell in begun):
        raise ValueError(f"nothing has been judged yet in {plan.folder}; run some cells first")
    runner, recipe = TrialRunner(plan), plan.recipe
    dataset, policy = runner.dataset, recipe.is_policy
    excess = excess_of(plan, dataset) if irreducible and recipe.in_pixels else None
    hardware, versions = trained_on(plan)
    comparison = Comparison(
        recipe=recipe.name,
        command=command,
        note=dataset.note,
        hardware=hardware,
        date=date.today().isoformat(),
        versions=versions,
        dataset=Dataset(dataset.name, len(dataset)),
        **(of_policies(runner) if policy else of_images(runner)),
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
        cells=tuple(cell_record(plan, cell, dataset, excess) for cell in begun),
        excess=excess,
    )
    return with_rollouts(plan, comparison) if policy else comparison


def sampling_of(recipe: Recipe) -> str:
    """What stands beside every figure on how samples were made."""
    sampler = recipe.sampler
    clip = "" if sampler.clip is None else f", clipped at {sampler.clip:g}"
    guidance = "" if sampler.guidance == 1 else f", guidance {sampler.guidance:g}"
    average = recipe.optim.averaging
    return f"steps {sampler.selection}{clip}{guidance}; average of the weights {average}"


def of_images(runner: TrialRunner) -> dict[str, Any]:
    """How a comparison of images was judged."""
    judge = runner.judge
    return {
        "features": judge.extractor.name,
        "accuracy": getattr(judge.extractor, "accuracy", None),
        "samples": runner.plan.recipe.of_images.samples,
        "real_samples": judge.reference.statistics.count,
        "floor": judge.floor(runner.plan.recipe.of_images.samples),
    }


def of_policies(runner: TrialRunner) -> dict[str, Any]:
    """How a comparison of policies was judged."""
    judge = PolicyEvaluator.of(runner.plan.recipe, runner.dataset)
    return {
        "features": "actions",
        "accuracy": None,
        "samples": len(judge.probes),
        "real_samples": len(judge.held_out),
        "floor": None,
        "measure": "action error",
    }


def with_rollouts(plan: Plan, comparison: Comparison) -> Comparison:
    """``comparison`` with what the policies did in the simulator, if they were there."""
    done = all_rollouts(plan)
    film = draw_film(plan, done)
    name = None if film is None else film.relative_to(plan.folder).as_posix()
    return dataclasses.replace(comparison, policies=policy_entries(plan, done), film=name)


def trained_on(plan: Plan) -> tuple[str, dict[str, str]]:
    """Hardware and versions that the cells were trained with, which need not be those here."""
    files = [plan.trial_dir(cell) / "environment.json" for cell in plan.cells]
    seen = [read_json(file) for file in files if file.exists()]
    names = dict.fromkeys(name for record in seen for name in record["versions"])
    versions = {
        name: " / ".join(sorted({record["versions"].get(name, "unknown") for record in seen}))
        for name in names
    }
    return "; ".join(sorted({record["hardware"] for record in seen})), versions


def cell_record(
    plan: Plan, cell: Trial, dataset: DataSet, excess: Excess | None = None
) -> TrialRecord:
    """What a cell's run folder holds."""
    known = [] if excess is None else [e.coupling for e in excess.couplings if not e.skipped]
    coupling = cell.unmatched.coupling
    folder = plan.trial_dir(cell)
    run, trained = RunDir(folder), RunDir(folder)
    if cell.is_matched and not run.records("train"):  # judged along with that training
        trained = RunDir(plan.trial_dir(cell.unmatched))
    training = trained.records("train")
    budget = headline_steps(plan.recipe)
    method = with_steps(plan.recipe.sampler, budget).method
    grids = {
        str(step): path.relative_to(plan.folder).as_posix()
        for step in plan.eval_steps
        if (path := folder / "samples" / f"{method}{budget}_step_{step:06d}.png").exists()
    }
    strip = None if plan.recipe.is_policy else strip_of(plan, cell, dataset)
    return TrialRecord(
        coupling=cell.coupling,
        seed=cell.seed,
        quality=tuple(quality_record(record) for record in run.records("quality")),
        seconds_per_step=mean_of(training, "seconds_per_step"),
        pairing_share=mean_of(training, "pairing_share"),
        pairing_ms=mean_of(training, "pairing_ms"),
        validation=losses(trained.records("validation")),
        training=losses(training),
        grids=grids,
        strip=None if strip is None else strip.relative_to(plan.folder).as_posix(),
        finished=is_finished(plan, cell),
        excess=excess_points(plan, trained, coupling) if coupling in known else (),
    )


def quality_record(record: dict[str, Any]) -> SampleMetrics:
    """A line of metrics.jsonl as the report wants it."""
    return SampleMetrics(
        **{name: value for name, value in record.items() if name in QUALITY_FIELDS}
    )


def losses(records: list[dict[str, Any]]) -> tuple[LossPoint, ...]:
    """Steps and losses."""
    return tuple(LossPoint(record["step"], record["loss"]) for record in records)


def mean_of(records: list[dict[str, Any]], name: str) -> float | None:
    """Mean of a field after the first record, which has the warm-up of the machine in it."""
    values = [record[name] for record in records[1:] or records]
    return sum(values) / len(values) if values else None
