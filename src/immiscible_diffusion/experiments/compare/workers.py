"""Trials over several processes on one machine.

Own processes instead of a ``ProcessPoolExecutor``: that ends all workers when one dies (out of memory), has no way to
pass a signal on, and starts a queued trial in a worker that was just asked to stop.
"""

import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import torch

from immiscible_diffusion.experiments.compare.plan import Plan, Trial
from immiscible_diffusion.experiments.compare.trial import TrialRunner, is_finished
from immiscible_diffusion.training.run_dir import last_step
from immiscible_diffusion.utils.device import pick_device
from immiscible_diffusion.utils.progress import Progress
from immiscible_diffusion.utils.signals import Interrupted, InterruptGuard

POLL_SECONDS = 2.0
MakeRunner = Callable[[], Callable[[Trial], None]]


class Bar(NamedTuple):
    """A progress bar."""

    total: int
    done: Callable[[], int]  # counts those done
    label: str
    unit: str


def default_workers(device: str) -> int:
    """One worker a core on a CPU, one in all on an accelerator."""
    return max(1, len(available_cores())) if pick_device(device).type == "cpu" else 1


def threads_each(device: str) -> int:
    """Torch threads of a worker: one on the CPU, so that figures do not depend on the number of workers."""
    return max(1, len(available_cores()) // 2) if default_workers(device) == 1 else 1


def available_cores() -> set[int]:
    """The cores this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def run_trials(plan: Plan, *, device: str, workers: int) -> None:
    """Run what is not finished of ``plan`` in ``workers`` processes, showing progress.

    ValueError if a trial failed (the others were run to their end); Interrupted on a signal, with checkpoints written.
    """
    open_trials = [trial for trial in plan.trials if not is_finished(plan, trial)]
    label = f"{len(plan.couplings)} couplings x {len(plan.seeds)} seeds"
    bar = Bar(len(plan.trials) * plan.recipe.steps, partial(_steps_done, plan), label, "step")
    run_in_workers(plan, partial(TrialRunner, plan, device), open_trials, bar, device=device, workers=workers)


def run_in_workers(
    plan: Plan, make_runner: MakeRunner, open_trials: list[Trial], bar: Bar, *, device: str, workers: int
) -> None:
    """Run ``make_runner()(trial)`` for ``open_trials`` in ``workers`` processes; errors as of ``run_trials``."""
    if not open_trials:
        return
    threads = threads_each(device)
    # spawn, not fork: torch's threads and CUDA do not survive a fork, and Windows has none.
    context = multiprocessing.get_context("spawn")
    tasks, outcomes = context.Queue(), context.Queue()
    for trial in open_trials:
        tasks.put(trial)
    worker = partial(context.Process, target=_work, args=(make_runner, threads, tasks, outcomes), daemon=True)
    processes: list[BaseProcess] = [worker() for _ in range(min(workers, len(open_trials)))]
    with InterruptGuard() as guard:
        _start(processes, threads)
        failures = _watch(open_trials, bar, processes, outcomes, guard)
    if guard.received is not None:
        raise Interrupted(guard.received, f"stopped; the same command resumes from what is in {plan.folder}")
    if failures:
        raise ValueError("; ".join(failures))


def _start(processes: list[BaseProcess], threads: int) -> None:
    """Start workers that ignore SIGINT, which the terminal sends to the whole group: the parent sends SIGTERM.

    They inherit ignored signals, and read the number of threads from the environment before torch is imported.
    """
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    environment = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        for process in processes:
            process.start()
    finally:
        signal.signal(signal.SIGINT, handler)
        del os.environ["OMP_NUM_THREADS"]
        if environment is not None:
            os.environ["OMP_NUM_THREADS"] = environment


def end_with_parent() -> None:
    """Stop this worker as by SIGTERM when its parent is gone: an orphan would write where a restarted command does."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True, name="end-with-parent").start()


def _work(make_runner: MakeRunner, threads: int, tasks: Any, outcomes: Any) -> None:
    """A worker process: trials from ``tasks`` until there are none."""
    end_with_parent()
    torch.set_num_threads(threads)
    runner = make_runner()
    while True:
        try:
            trial = tasks.get(timeout=0.5)
        except queue.Empty:
            return
        try:
            runner(trial)
            outcomes.put((trial, None))
        except Interrupted:
            return
        except Exception as error:  # noqa: BLE001 - passed to the parent, which raises it
            outcomes.put((trial, f"{trial}: {error}"))


def _watch(
    open_trials: list[Trial], bar: Bar, processes: list[BaseProcess], outcomes: Any, guard: InterruptGuard
) -> list[str]:
    """Show progress until the workers are done and pass signals on; the failed trials' messages."""
    results: dict[Trial, str | None] = {}  # of the trials that ended: an error message or None
    alive, terminated = True, False
    with Progress(bar.total, bar.done(), bar.label, unit=bar.unit) as progress:
        while alive:
            time.sleep(POLL_SECONDS)
            alive = any(process.is_alive() for process in processes)
            progress.update(bar.done())
            # Not on Windows, where it would kill at once: there the console tells the workers.
            if guard.received is not None and not terminated and sys.platform != "win32":
                terminated = True
                for process in processes:
                    process.terminate()  # a trial writes a checkpoint and stops
            with suppress(queue.Empty):
                while True:
                    trial, message = outcomes.get(timeout=0.05)
                    results[trial] = message
    failures = [message for message in results.values() if message is not None]
    lost = [trial for trial in open_trials if trial not in results]
    if lost and guard.received is None:
        codes = ", ".join(str(process.exitcode) for process in processes)
        failures.append(f"a worker died (exit codes {codes}) before finishing {lost[0]}")
    return failures


def _steps_done(plan: Plan) -> int:
    """Steps trained so far over all trials, according to their logs."""
    return sum(last_step(plan.trial_dir(trial) / "metrics.jsonl") for trial in plan.trials)
