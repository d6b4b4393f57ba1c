"""One table of Push-T, from gym-pusht, whose states can be set to what was recorded."""

import os
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from immiscible_diffusion.utils.optional_deps import require_extra

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Steps:
    """What came of actions.

    Attributes:
        state: ``[n, 5]`` after each.
        coverage: ``[n]``: share of the goal that the block covers, in [0, 1].
    """

    state: Array
    coverage: Array


class Simulator:
    """One table, without a screen.

    gym-pusht's own reset sets the block's place before its angle, which turns it about its center
    of mass and so shifts it by up to 90 pixels. Here the angle comes first, and replaying what was
    recorded gives what was recorded (``replayed``).
    """

    def __init__(self) -> None:
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        with require_extra("pusht", "the Push-T simulator"):
            from gym_pusht.envs.pusht import PushTEnv
        self.table = PushTEnv(obs_type="state", render_mode="rgb_array")
        self.table._setup()

    def reset(self, state: Array) -> None:
        """A table at rest with everything at ``state`` ``[5]``.

        Contacts take effect for one physics step, after which everything is put back: so did the
        recordings begin.
        """
        self.table._setup()
        self.table._last_action = None
        self.place(state)
        self.table.space.step(self.table.dt)
        self.place(state)

    def place(self, state: Array) -> None:
        """Move everything to ``state`` ``[5]``; the agent keeps its speed.

        Raises:
            ValueError: a state that is no five finite numbers.
        """
        state = np.asarray(state, dtype=np.float64)
        if state.shape != (5,) or not np.isfinite(state).all():
            raise ValueError(f"a state is five finite numbers, got {state.tolist()}")
        self.table.agent.position = tuple(state[:2])
        self.table.block.angle = state[4]  # first: it turns about the center of mass
        self.table.block.position = tuple(state[2:4])
        self.table.space.reindex_shapes_for_body(self.table.block)
        self.table.space.reindex_shapes_for_body(self.table.agent)

    @property
    def state(self) -> Array:
        """``[5]``, the angle in [0, 2 pi)."""
        state: Array = self.table.get_obs()
        return state

    @property
    def coverage(self) -> float:
        """Share of the goal that is covered."""
        return float(self.table._get_coverage())

    def step(self, actions: Array) -> Steps:
        """Carry out ``actions`` ``[n, 2]``, places for the agent to go to, a tenth second each.

        Raises:
            ValueError: actions that are no finite pairs.
        """
        actions = np.asarray(actions, dtype=np.float64)
        if actions.ndim != 2 or actions.shape[1] != 2 or not np.isfinite(actions).all():
            raise ValueError(
                f"actions must be finite places [n, 2], got {actions.shape}: the policy or its "
                f"range is at fault"
            )
        states, covered = [], []
        for action in actions:
            _, _, _, _, info = self.table.step(action)
            states.append(self.state)
            covered.append(info["coverage"])
        return Steps(np.array(states).reshape(-1, 5), np.array(covered))

    def picture(self, size: int = 96) -> NDArray[np.uint8]:
        """``[size, size, 3]``: the table as it is, with a cross where the agent was sent."""
        self.table.visualization_width = self.table.visualization_height = size
        image: NDArray[np.uint8] = self.table.render()
        return image


def replayed(state: Array, action: Array) -> Array:
    """What the simulator makes of one recorded episode, each step from its recorded state.

    Args:
        state: ``[n, 5]``, recorded before each action.
        action: ``[n, 2]``.

    Returns:
        ``[n - 1, 5]``: the states that came of the first n - 1 actions. Only the agent's speed,
        which is not recorded, is carried from step to step.
    """
    simulator = Simulator()
    simulator.reset(state[0])
    found = []
    for before, chosen in zip(state[:-1], action[:-1], strict=True):
        simulator.place(before)
        found.append(simulator.step(chosen[None]).state[0])
    return np.array(found)


def simulator_at_hand() -> str:
    """Which simulator there is; MissingDependencyError if there is none."""
    Simulator()
    return f"gym-pusht {version('gym-pusht')}"
