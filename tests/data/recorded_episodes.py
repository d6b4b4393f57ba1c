"""Recorded episodes for tests, and the stores that hold them."""

import json

import numpy as np
import torch

from immiscible_diffusion.data.trajectories import Episodes


def episodes(lengths=(20, 31, 25), observation=3, action=2, seed=0):
    """Random episodes of those lengths."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(lengths)
    seen = 100 + 40 * torch.randn(count, observation, generator=generator)
    acted = 200 + 50 * torch.randn(count, action, generator=generator)
    return Episodes(seen, acted, torch.tensor(lengths).cumsum(0), name="made")


def replay_arrays(lengths=(20, 31, 25), seed=0):
    """The arrays of Diffusion Policy's Push-T store."""
    rng = np.random.default_rng(seed)
    count = sum(lengths)
    return {
        "state": rng.uniform(1, 500, (count, 5)).astype(np.float32),
        "action": rng.uniform(1, 500, (count, 2)).astype(np.float32),
        "keypoint": rng.uniform(1, 500, (count, 9, 2)).astype(np.float32),
        "episode_ends": np.cumsum(lengths).astype(np.int64),
    }


def write_lerobot(folder, lengths=(20, 31, 25), *, per_file=2, columns=None, seed=0):
    """A data set in LeRobot's layout; ``columns`` replaces or adds some."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(seed)
    count = sum(lengths)
    episode = np.repeat(np.arange(len(lengths)), lengths)
    table = {
        "observation.state": rng.uniform(0, 500, (count, 2)).astype(np.float32).tolist(),
        "action": rng.uniform(0, 500, (count, 2)).astype(np.float32).tolist(),
        "episode_index": episode,
        "frame_index": np.concatenate([np.arange(length) for length in lengths]),
        "timestamp": np.zeros(count, dtype=np.float32),
        **(columns or {}),
    }
    (folder / "data" / "chunk-000").mkdir(parents=True)
    (folder / "meta").mkdir()
    info = {"total_episodes": len(lengths), "total_frames": count}
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    for number, first in enumerate(range(0, len(lengths), per_file)):
        rows = np.flatnonzero((episode >= first) & (episode < first + per_file))
        part = {name: [values[row] for row in rows] for name, values in table.items()}
        pq.write_table(pa.table(part), folder / "data" / "chunk-000" / f"file-{number:03d}.parquet")
    return table
