"""Cells over several processes on one machine."""

import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from immiscible_diffusion.experiments.compare.plan import Plan, Trial
from immiscible_diffusion.experiments.compare.trial import TrialRunner, is_finished
from immiscible_diffusion.training.run_dir import last_step
from immiscible_diffusion.utils.device import pick_device
from immiscible_diffusion.utils.progress import Progress
from immiscible_diffusion.utils.signals import Interrupted, InterruptGuard

POLL_SECONDS = 2.0


def default_workers(device: str) -> int:
    """One worker a core on a CPU, one in all on an accelerator."""
    accelerated = pick_device(device).type != "cpu"
    return 1 if accelerated else max(1, len(available_cores()))


def threads_each(device: str) -> int:
    """Torch threads of a worker.

    One where it trains on the CPU, however many workers there are: sums are then made in one order,
    so the figures do not depend on the number of workers (and two threads on busy cores are slow).
    """
    return max(1, len(available_cores()) // 2) if default_workers(device) == 1 else 1


def available_cores() -> set[int]:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def run_trials(plan: Plan, *, device: str, workers: int) -> None:
    """Run what is not finished of ``plan`` in ``workers`` processes, showing progress.

    Raises:
        ValueError: a cell failed; the others were run to their end.
        Interrupted: on a signal; the cells in progress wrote checkpoints.
    """
    todo = [cell for cell in plan.cells if not is_finished(plan, cell)]
    if not todo:
        return
    workers = min(workers, len(todo))
    threads = threads_each(device)
    # spawn, not fork: torch's threads and CUDA do not survive a fork, and Windows has none.
    context = multiprocessing.get_context("spawn")
    tasks, outcomes = context.Queue(), context.Queue()
    for cell in todo:
        tasks.put(cell)
    arguments = (plan, device, threads, tasks, outcomes)
    processes: list[BaseProcess] = [
        context.Process(target=_work, args=arguments, daemon=True) for _ in range(workers)
    ]
    with InterruptGuard() as guard, _one_thread_each(threads):
        start_deaf(processes)
        failures = _watch(plan, todo, processes, outcomes, guard)
    if guard.received is not None:
        raise Interrupted(
            guard.received,
            f"stopped; the same command goes on from the checkpoints in {plan.folder}",
        )
    if failures:
        raise ValueError("; ".join(failures))


def start_deaf(processes: list[BaseProcess]) -> None:
    """Start workers deaf to Ctrl-C, which reaches the whole group; they are told by SIGTERM."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for process in processes:
            process.start()
    finally:
        signal.signal(signal.SIGINT, before)


class _one_thread_each:
    """Children read the number of threads from the environment, before torch is imported."""

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def __enter__(self) -> None:
        self.before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = str(self.threads)

    def __exit__(self, *_: object) -> None:
        del os.environ["OMP_NUM_THREADS"]
        if self.before is not None:
            os.environ["OMP_NUM_THREADS"] = self.before


def end_with_parent() -> None:
    """Stop this worker as by SIGTERM when its parent is gone, even killed.

    An orphan would write into the same run folders as the workers of the command given again.
    """
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True, name="end-with-parent").start()


def _work(plan: Plan, device: str, threads: int, tasks: Any, outcomes: Any) -> None:
    """A worker process: cells from ``tasks`` until there are none."""
    end_with_parent()
    torch.set_num_threads(threads)
    runner = TrialRunner(plan, device)
    while True:
        try:
            cell = tasks.get(timeout=0.5)
        except queue.Empty:
            return
        try:
            runner(cell)
            outcomes.put((cell, None))
        except Interrupted:
            return
        except Exception as error:  # noqa: BLE001 - told to the parent, which raises it
            outcomes.put((cell, f"{cell}: {error}"))


def _watch(
    plan: Plan,
    todo: list[Trial],
    processes: list[BaseProcess],
    outcomes: Any,
    guard: InterruptGuard,
) -> list[str]:
    """Show progress until the workers are done; pass signals on; the messages of failed cells."""
    failures: list[str] = []
    reported: set[Trial] = set()
    forwarded = False
    total = len(plan.cells) * plan.recipe.steps
    label = f"{len(plan.couplings)} couplings x {len(plan.seeds)} seeds"
    with Progress(total, _steps_done(plan), label) as show:
        while any(process.is_alive() for process in processes):
            time.sleep(POLL_SECONDS)
            show.update(_steps_done(plan))
            if guard.received is not None and not forwarded:
                forwarded = True
                _tell(processes)
            _drain(outcomes, reported, failures)
        _drain(outcomes, reported, failures)
    lost = [cell for cell in todo if cell not in reported]
    if lost and guard.received is None:
        codes = ", ".join(str(process.exitcode) for process in processes)
        failures.append(f"a worker died (exit codes {codes}) before finishing {lost[0]}")
    return failures


def _tell(processes: list[BaseProcess]) -> None:
    """SIGTERM, on which a cell writes a checkpoint and stops.

    Not on Windows, where it would kill at once: there the console tells the workers of Ctrl-C.
    """
    if sys.platform != "win32":
        for process in processes:
            process.terminate()


def _drain(outcomes: Any, reported: set[Trial], failures: list[str]) -> None:
    while True:
        try:
            cell, failure = outcomes.get(timeout=0.05)
        except queue.Empty:
            return
        reported.add(cell)
        if failure is not None:
            failures.append(failure)


def _steps_done(plan: Plan) -> int:
    """Steps trained so far over all cells, as far as their logs tell."""
    return sum(last_step(plan.trial_dir(cell) / "metrics.jsonl") for cell in plan.cells)
