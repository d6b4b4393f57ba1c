"""``immiscible compare RECIPE``."""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from immiscible_diffusion.cli.options import Device, Switch, named_recipe, run_path, split_known, take_name
from immiscible_diffusion.experiments.compare.collect import report
from immiscible_diffusion.experiments.compare.plan import BASELINE, Plan
from immiscible_diffusion.experiments.compare.sweep import Sweep, SweepRunner, run_sweep
from immiscible_diffusion.experiments.compare.trial import TrialRunner, is_carried, is_finished
from immiscible_diffusion.experiments.compare.workers import default_workers, run_trials, threads_each
from immiscible_diffusion.utils.checks import FiniteFloat, NonNegativeInt, PositiveInt
from immiscible_diffusion.utils.folder_lock import folder_lock

DEFAULT_COUPLINGS = ("knn:k=4", "matched:knn:k=4", "calibrated:knn:k=64", "assignment", "shuffled:calibrated:knn:k=64")


@dataclass(frozen=True)
class Options:
    """Train a recipe with several couplings and seeds at equal steps; write report.html.

    Any field of the recipe can be set as well (immiscible train RECIPE --help lists them). The same command resumes;
    couplings and seeds may be added later.

    Args:
        coupling: a coupling to compare, repeated for each: independent (the baseline, always in), knn:k=16,
            knn:k=16,center=mean (or label, channel), assignment, gaussian_ot:eps=4, semidiscrete (assigned over
            the whole data set), shuffled:ANY (its control), calibrated:ANY (its noise brought back to mean 0 and
            covariance I), aligned:ANY, projected(pool=4):ANY, matched:ANY (ANY sampled from the distribution of its
            training noise), or your own as "my_module:MyCoupling(k=3)". By default five of them.
        seeds: one run of every coupling for each.
        out: folder; by default runs/compare/RECIPE.
        workers: processes; by default one a core on a CPU, one in all on an accelerator.
        device: where to train.
        list: print the trials (number, state, coupling, seed) and stop.
        trial: run this trial alone (for job arrays).
        gather: make the report from what is there and stop.
        controls: when all are trained, evaluate the last weights of every coupling with shifted sampling times too,
            and those of the baseline with a scaled and a pruned start.
        guidances: weights of guidance; when all are trained, evaluate the last weights of every coupling with each.
            Needs a network that was trained with cond_drop_prob.
        irreducible: compute the loss that no network can go below, for the report's excess loss (once, in
            irreducible/; a set too large for it is left out, and the report says so).
    """

    coupling: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    seeds: tuple[NonNegativeInt, ...] = (0, 1, 2)
    out: Path | None = None
    workers: PositiveInt | None = None
    device: Device = "auto"
    list: Switch = False
    trial: NonNegativeInt | None = None
    gather: bool = False
    controls: Switch = False
    guidances: tuple[FiniteFloat, ...] = ()
    irreducible: bool = True


def main(arguments: list[str]) -> int:
    """Run, list or gather a comparison."""
    name, rest = take_name(arguments, "compare")
    recipe, rest = named_recipe(name, rest)
    options, recipe = split_known(Options, recipe, rest, f"compare {name}")
    folder = run_path(options.out, "compare", recipe.name)
    plan = Plan(folder, recipe, couplings(options), options.seeds)
    plan.check()
    sweep = Sweep(options.controls, options.guidances)
    if options.list:
        for number, trial in enumerate(plan.trials):
            state = "finished" if is_finished(plan, trial) else "open"
            sys.stdout.write(f"{number:4}  {state:9} {trial}\n")
        return 0
    if options.trial is not None and not options.gather:
        run_one(plan, options.trial, options.device, sweep)
        return 0
    if not options.gather:
        run_all(plan, options.device, options.workers, sweep)
    command = shlex.join(["immiscible", "compare", *arguments])
    page, sentences = report(plan, command, irreducible=options.irreducible)
    sys.stdout.write("\n".join([*sentences, "", f"report: {page}"]) + "\n")
    return 0


def couplings(options: Options) -> tuple[str, ...]:
    """The couplings of the comparison, the baseline first."""
    return (BASELINE, *(name for name in options.coupling or DEFAULT_COUPLINGS if name != BASELINE))


def run_all(plan: Plan, device: str, workers: int | None, sweep: Sweep) -> None:
    """Make the evaluator once, so that workers find its classifier cached, then run all trials and the sweep."""
    if (ranks := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise ValueError(
            f"launched as {ranks} ranks, each of which would run the whole comparison; start it "
            f"plainly, or give every job one --trial"
        )
    runner = TrialRunner(plan, device)
    runner.evaluator.check()  # fails here, once, if data, samples or simulator are missing
    sweep = sweep.check(runner)
    runner.try_couplings()
    workers = workers or default_workers(device)
    with folder_lock(plan.folder):
        plan.keep()
        run_trials(plan, device=device, workers=workers)
        run_sweep(plan, sweep, device=device, workers=workers)


def run_one(plan: Plan, number: int, device: str, sweep: Sweep) -> None:
    """Run one trial of a job array, with its part of the sweep."""
    if not 0 <= number < len(plan.trials):
        raise ValueError(f"trial must be 0 to {len(plan.trials) - 1}, got {number}; see --list")
    trial = plan.trials[number]
    runner = TrialRunner(plan, device, quiet=False)
    sweep = sweep.check(runner)
    plan.keep()
    if is_carried(plan, trial):
        state = f"evaluated along with trial {plan.trials.index(trial.unmatched)}"
    else:
        torch.set_num_threads(threads_each(device))
        runner(trial)
        for one in (trial, plan.matched_trial(trial)):
            if one is not None and is_finished(plan, one):
                SweepRunner(runner, sweep)(one)
        state = "finished"
    sys.stderr.write(f"trial {number} ({trial}) is {state}\n")
