"""Push-T without its simulator: states, key points, where test episodes begin.

A state is ``[agent x, agent y, block x, block y, block angle]``: pixels of a table of 512 x 512,
and radians.
"""

import math

import numpy as np
import torch
from torch import Tensor

TEST_SEED, TEST_EPISODES = 100_000, 50
STEPS = 300
THRESHOLD = 0.95  # of the goal covered: success, and a score of 1
# In the frame of the block; those of the published recordings, which drew them at random once.
KEY_POINTS = (
    (9.26979, 90.04097),
    (-60.98347, -1.18673),
    (60.91276, -1.39336),
    (-0.2705, 25.54363),
    (-14.06493, 122.81585),
    (39.00274, 32.8574),
    (-39.96641, 32.72966),
    (-16.82434, 62.86318),
    (23.54146, -1.70029),
)
# Of the two bars of the block, in the order of gym-pusht: what LeRobot recorded.
CORNERS = (
    *((-60, 0), (60, 0), (60, 30), (-60, 30)),
    *((-15, 30), (15, 30), (15, 120), (-15, 120)),
)
OBSERVATIONS = ("keypoint", "relative", "state", "corners", "agent")


def key_points(state: Tensor, local: tuple[tuple[float, float], ...] = KEY_POINTS) -> Tensor:
    """``[..., n, 2]``: points on the block of ``state`` ``[..., 5]``, in pixels.

    Args:
        state: of the table.
        local: the points in the frame of the block.
    """
    angle = state[..., 4, None]
    x, y = torch.tensor(local, dtype=state.dtype, device=state.device).unbind(-1)
    turned = torch.stack(
        [angle.cos() * x - angle.sin() * y, angle.sin() * x + angle.cos() * y], dim=-1
    )
    return turned + state[..., None, 2:4]


def observe(state: Tensor, kind: str) -> Tensor:
    """What a policy sees of ``state`` ``[..., 5]``.

    Args:
        state: of the table.
        kind: ``keypoint``: nine points on the block and the agent's place ``[..., 20]``, as
            published; ``relative``: these, and the points as seen from the agent ``[..., 38]``;
            ``state``: the state itself ``[..., 5]``, whose angle jumps at 2 pi;
            ``corners``: eight corners of the block and the agent's place ``[..., 18]``, and
            ``agent``: its place alone ``[..., 2]``, as LeRobot records them.
    """
    agent = state[..., :2]
    if kind == "state":
        return torch.cat([state[..., :4], state[..., 4:] % (2 * math.pi)], dim=-1)
    if kind == "agent":
        return agent
    if kind in ("keypoint", "relative", "corners"):
        points = key_points(state, CORNERS if kind == "corners" else KEY_POINTS)
        far = [(points - agent[..., None, :]).flatten(-2)] if kind == "relative" else []
        return torch.cat([points.flatten(-2), agent, *far], dim=-1)
    raise ValueError(f"observation must be one of {', '.join(OBSERVATIONS)}, got {kind!r}")


def start_states(count: int = TEST_EPISODES, first: int = TEST_SEED) -> Tensor:
    """``[count, 5]`` float64: where the episodes with seeds ``first``, ... begin.

    The draws of Diffusion Policy's test seeds, set as they are said. Its own environment sets the
    position before the angle (``legacy_test``), so its blocks begin up to 90 pixels elsewhere.
    """
    return torch.tensor(np.array([_start(first + index) for index in range(count)]))


def _start(seed: int) -> list[float]:
    legacy = np.random.RandomState(seed)
    agent = [legacy.randint(50, 450), legacy.randint(50, 450)]
    block = [legacy.randint(100, 400), legacy.randint(100, 400)]
    return [*agent, *block, legacy.randn() * 2 * math.pi - math.pi]
