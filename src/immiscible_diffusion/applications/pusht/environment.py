"""The Push-T environment of gym-pusht: one, or many over several processes."""

import multiprocessing as mp
import os
import signal
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from immiscible_diffusion.utils.optional_deps import require_extra

Array = NDArray[np.float64]


class Steps(NamedTuple):
    """What followed from n actions."""

    state: Array  # ``[..., n, 5]``
    coverage: Array  # ``[..., n]``, the fraction of the goal that the block covers


class PushT:
    """One environment without a screen, whose state can be set.

    gym-pusht's own reset sets the block's position before its angle, which turns it about its center of mass and so
    shifts it by up to 90 pixels. Here the angle comes first, and replaying recorded actions gives the recorded states.
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
        return np.asarray(self.env.render())


# -- many environments ----------------------------------------------------------------------------


class VectorEnv:
    """``count`` environments, over ``workers`` processes; use it in a ``with`` statement.

    ::

        with VectorEnv(50, workers=4) as env:
            env.reset(start_states())
            steps = env.step(actions)          # [50, 8, 2]

    What an environment does depends on its state and actions alone, not on the number of workers (0 = all in this
    process, as always within a daemonic one, which may have no children). Processes are spawned, so that threads and
    CUDA do no harm. They end with the ``with`` statement, however it is left, and with a caller that dies.

    Not ``gymnasium.vector.AsyncVectorEnv``: it starts a process per environment (50 of them), a worker of it ends
    with the first error, and closing it after a worker died raises and leaves the others running.
    """

    def __init__(self, count: int, *, workers: int = 0) -> None:
        if count < 1 or workers < 0:
            raise ValueError(f"expected count >= 1 and workers >= 0, got {count} and {workers}")
        self.count = count
        self.workers = 0 if mp.current_process().daemon else min(workers, count)
        self._envs: dict[int, PushT] = defaultdict(PushT)  # those in this process
        self._pools: list[ProcessPoolExecutor] = []  # of one process each
        self._open = False

    def __enter__(self) -> "VectorEnv":
        options: Any = {"mp_context": mp.get_context("spawn"), "initializer": _end_with_caller}
        self._pools = [ProcessPoolExecutor(1, **options) for _ in range(self.workers)]
        self._open = True
        return self

    def __exit__(self, *error: object) -> None:
        for pool in self._pools:
            pool.shutdown(cancel_futures=True)
        self._envs.clear()
        self._open = False

    def reset(self, states: Array) -> None:
        """Start every environment at rest from its row of ``states`` ``[count, 5]``."""
        self._call("reset", states, range(self.count))

    def step(self, actions: Array, indices: Sequence[int] | None = None) -> Steps:
        """Carry out ``actions`` ``[B, n, 2]`` in the environments ``indices`` ``[B]`` (all).

        Raises:
            ValueError: actions that are not finite or do not fit.
            RuntimeError: a worker process died.
        """
        indices = range(self.count) if indices is None else indices
        steps = self._call("step", actions, indices)
        return Steps(*(np.stack(parts) for parts in zip(*(steps[i] for i in indices), strict=True)))

    def _call(self, method: str, values: Array, indices: Sequence[int]) -> dict[int, Any]:
        """Call ``method`` of the environments ``indices``, all workers at the same time."""
        if not self._open:
            raise ValueError("this VectorEnv is closed; use it inside its with statement")
        if len(values) != len(indices):
            raise ValueError(f"expected a row for each of {len(indices)} envs, got {len(values)}")
        rows = dict(zip(indices, np.asarray(values, dtype=np.float64), strict=True))
        if not self._pools:
            return _call_envs(method, rows, self._envs)
        parts: dict[int, dict[int, Array]] = defaultdict(dict)
        for i, row in rows.items():
            parts[i * self.workers // self.count][i] = row
        try:
            answers = [self._pools[k].submit(_call_envs, method, part) for k, part in parts.items()]
            wait(answers)  # for all of them, so that none is left for the next call
            return {i: result for answer in answers for i, result in answer.result().items()}
        except BrokenProcessPool as error:
            raise RuntimeError("a process with Push-T environments ended; set workers=0 to see its error") from error


_ENVS: dict[int, PushT] = defaultdict(PushT)
"""The environments of a worker process."""


def _call_envs(method: str, rows: Mapping[int, Array], envs: Mapping[int, PushT] = _ENVS) -> dict[int, Any]:
    return {i: getattr(envs[i], method)(row) for i, row in rows.items()}


def _end_with_caller() -> None:
    """Leave Ctrl-C, which reaches all processes, to the caller, and end when it dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    caller = mp.parent_process()

    def watch() -> None:
        if caller is not None:
            caller.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
