"""Readers of recorded demonstrations: Zarr stores, LeRobot's parquet, npz."""

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from immiscible_diffusion.applications.pusht.windows import Episodes
from immiscible_diffusion.data.array_files import Arrays
from immiscible_diffusion.utils.atomic_files import read_json
from immiscible_diffusion.utils.optional_deps import require_extra

KINDS = ("keypoint", "state", "relative")
STATE, ENVIRONMENT = "observation.state", "observation.environment_state"
# gym-pusht's: the agent alone, and with the corners of the block.
LEROBOT_KINDS = {(2,): "agent", (16, 2): "corners"}
AGENT_ONLY = "observations are of the agent alone, without the block or its picture"
DAMAGED = (RuntimeError, ValueError, OSError, EOFError)  # what zarr's codecs raise


def load_demonstrations(
    source: str | Path, *, observation: str = "keypoint", actions: int | None = 2
) -> Episodes:
    """The episodes recorded in ``source``.

    Args:
        source: the folder of a Zarr store as Diffusion Policy's ``pusht_cchi_v7_replay.zarr``, an
            ``.npz`` of its arrays, or the folder of a LeRobot data set, which has
            ``data/chunk-*/*.parquet``.
        observation: of the first two: ``keypoint`` (nine points on the block, and the agent;
            ``[20]``), ``relative`` (these, and the points as seen from the agent; ``[38]``) or
            ``state`` (agent, block, angle; ``[5]``). LeRobot's are taken as they are.
        actions: dimensions that an action must have; None takes any.

    Raises:
        ValueError: no such store, one that is cut short, or numbers that are none: it names the
            episode.
    """
    path = Path(source)
    if observation not in KINDS:
        raise ValueError(f"observation must be one of {', '.join(KINDS)}, got {observation!r}")
    if path.suffix == ".npz":
        episodes = _npz(path, observation)
    elif any((path / name).is_file() for name in (".zgroup", "zarr.json", ".zmetadata")):
        episodes = _zarr(path, observation)
    elif path.is_dir() and any(path.glob("data/chunk-*/*.parquet")):
        episodes = _lerobot(path)
    else:
        raise ValueError(
            f"{path} holds no demonstrations; expected a Zarr store, an .npz of its arrays, or a "
            f"LeRobot data set with data/chunk-*/*.parquet"
        )
    found = episodes.action.shape[1]
    if actions not in (None, found):
        raise ValueError(
            f"{path}: the actions of episode 0 have {found} dimensions, {actions} were expected"
        )
    return episodes


def _episodes(path: Path, arrays: Mapping[str, Any], observation: str) -> Episodes:
    """Of Diffusion Policy's arrays, by name."""
    state = np.asarray(arrays["state"], dtype=np.float32)
    seen = state
    if observation != "state":
        points = np.asarray(arrays["keypoint"], dtype=np.float32)
        if len(points) != len(state):
            raise ValueError(f"{path}: {len(points)} rows of keypoint, {len(state)} of state")
        parts = [points.reshape(len(points), -1), state[:, :2]]
        if observation == "relative":
            parts.append((points - state[:, None, :2]).reshape(len(points), -1))
        seen = np.concatenate(parts, axis=1)
    return Episodes(
        torch.from_numpy(seen),
        torch.from_numpy(np.asarray(arrays["action"], dtype=np.float32)),
        torch.from_numpy(np.asarray(arrays["episode_ends"], dtype=np.int64)),
        name=path.stem,
        kind=observation,
    )


def _wanted(observation: str) -> list[str]:
    return ["state", "action", *([] if observation == "state" else ["keypoint"])]


def _npz(path: Path, observation: str) -> Episodes:
    names = [*_wanted(observation), "episode_ends"]
    with Arrays.open(path) as arrays:
        if missing := [name for name in names if name not in arrays.names]:
            raise ValueError(
                f"{path} has no {', '.join(missing)}; there are: {', '.join(arrays.names)}"
            )
        return _episodes(path, {name: arrays.read(name) for name in names}, observation)


# -- Zarr -----------------------------------------------------------------------------------------


def _zarr(path: Path, observation: str) -> Episodes:
    with require_extra("pusht", "reading a Zarr store"):
        import zarr
    group: Any = zarr.open_group(str(path), mode="r")
    names = {name: f"data/{name}" for name in _wanted(observation)}
    for name in ("meta/episode_ends", *names.values()):
        if name not in group:
            raise ValueError(f"{path} has no {name}: it is no replay store, or is cut short")
    ends = _whole(path, group["meta/episode_ends"], "meta/episode_ends", None)
    arrays = {key: _whole(path, group[name], name, ends) for key, name in names.items()}
    return _episodes(path, {**arrays, "episode_ends": ends}, observation)


