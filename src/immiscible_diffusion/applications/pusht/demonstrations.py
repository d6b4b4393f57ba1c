"""Read recorded demonstrations: Zarr stores, .npz files, LeRobot data sets."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from immiscible_diffusion.applications.pusht.config import DemonstrationConfig
from immiscible_diffusion.applications.pusht.windows import Episodes, Windows
from immiscible_diffusion.data.array_files import ArrayFile
from immiscible_diffusion.utils.atomic_files import read_record
from immiscible_diffusion.utils.optional_deps import require_extra
from immiscible_diffusion.utils.serialization import from_dict

OBS_TYPES = ("keypoint", "state", "relative")
STORES = "a Zarr store as Diffusion Policy's, an .npz of its arrays, or the folder of a LeRobot set"
STATE, ENVIRONMENT = "observation.state", "observation.environment_state"
# gym-pusht's, by their sizes: the agent alone, and with the corners of the block.
LEROBOT_OBS_TYPES = {(2,): "agent", (16, 2): "corners"}
AGENT_ONLY = "observations are of the agent alone, without the block or its image"
READ_ERRORS = (RuntimeError, ValueError, OSError, EOFError)  # raised by zarr's codecs and pyarrow


def load_demonstrations(source: str | Path, *, obs_type: str = "keypoint", actions: int | None = 2) -> Episodes:
    """Read the episodes recorded in ``source``, whose actions have so many dimensions (None: any).

    ``source`` is the folder of a Zarr store as Diffusion Policy's ``pusht_cchi_v7_replay.zarr`` or
    an ``.npz`` of its arrays, of which ``obs_type`` is observed (``states.observe``); or the folder
    of a LeRobot data set, which has ``data/chunk-*/*.parquet`` and observations of its own.
    ValueError if there is no such store, or names the episode that is cut short or not finite.
    """
    path = Path(source)
    if obs_type not in OBS_TYPES:
        raise ValueError(f"obs_type must be one of {', '.join(OBS_TYPES)}, got {obs_type!r}")
    names = ["episode_ends", "state", "action", *(["keypoint"] if obs_type != "state" else [])]
    if path.suffix == ".npz":
        episodes = _from_arrays(path, _read_npz(path, names), obs_type)
    elif any((path / name).is_file() for name in (".zgroup", "zarr.json", ".zmetadata")):
        episodes = _from_arrays(path, _read_zarr(path, names), obs_type)
    elif path.is_dir() and any(path.glob("data/chunk-*/*.parquet")):
        episodes = _read_lerobot(path)
    else:
        raise ValueError(f"{path} holds no demonstrations; expected {STORES}")
    size = episodes.action.shape[1]
    if actions not in (None, size):
        raise ValueError(f"{path}: actions have {size} dimensions, {actions} were expected")
    return episodes


def load_windows(config: DemonstrationConfig) -> Windows:
    """Load the windows to train on, with those to validate on, which are normalized alike."""
    if config.path is None:
        raise ValueError(f"the demonstrations need data.path: {STORES}")
    episodes = load_demonstrations(config.path, obs_type=config.obs_type)
    train, validation = episodes.split(
        config.val_ratio, seed=config.split_seed, max_train_episodes=config.max_train_episodes
    )
    windows = Windows.fit(train, config)
    return replace(windows, validation=replace(windows, episodes=validation))


# -- Diffusion Policy's arrays --------------------------------------------------------------------


def _from_arrays(path: Path, arrays: Mapping[str, Any], obs_type: str) -> Episodes:
    observation = state = np.asarray(arrays["state"], dtype=np.float32)
    if obs_type != "state":
        points = np.asarray(arrays["keypoint"], dtype=np.float32)
        if len(points) != len(state):
            raise ValueError(f"{path}: {len(points)} rows of keypoint, {len(state)} of state")
        parts = [points.reshape(len(points), -1), state[:, :2]]
        if obs_type == "relative":
            parts.append((points - state[:, None, :2]).reshape(len(points), -1))
        observation = np.concatenate(parts, axis=1)
    action = torch.from_numpy(np.asarray(arrays["action"], dtype=np.float32))
    ends = torch.from_numpy(np.asarray(arrays["episode_ends"], dtype=np.int64))
    return Episodes(torch.from_numpy(observation), action, ends, path.stem, obs_type=obs_type)


def _read_npz(path: Path, names: Sequence[str]) -> dict[str, Any]:
    with ArrayFile.open(path) as arrays:
        if missing := [name for name in names if name not in arrays.names]:
            raise ValueError(f"{path} has no {', '.join(missing)}; it has {', '.join(arrays.names)}")
        return {name: arrays.read(name) for name in names}


