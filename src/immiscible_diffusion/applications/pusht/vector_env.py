"""Many tables of Push-T at once, spread over processes."""

import contextlib
import math
import multiprocessing as mp
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from immiscible_diffusion.applications.pusht.environment import Array, Simulator, Steps
from immiscible_diffusion.utils.optional_deps import MissingDependencyError

GRACE = 5.0  # seconds that a process has to end by itself
TOLD = (
    ValueError,
    RuntimeError,
    MissingDependencyError,
    AssertionError,
)  # faults that a worker hands on


class Tables:
    """So many tables, to be used in a ``with`` statement.

    ::

        with Tables(50, workers=4) as tables:
            tables.reset(start_states())
            steps = tables.step(actions)          # [50, 8, 2]

    Processes are spawned, so that threads and CUDA of the caller do no harm; they end with the
    ``with``, however it is left, and with the caller if that one dies. What a table does depends on
    its state and actions alone, not on the number of workers.

    Args:
        count: of tables.
        workers: processes; 0 = all in this one.
    """

    def __init__(self, count: int, *, workers: int = 0) -> None:
        if count < 1 or workers < 0:
            raise ValueError(f"expected count >= 1 and workers >= 0, got {count} and {workers}")
        # A daemon, as the workers of a comparison are, may have no children.
        alone = bool(mp.current_process().daemon)
        self.count, self.workers = count, 0 if alone else min(workers, count)
        self._own: list[Simulator] = []
        self._others: list[_Worker] = []

    def __enter__(self) -> "Tables":
        if not self.workers:
            self._own = [Simulator() for _ in range(self.count)]
            return self
        share = math.ceil(self.count / self.workers)
        try:
            for first in range(0, self.count, share):
                self._others.append(_Worker.start(range(first, min(first + share, self.count))))
            for worker in self._others:
                worker.answer()  # its tables stand
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; may be called twice."""
        self._own = []
        for worker in self._others:
            worker.ask(None)
        while self._others:
            self._others.pop().end()

    def reset(self, states: Array) -> None:
        """Every table at rest at its row of ``states`` ``[count, 5]``."""
        list(self._on_all("reset", {i: (row,) for i, row in self._rows(states).items()}))

    def step(self, actions: Array, tables: Sequence[int] | None = None) -> Steps:
        """Carry out ``actions`` ``[n, steps, 2]`` on some tables (all).

        Returns:
            states ``[n, steps, 5]`` and coverage ``[n, steps]``.

        Raises:
            ValueError: actions that are not finite or do not fit.
        """
        rows = self._rows(actions, tables)
        found = list(self._on_all("step", {i: (row,) for i, row in rows.items()}))
        return Steps(np.stack([s.state for s in found]), np.stack([s.coverage for s in found]))

    def _rows(self, values: Any, tables: Sequence[int] | None = None) -> dict[int, Array]:
        chosen = range(self.count) if tables is None else tables
        rows = np.asarray(values, dtype=np.float64)
        if len(rows) != len(chosen):
            raise ValueError(f"expected a row for each of {len(chosen)} tables, got {len(rows)}")
        if not self._own and not self._others:
            raise ValueError("these tables are closed; use them inside their with statement")
        return dict(zip(chosen, rows, strict=True))

    def _on_all(self, act: str, given: dict[int, tuple[Any, ...]]) -> Iterator[Any]:
        """Let tables act, those of different processes at the same time; in the order given."""
        if self._own:
            return (getattr(self._own[table], act)(*args) for table, args in given.items())
        asked = []
        for worker in self._others:
            if own := {i: args for i, args in given.items() if i in worker.tables}:
                worker.ask((act, own))
                asked.append(worker)
        answers: dict[int, Any] = {}
        faults = []
        for worker in asked:
            try:
                answers |= worker.answer()
            except ValueError as error:
                faults.append(error)
        if faults:
            raise faults[0]
        return iter([answers[table] for table in given])


@dataclass
class _Worker:
    """A process with some of the tables."""

    process: Any
    line: Connection
    tables: range

    @classmethod
    def start(cls, tables: range) -> "_Worker":
        context = mp.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there, tables), daemon=True)
        process.start()
        there.close()  # so that reading here ends when the process does
        return cls(process, here, tables)

    def ask(self, question: Any) -> None:
        with contextlib.suppress(BrokenPipeError, OSError):  # dead: its answer says so
            self.line.send(question)

    def answer(self) -> Any:
        try:
            fault, answer = self.line.recv()
        except (EOFError, OSError) as error:
            self.process.join(GRACE)
            raise RuntimeError(
                f"the process with tables {self.tables.start} to {self.tables.stop - 1} of Push-T "
                f"ended with exit code {self.process.exitcode}; with workers=0 its error is seen"
            ) from error
        if fault is not None:
            raise ValueError(fault)
        return answer

    def end(self) -> None:
        self.line.close()
        self.process.join(GRACE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _serve(line: Connection, tables: range) -> None:
    """What a process does: act as it is asked until it is told, or left."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the caller closes us
    own: dict[int, Simulator] = {}
    question: Any = ("", {})
    with contextlib.suppress(EOFError, BrokenPipeError, OSError):  # the caller is gone
        while question is not None:
            try:
                own = own or {table: Simulator() for table in tables}
                act, given = question
                answer = {i: getattr(own[i], act)(*args) for i, args in given.items()}
                line.send((None, answer))
            except TOLD as error:
                line.send((f"{type(error).__name__}: {error}", None))
            question = line.recv()


def pictures(states: Array, actions: Array | None = None, *, size: int = 96) -> NDArray[np.uint8]:
    """``[n, size, size, 3]``: the table at ``states`` ``[n, 5]``, as the simulator draws it."""
    simulator = Simulator()
    found = []
    for row, state in enumerate(states):
        simulator.place(state)
        simulator.table._last_action = None if actions is None else actions[row]
        found.append(simulator.picture(size))
    return np.stack(found)