def _whole(path: Path, array: Any, name: str, ends: Any) -> NDArray[Any]:
    """All of an array; ValueError names the episode of the first chunk that is not there."""
    for index in itertools.product(
        *(range(-(-size // step)) for size, step in zip(array.shape, array.chunks, strict=True))
    ):
        if not _chunk_exists(path / name, index):
            raise _cut_short(path, name, index[0] * array.chunks[0], ends, "is missing")
    try:
        return np.asarray(array[:])
    except DAMAGED as error:
        for row in range(0, array.shape[0], array.chunks[0]):
            with _naming(path, name, row, ends):
                array[row : row + array.chunks[0]]
        raise ValueError(f"{path}: {name} cannot be read: {error}") from error


def _chunk_exists(folder: Path, index: tuple[int, ...]) -> bool:
    """Zarr reads a chunk that is missing as zeros, without a word."""
    dotted, nested = (sign.join(map(str, index)) for sign in "./")
    return any((folder / name).is_file() for name in (dotted, nested, f"c/{nested}", f"c.{dotted}"))


@contextmanager
def _naming(path: Path, name: str, row: int, ends: Any) -> Iterator[None]:
    try:
        yield
    except DAMAGED as error:
        raise _cut_short(path, name, row, ends, f"is damaged ({error})") from error


def _cut_short(path: Path, name: str, row: int, ends: Any, how: str) -> ValueError:
    where = ""
    if ends is not None:
        where = f", which begins in episode {int(np.searchsorted(ends, row, side='right'))}"
    return ValueError(
        f"{path} is cut short: the chunk of {name} from row {row} on{where}, {how}; fetch the "
        f"store again"
    )


# -- LeRobot --------------------------------------------------------------------------------------


def _lerobot(path: Path) -> Episodes:
    """Versions 2 (a file an episode) and 3 (files of many)."""
    with require_extra("train", "reading LeRobot's parquet files"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    files = sorted(path.glob("data/chunk-*/*.parquet"))
    tables = []
    for file in files:
        try:
            names = set(pq.read_schema(file).names)
            _check_columns(file, names)
            wanted = [ENVIRONMENT] * (ENVIRONMENT in names) + [STATE, "action"]
            tables.append(pq.read_table(file, columns=[*wanted, "episode_index", "frame_index"]))
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{file} (episode file) cannot be read: {error}") from error
    table = pa.concat_tables(tables).sort_by(
        [("episode_index", "ascending"), ("frame_index", "ascending")]
    )
    episode = np.asarray(table["episode_index"].to_numpy(), dtype=np.int64)
    _check_frames(path, episode, np.asarray(table["frame_index"].to_numpy(), dtype=np.int64))
    columns = [name for name in (ENVIRONMENT, STATE) if name in table.column_names]
    parts = [_vectors(path, table, name, episode) for name in columns]
    kind = LEROBOT_KINDS.get(tuple(part.shape[1] for part in parts), "")
    return Episodes(
        torch.from_numpy(np.concatenate(parts, axis=1)),
        torch.from_numpy(_vectors(path, table, "action", episode)),
        torch.from_numpy(np.append(np.flatnonzero(np.diff(episode)) + 1, len(episode))),
        name=path.name,
        note=AGENT_ONLY if kind == "agent" else "",
        kind=kind,
    )


def _check_columns(file: Path, names: set[str]) -> None:
    if missing := {STATE, "action", "episode_index", "frame_index"} - names:
        raise ValueError(f"{file} has no {', '.join(sorted(missing))}; it is no LeRobot data set")


def _check_frames(path: Path, episode: NDArray[np.int64], frame: NDArray[np.int64]) -> None:
    """Raise ValueError if an episode or a frame is missing."""
    info = path / "meta" / "info.json"
    found = np.unique(episode)
    total = read_json(info).get("total_episodes") if info.is_file() else int(found[-1]) + 1
    lost = np.setdiff1d(np.arange(total), found)
    if len(lost):
        raise ValueError(
            f"{path} is cut short: episode {int(lost[0])} of {total} is missing; fetch it again"
        )
    starts = np.searchsorted(episode, found)
    expected = np.arange(len(episode)) - np.repeat(starts, np.diff(np.append(starts, len(episode))))
    wrong = np.flatnonzero(frame != expected)
    if len(wrong):
        raise ValueError(
            f"{path} is cut short: episode {int(episode[wrong[0]])} has frame "
            f"{int(frame[wrong[0]])} where {int(expected[wrong[0]])} was expected"
        )


def _vectors(path: Path, table: Any, name: str, episode: NDArray[np.int64]) -> NDArray[np.float32]:
    """A column of lists as ``[N, dim]``."""
    rows = table[name].to_pylist()
    size = len(rows[0] or ())
    for row, values in enumerate(rows):
        if values is None or len(values) != size or None in values:
            raise ValueError(
                f"{path}: {name} of episode {int(episode[row])} has {values}, where {size} numbers "
                f"were expected"
            )
    return np.asarray(rows, dtype=np.float32).reshape(len(rows), size)
