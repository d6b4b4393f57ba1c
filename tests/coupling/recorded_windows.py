"""Plans of 16 x 2 actions with padding at the ends of their episodes."""

import torch

from immiscible_diffusion.data.trajectories import Episodes, Windows

GARBAGE = 1e3


def episodes(count=12, seed=0):
    """Smooth walks; observations are what was last asked for, and where it leads."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(16, 30, (count,), generator=generator)
    walks = [torch.randn(int(n), 2, generator=generator).cumsum(0) for n in lengths]
    action = torch.cat(walks)
    seen = torch.cat([action, action.roll(1, 0)], dim=1)
    return Episodes(seen, action, lengths.cumsum(0), name="walks")


def windows(count, seed=0):
    """A batch of windows, of which at least one overhangs its episode."""
    made = Windows.of(episodes(max(12, count // 8), seed))
    order = torch.randperm(len(made), generator=torch.Generator().manual_seed(seed))
    overhang = (~made.batch(order).mask.flatten(1).all(dim=1)).nonzero()[0, 0]
    chosen = order[:count].clone()
    chosen[0] = order[overhang]
    return made.batch(chosen)