def _read_zarr(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    with require_extra("pusht", "reading a Zarr store"):
        import zarr
    group: Any = zarr.open_group(str(path), mode="r")
    arrays: dict[str, NDArray[Any]] = {}
    for name in names:
        key = f"meta/{name}" if name == "episode_ends" else f"data/{name}"
        if key not in group:
            raise ValueError(f"{path} has no {key}: it is not a replay store, or is cut short")
        arrays[name] = _read_chunks(path, key, group[key], arrays.get("episode_ends"))
    return arrays


def _read_chunks(path: Path, name: str, array: Any, ends: NDArray[Any] | None) -> NDArray[Any]:
    """Read an array; ValueError names the episode of a chunk that is missing or damaged.

    Zarr itself reads a missing chunk as zeros.
    """
    chunks = [range(-(-size // step)) for size, step in zip(array.shape, array.chunks, strict=True)]
    parts = [np.asarray(array[:0])]
    for first in chunks[0]:
        row = first * array.chunks[0]
        try:
            for index in itertools.product([first], *chunks[1:]):
                dotted, nested = (separator.join(map(str, index)) for separator in "./")
                files = (dotted, nested, f"c/{nested}", f"c.{dotted}")  # of formats 2 and 3
                if not any((path / name / file).is_file() for file in files):
                    raise FileNotFoundError("it is missing")
            parts.append(np.asarray(array[row : row + array.chunks[0]]))
        except READ_ERRORS as error:
            where = "" if ends is None else f", in episode {int(np.searchsorted(ends, row, side='right'))},"
            text = f"{path} is cut short: the chunk of {name} from row {row} on{where} cannot be read ({error})"
            raise ValueError(f"{text}; download the store again") from error
    return np.concatenate(parts)


# -- LeRobot --------------------------------------------------------------------------------------


def _read_lerobot(path: Path) -> Episodes:
    """Read version 2 (one file per episode) or 3 (several episodes per file)."""
    with require_extra("train", "reading LeRobot's parquet files"):
        import pandas as pd
        import pyarrow.parquet as pq
    tables, needed = [], {STATE, "action", "episode_index", "frame_index"}
    for file in sorted(path.glob("data/chunk-*/*.parquet")):
        try:
            names = set(pq.read_schema(file).names)
            if missing := needed - names:
                raise ValueError(f"it has no {', '.join(sorted(missing))}")
            tables.append(pd.read_parquet(file, columns=[*needed, *({ENVIRONMENT} & names)]))
        except READ_ERRORS as error:
            raise ValueError(f"{file} cannot be read as LeRobot's: {error}") from error
    table = pd.concat(tables).sort_values(["episode_index", "frame_index"])
    episode, frame = table["episode_index"].to_numpy(), table["frame_index"].to_numpy()
    _check_complete(path, episode, frame, table.groupby("episode_index").cumcount().to_numpy())

    def vectors(name: str) -> NDArray[np.float32]:
        sizes = table[name].str.len().to_numpy()
        if len(wrong := np.flatnonzero(sizes != sizes[0])):
            raise ValueError(
                f"{path}: {name} of episode {int(episode[wrong[0]])} has "
                f"{table[name].iloc[wrong[0]]}, where {sizes[0]} numbers were expected"
            )
        return np.stack(table[name]).astype(np.float32)

    parts = [vectors(name) for name in (ENVIRONMENT, STATE) if name in table]
    obs_type = LEROBOT_OBS_TYPES.get(tuple(part.shape[1] for part in parts), "")
    return Episodes(
        torch.from_numpy(np.concatenate(parts, axis=1)),
        torch.from_numpy(vectors("action")),
        torch.tensor(table.groupby("episode_index").size().cumsum().to_numpy()),
        name=path.name,
        note=AGENT_ONLY if obs_type == "agent" else "",
        obs_type=obs_type,
    )


def _check_complete(path: Path, episode: NDArray[Any], frame: NDArray[Any], expected: NDArray[Any]) -> None:
    """Raise ValueError if an episode or a frame is missing."""
    info = path / "meta" / "info.json"
    total = int(episode[-1]) + 1
    if info.is_file():
        total = from_dict(int, read_record(info).get("total_episodes"), f"{info}: total_episodes")
    error = None
    if len(missing := np.setdiff1d(np.arange(total), episode)):
        error = f"episode {int(missing[0])} of {total} is missing"
    elif len(wrong := np.flatnonzero(frame != expected)):
        number, at, due = (int(values[wrong[0]]) for values in (episode, frame, expected))
        error = f"episode {number} has frame {at} where {due} was expected"
    if error:
        raise ValueError(f"{path} is cut short: {error}; download it again")
