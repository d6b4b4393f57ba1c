"""The Push-T environment of gym-pusht: one, or many over several processes."""

import contextlib
import multiprocessing as mp
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from immiscible_diffusion.utils.optional_deps import require_extra

Array = NDArray[np.float64]
JOIN_SECONDS = 5.0


class Steps(NamedTuple):
    """What followed from n actions."""

    state: Array  # ``[..., n, 5]``
    coverage: Array  # ``[..., n]``, the fraction of the goal that the block covers


class PushT:
    """One environment without a screen, whose state can be set.

    gym-pusht's own reset sets the block's position before its angle, which turns it about its
    center of mass and so shifts it by up to 90 pixels. Here the angle comes first, and replaying
    recorded actions gives the recorded states.
    """

    def __init__(self) -> None:
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        with require_extra("pusht", "the Push-T simulator"):
            from gym_pusht.envs.pusht import PushTEnv
        self.env = PushTEnv(obs_type="state", render_mode="rgb_array")
        self.env._setup()

    def reset(self, state: Array) -> None:
        """Start at rest from ``state`` ``[5]``.

        Contacts take effect for one physics step, after which everything is put back, as at the
        start of the recordings.
        """
        self.env._setup()
        self.env._last_action = None
        self.set_state(state)
        self.env.space.step(self.env.dt)
        self.set_state(state)

    def set_state(self, state: Array) -> None:
        """Move agent and block to ``state``, five finite numbers; the agent keeps its speed."""
        state = np.asarray(state, dtype=np.float64)
        if state.shape != (5,) or not np.isfinite(state).all():
            raise ValueError(f"a state is five finite numbers, got {state.tolist()}")
        self.env.agent.position = tuple(state[:2])
        self.env.block.angle = state[4]  # first: it turns about the center of mass
        self.env.block.position = tuple(state[2:4])
        for body in (self.env.block, self.env.agent):
            self.env.space.reindex_shapes_for_body(body)

    def step(self, actions: Array) -> Steps:
        """Carry out ``actions`` ``[n, 2]``: finite target positions of the agent, 0.1 s each."""
        actions = np.asarray(actions, dtype=np.float64)
        if actions.ndim != 2 or actions.shape[1] != 2 or not np.isfinite(actions).all():
            raise ValueError(
                f"actions must be finite positions [n, 2], got {actions.shape}: check the policy and its normalizer"
            )
        states, coverage = [], []
        for action in actions:
            state, *_, info = self.env.step(action)
            states.append(state)
            coverage.append(info["coverage"])
        return Steps(np.array(states).reshape(-1, 5), np.array(coverage))

    def render(self, state: Array, size: int = 96) -> NDArray[np.uint8]:
        """Draw ``state`` ``[5]``, which is set, as an image ``[size, size, 3]``."""
        self.set_state(state)
        self.env.visualization_width = self.env.visualization_height = size
        image: NDArray[np.uint8] = self.env.render()
        return image


def simulator_version() -> str:
    """Name and version of the simulator; MissingDependencyError without one."""
    PushT()
    return f"gym-pusht {version('gym-pusht')}"


# -- many environments ----------------------------------------------------------------------------


