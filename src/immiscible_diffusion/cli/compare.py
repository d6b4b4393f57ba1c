"""``immiscible compare RECIPE``."""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from immiscible_diffusion.cli.options import Device, named_recipe, run_path, split_known, take_name
from immiscible_diffusion.experiments.compare.collect import report
from immiscible_diffusion.experiments.compare.plan import BASELINE, Plan
from immiscible_diffusion.experiments.compare.trial import TrialRunner, is_carried, is_finished
from immiscible_diffusion.experiments.compare.workers import (
    default_workers,
    run_trials,
    threads_each,
)

DEFAULT_COUPLINGS = (
    BASELINE,
    "knn:k=16",
    "knn:k=16,center=mean",
    "assignment",
    "shuffled:knn:k=16,center=mean",
)


@dataclass(frozen=True)
class Options:
    """Train a recipe with several couplings and seeds at equal steps; write report.html.

    Any field of the recipe can be set as well (immiscible train RECIPE --help lists them). The same
    command resumes; couplings and seeds may be added later.

    Args:
        coupling: a coupling to compare, repeated for each: independent (the baseline, always in),
            knn:k=16, knn:k=16,center=mean (or label, channel), assignment, gaussian_ot:eps=4,
            shuffled:ANY (its control), calibrated:ANY (its noise brought back to mean 0 and
            covariance I), matched:ANY (ANY sampled from the distribution of its training noise), or
            your own as "my_module:MyCoupling(k=3)". By default five of them.
        seeds: one run of every coupling for each.
        out: folder; by default runs/compare/RECIPE.
        workers: processes; by default one a core on a CPU, one in all on an accelerator.
        device: where to train.
        list: print the trials (number, state, coupling, seed) and stop.
        trial: run this trial alone (for job arrays).
        gather: make the report from what is there and stop.
        irreducible: compute the loss that no network can go below, for the report's excess loss
            (once, in irreducible/; a set too large for it is left out, and the report says so).
    """

    coupling: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    out: Path | None = None
    workers: int | None = None
    device: Device = "auto"
    list: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    trial: int | None = None
    gather: bool = False
    irreducible: bool = True


def main(arguments: list[str]) -> int:
    """Run, list or gather a comparison."""
    name, rest = take_name(arguments, "compare")
    recipe, rest = named_recipe(name, rest)
    options, recipe = split_known(Options, recipe, rest, f"compare {name}")
    plan = Plan(
        run_path(options.out, "compare", recipe.name), recipe, couplings(options), options.seeds
    )
    plan.check()
    command = shlex.join(["immiscible", "compare", *arguments])
    if options.list:
        return list_trials(plan)
    if options.gather:
        return gather(plan, command, options.irreducible)
    if options.trial is not None:
        return run_one(plan, options)
    run_all(plan, options.device, options.workers)
    return gather(plan, command, options.irreducible)


def couplings(options: Options) -> tuple[str, ...]:
    """The couplings of the comparison, the baseline first."""
    named = options.coupling or DEFAULT_COUPLINGS
    return (BASELINE, *(coupling for coupling in named if coupling != BASELINE))


def run_all(plan: Plan, device: str, workers: int | None) -> None:
    """Make the evaluator once, so that workers find its classifier cached, then run all trials."""
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if (ranks := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise ValueError(
            f"launched as {ranks} ranks, each of which would run the whole comparison; start it "
            f"plainly, or give every job one --trial"
        )
    runner = TrialRunner(plan, device)
    runner.evaluator.check()  # fails here, once, if data, samples or simulator are missing
    runner.try_couplings()
    plan.keep()
    run_trials(plan, device=device, workers=workers or default_workers(device))


def run_one(plan: Plan, options: Options) -> int:
    """Run one trial of a job array."""
    assert options.trial is not None
    if not 0 <= options.trial < len(plan.trials):
        raise ValueError(
            f"trial must be 0 to {len(plan.trials) - 1}, got {options.trial}; see --list"
        )
    trial = plan.trials[options.trial]
    plan.keep()
    if is_carried(plan, trial):
        number = plan.trials.index(trial.unmatched)
        sys.stderr.write(
            f"trial {options.trial} ({trial}) is evaluated along with trial {number}\n"
        )
        return 0
    torch.set_num_threads(threads_each(options.device))
    TrialRunner(plan, options.device, quiet=False)(trial)
    sys.stderr.write(f"trial {options.trial} ({trial}) is finished\n")
    return 0


def list_trials(plan: Plan) -> int:
    """Print the trials."""
    for number, trial in enumerate(plan.trials):
        state = "finished" if is_finished(plan, trial) else "open"
        sys.stdout.write(f"{number:4}  {state:9} {trial}\n")
    return 0


def gather(plan: Plan, command: str, irreducible: bool) -> int:
    """Write the report of what is there and print its sentences."""
    page, sentences = report(plan, command, irreducible=irreducible)
    sys.stdout.write("\n".join([*sentences, "", f"report: {page}"]) + "\n")
    return 0
