"""Push-T without its simulator: states, observations, initial states of test episodes.

A state is ``[agent x, agent y, block x, block y, block angle]``, in pixels of a field of 512 x 512 and radians.
"""

import math

import numpy as np
import torch
from torch import Tensor

TEST_SEED, TEST_EPISODES = 100_000, 50
MAX_STEPS = 300
SUCCESS_COVERAGE = 0.95
# In the frame of the block, as in the published recordings, which drew them at random once.
KEY_POINTS = (
    *((9.26979, 90.04097), (-60.98347, -1.18673), (60.91276, -1.39336)),
    *((-0.2705, 25.54363), (-14.06493, 122.81585), (39.00274, 32.8574)),
    *((-39.96641, 32.72966), (-16.82434, 62.86318), (23.54146, -1.70029)),
)
# Corners of the two bars of the block, in the order of gym-pusht, as LeRobot recorded them.
CORNERS = (*((-60, 0), (60, 0), (60, 30), (-60, 30)), *((-15, 30), (15, 30), (15, 120), (-15, 120)))
OBS_TYPES = ("keypoint", "relative", "state", "corners", "agent")


def key_points(state: Tensor, local: tuple[tuple[float, float], ...] = KEY_POINTS) -> Tensor:
    """Place points ``local``, given in the block's frame, on the block of ``state`` ``[..., 5]``.

    Returns:
        ``[..., n, 2]``, in pixels.
    """
    angle = state[..., 4, None]
    x, y = torch.tensor(local, dtype=state.dtype, device=state.device).unbind(-1)
    rotated = torch.stack([angle.cos() * x - angle.sin() * y, angle.sin() * x + angle.cos() * y], dim=-1)
    return rotated + state[..., None, 2:4]


def observe(state: Tensor, obs_type: str) -> Tensor:
    """Compute what a policy observes of ``state`` ``[..., 5]``.

    ``obs_type`` is ``keypoint``: nine points on the block and the agent's position ``[..., 20]``, as published;
    ``relative``: these, and the points relative to the agent ``[..., 38]``; ``state``: the state itself ``[..., 5]``,
    whose angle jumps at 2 pi; ``corners``: eight corners of the block and the agent's position ``[..., 18]``, or
    ``agent``: its position alone ``[..., 2]``, as LeRobot records them.
    """
    agent = state[..., :2]
    if obs_type == "state":
        return torch.cat([state[..., :4], state[..., 4:] % (2 * math.pi)], dim=-1)
    if obs_type == "agent":
        return agent
    if obs_type in ("keypoint", "relative", "corners"):
        points = key_points(state, CORNERS if obs_type == "corners" else KEY_POINTS)
        parts = [points.flatten(-2), agent]
        if obs_type == "relative":
            parts.append((points - agent[..., None, :]).flatten(-2))
        return torch.cat(parts, dim=-1)
    raise ValueError(f"obs_type must be one of {', '.join(OBS_TYPES)}, got {obs_type!r}")


def start_states(count: int = TEST_EPISODES, first: int = TEST_SEED) -> Tensor:
    """Draw the initial states ``[count, 5]`` (float64) of the episodes with seeds ``first``, ...

    These are the draws of Diffusion Policy's test seeds, set as they are. Its own environment sets
    the position before the angle (``legacy_test``), so its blocks start up to 90 pixels elsewhere.
    """
    states = []
    for seed in range(first, first + count):
        rng = np.random.RandomState(seed)
        agent = [rng.randint(50, 450), rng.randint(50, 450)]
        block = [rng.randint(100, 400), rng.randint(100, 400)]
        states.append([*agent, *block, rng.randn() * 2 * math.pi - math.pi])
    return torch.tensor(states, dtype=torch.float64)