class VectorEnv:
    """``count`` environments, over ``workers`` processes; use it in a ``with`` statement.

    ::

        with VectorEnv(50, workers=4) as env:
            env.reset(start_states())
            steps = env.step(actions)          # [50, 8, 2]

    What an environment does depends on its state and actions alone, not on the number of workers.
    Processes are spawned, so that threads and CUDA of the caller do no harm. They end with the
    ``with`` statement, however it is left, and with the caller if that one dies.

    Not ``gymnasium.vector.AsyncVectorEnv``: it starts a process per environment (50 of them), a
    worker of it ends with the first error, and closing it after a worker died raises and leaves
    the others running.

    Args:
        count: number of environments.
        workers: processes; 0 = all in this one, as always within a daemonic process, which may
            have no children.
    """

    def __init__(self, count: int, *, workers: int = 0) -> None:
        if count < 1 or workers < 0:
            raise ValueError(f"expected count >= 1 and workers >= 0, got {count} and {workers}")
        self.count = count
        self.workers = 0 if mp.current_process().daemon else min(workers, count)
        self._workers: list[_Local | _Process] = []

    def __enter__(self) -> "VectorEnv":
        size = -(-self.count // max(self.workers, 1))
        try:
            for first in range(0, self.count, size):
                indices = range(first, min(first + size, self.count))
                self._workers.append(_Process(indices) if self.workers else _Local(indices))
            self._call("ready", {})
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        while self._workers:
            self._workers.pop().close()

    def reset(self, states: Array) -> None:
        """Start every environment at rest from its row of ``states`` ``[count, 5]``."""
        self._call("reset", self._by_index(states, range(self.count)))

    def step(self, actions: Array, indices: Sequence[int] | None = None) -> Steps:
        """Carry out ``actions`` ``[B, n, 2]`` in the environments ``indices`` ``[B]`` (all).

        Raises:
            ValueError: actions that are not finite or do not fit.
            RuntimeError: a worker process died.
        """
        rows = self._by_index(actions, range(self.count) if indices is None else indices)
        steps = self._call("step", rows)
        return Steps(*(np.stack(parts) for parts in zip(*(steps[i] for i in rows), strict=True)))

    def _by_index(self, values: Array, indices: Sequence[int]) -> dict[int, Array]:
        if len(values) != len(indices):
            raise ValueError(f"expected a row for each of {len(indices)} envs, got {len(values)}")
        if not self._workers:
            raise ValueError("this VectorEnv is closed; use it inside its with statement")
        return dict(zip(indices, np.asarray(values, dtype=np.float64), strict=True))

    def _call(self, method: str, rows: Mapping[int, Array]) -> dict[int, Any]:
        """Call ``method`` of the environments in ``rows``, all workers at the same time."""
        answers = [
            worker.submit(method, {i: row for i, row in rows.items() if i in worker.indices})
            for worker in self._workers
        ]
        results, errors = dict[int, Any](), []
        for answer in answers:  # all of them, so that none is left for the next call
            try:
                results |= answer()
            except (ValueError, RuntimeError) as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return results


class _Local:
    """The environments ``indices`` in this process."""

    def __init__(self, indices: range) -> None:
        self.indices = indices
        self.envs = {i: PushT() for i in indices}

    def submit(self, method: str, rows: Mapping[int, Array]) -> Callable[[], dict[int, Any]]:
        return lambda: {i: getattr(self.envs[i], method)(row) for i, row in rows.items()}

    def close(self) -> None:
        self.envs = {}


class _Process:
    """The environments ``indices`` in a process of their own."""

    def __init__(self, indices: range) -> None:
        self.indices = indices
        context = mp.get_context("spawn")
        self.pipe, child = context.Pipe()
        self.process = context.Process(target=_serve, args=(child, indices), daemon=True)
        self.process.start()
        child.close()  # so that ``recv`` raises when the process ends

    def submit(self, method: str, rows: Mapping[int, Array]) -> Callable[[], dict[int, Any]]:
        with contextlib.suppress(OSError):  # the process died: ``_receive`` says so
            self.pipe.send((method, rows))
        return self._receive

    def _receive(self) -> dict[int, Any]:
        name = f"Push-T environments {self.indices.start} to {self.indices.stop - 1}"
        try:
            error, results = self.pipe.recv()
        except (EOFError, OSError) as reason:
            self.process.join(JOIN_SECONDS)
            raise RuntimeError(
                f"the process with {name} ended with exit code {self.process.exitcode}; set "
                f"workers=0 to see its error"
            ) from reason
        if error is not None:
            raise ValueError(f"{name}: {error}")
        return dict(results)

    def close(self) -> None:
        self.pipe.close()
        self.process.join(JOIN_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _serve(pipe: Connection, indices: range) -> None:
    """Answer requests until the caller closes the pipe or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the caller closes the pipe
    envs: _Local | None = None
    with contextlib.suppress(EOFError, OSError):
        while True:
            request = pipe.recv()
            answer: tuple[str | None, dict[int, Any]]
            try:
                envs = envs or _Local(indices)
                answer = None, envs.submit(*request)()
            except Exception as error:  # noqa: BLE001 - raised again by the caller
                answer = f"{type(error).__name__}: {error}", {}
            pipe.send(answer)
