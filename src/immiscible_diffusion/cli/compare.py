"""``immiscible compare RECIPE``."""

import heapq
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from immiscible_diffusion.cli.options import (
    Device,
    Names,
    Switch,
    flat,
    named_recipe,
    run_path,
    split_known,
    take_name,
)
from immiscible_diffusion.experiments.compare.collect import report
from immiscible_diffusion.experiments.compare.plan import BASELINE, Plan, Trial
from immiscible_diffusion.experiments.compare.sweep import Sweep, SweepRunner, run_sweep
from immiscible_diffusion.experiments.compare.trial import TrialRunner, is_carried, is_finished
from immiscible_diffusion.experiments.compare.workers import default_workers, run_trials, threads_each
from immiscible_diffusion.training.dry_run import dry_run as dry_training
from immiscible_diffusion.training.dry_run import missing
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.utils.checks import FiniteFloat, NonNegativeInt, PositiveInt
from immiscible_diffusion.utils.folder_lock import folder_lock
from immiscible_diffusion.utils.progress import duration

DEFAULT_COUPLINGS = ("knn:k=4", "matched:knn:k=4", "calibrated:knn:k=64", "assignment", "shuffled:calibrated:knn:k=64")


@dataclass(frozen=True)
class Options:
    """Train a recipe with several couplings and seeds at equal steps; write report.html.

    Any field of the recipe can be set as well (immiscible train RECIPE --help lists them). The same command resumes;
    couplings and seeds may be added later.

    Args:
        coupling: the couplings to compare: independent (the baseline, always in), knn:k=16,
            knn:k=16,center=mean (or label, channel), assignment, gaussian_ot:eps=4, semidiscrete (assigned over
            the whole data set), shuffled:ANY (its control), calibrated:ANY (its noise brought back to mean 0 and
            covariance I), aligned:ANY, projected(pool=4):ANY, matched:ANY (ANY sampled from the distribution of its
            training noise), or your own as "my_module:MyCoupling(k=3)". By default five of them.
        seeds: one run of every coupling for each.
        out: folder; by default runs/compare/RECIPE.
        workers: processes; by default one a core on a CPU, one in all on an accelerator.
        device: where to train.
        dry_run: print the trials, what is missing, and what they would take, and stop.
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

    coupling: Names = ()
    seeds: tuple[NonNegativeInt, ...] = (0, 1, 2)
    out: Path | None = None
    workers: PositiveInt | None = None
    device: Device = "auto"
    dry_run: Switch = False
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
    if any(word.partition("=")[0] == "--seed" for word in rest):
        raise ValueError("a comparison has several: --seeds 0 1 2; got --seed")
    options, recipe = split_known(Options, recipe, rest, f"compare {name}")
    folder = run_path(options.out, "compare", recipe.name)
    plan = Plan(folder, recipe, couplings(options), options.seeds)
    plan.check()
    sweep = Sweep(options.controls, options.guidances)
    if options.list:
        sys.stdout.write("".join(f"{line}\n" for line in trial_lines(plan)))
        return 0
    if options.dry_run:
        return dry_run(plan, options.device, options.workers, sweep)
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
    names = flat(options.coupling, "--coupling") or DEFAULT_COUPLINGS
    return (BASELINE, *(name for name in names if name != BASELINE))


def trial_lines(plan: Plan) -> Iterator[str]:
    """The trials of ``plan`` with their numbers and states."""
    for number, trial in enumerate(plan.trials):
        step = checkpoint_step(plan, trial)
        state = "finished" if is_finished(plan, trial) else f"step={step}" if step else "open"
        yield f"{number:4}  {state:12} {trial}"


def checkpoint_step(plan: Plan, trial: Trial) -> int:
    """The step that the training of ``trial`` resumes from: that of its checkpoint, as the log is ahead of it."""
    return RunDir(plan.trial_dir(trial.unmatched if is_carried(plan, trial) else trial)).step


def dry_run(plan: Plan, device: str, workers: int | None, sweep: Sweep) -> int:
    """Say what is missing, what would be trained and evaluated, what of it is there, and how long the rest trains.

    The first training is described as by ``train --dry-run``, those of the other couplings by their time.
    """
    write = partial(print, flush=True)
    try:
        runner, sweep = prepare(plan, device, sweep)
    except (ValueError, ImportError, OSError) as error:
        for line in missing(plan.recipe, error):
            write(f"missing: {line}")
        return 2
    torch.set_num_threads(threads_each(device))
    open_trials = [trial for trial in plan.trials if not (is_finished(plan, trial) or is_carried(plan, trial))]
    seconds: dict[str, float] = {}  # of a whole training with each coupling
    for coupling in dict.fromkeys(trial.unmatched.coupling for trial in open_trials):
        recipe, lines = plan.trial_recipe(Trial(coupling, plan.seeds[0])), list[str]()
        takes = dry_training(recipe, device, lines.append if seconds else write, runner.task.dataset)
        for line in lines:
            if line.startswith(("time:", "missing:")) and line != "missing: nothing":
                write(f"{coupling}: {line}")
        if takes is None:
            return 2
        seconds[coupling] = takes
    for line in trial_lines(plan):
        write(line)
    steps = (", ".join(map(str, numbers)) for numbers in (plan.eval_steps, plan.recipe.task.eval.sampling_steps))
    write("evaluated at training steps {}, in {} sampling steps".format(*steps))
    if variants := sum(len(sweep.missing(plan, trial)) for trial in plan.trials):
        write(f"and {variants} scores with other samplers at the end")
    number = max(1, min(len(open_trials), workers or default_workers(device)))
    ends = [0.0] * number  # of what each process trains: the first that is free takes the next trial
    for trial in open_trials:
        left = 1 - checkpoint_step(plan, trial) / plan.recipe.steps
        heapq.heapreplace(ends, ends[0] + left * seconds[trial.unmatched.coupling])
    about = (
        f"; training alone takes about {duration(max(ends))} in {number} process{'es' * (number > 1)}; evaluation, "
        f"fits of plans and tables of noise come on top"
    )
    write(
        f"{plan.folder}: what is there is kept; trainings left, of {plan.recipe.steps:,} steps: {len(open_trials)}"
        f"{about * bool(open_trials)}"
    )
    return 0


def prepare(plan: Plan, device: str, sweep: Sweep) -> tuple[TrialRunner, Sweep]:
    """Make the evaluator once, so that workers find its classifier cached; return what of ``sweep`` can be evaluated.

    Raises what all trials would fail of, before anything is written to the plan's folder.
    """
    if (ranks := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise ValueError(
            f"launched as {ranks} ranks, each of which would run the whole comparison; start it "
            f"plainly, or give every job one --trial"
        )
    runner = TrialRunner(plan, device)
    runner.evaluator.check()  # fails here, once, if data, samples or simulator are missing
    sweep = sweep.check(runner)
    runner.try_couplings()
    return runner, sweep


def run_all(plan: Plan, device: str, workers: int | None, sweep: Sweep) -> None:
    """Run all trials and the sweep."""
    _, sweep = prepare(plan, device, sweep)
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
