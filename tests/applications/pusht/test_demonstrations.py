import numpy as np
import pytest
import torch

from fixtures.demonstrations import replay_arrays, write_lerobot
from immiscible_diffusion.applications.pusht.demonstrations import AGENT_ONLY, load_demonstrations


def write_zarr(folder, arrays, chunk=16):
    """In zarr's format 2, as Diffusion Policy's stores are."""
    zarr = pytest.importorskip("zarr", "3")
    root = zarr.open_group(str(folder), mode="w", zarr_format=2)
    for name, values in arrays.items():
        group = root.require_group("meta" if name == "episode_ends" else "data")
        chunks = (min(chunk, len(values)), *values.shape[1:])
        array = group.create_array(name, shape=values.shape, dtype=values.dtype, chunks=chunks)
        array[:] = values
    return folder


def observations(arrays, kind):
    if kind == "state":
        return arrays["state"]
    points = arrays["keypoint"].reshape(len(arrays["state"]), 18)
    agent = arrays["state"][:, :2]
    far = (arrays["keypoint"] - agent[:, None]).reshape(len(agent), 18)
    return np.concatenate([points, agent] + [far] * (kind == "relative"), axis=1)


@pytest.mark.parametrize("kind", ["keypoint", "state", "relative"])
@pytest.mark.parametrize("store", ["zarr", "npz"])
def test_a_store_is_read_as_it_was_written(tmp_path, store, kind):
    arrays = replay_arrays()
    path = tmp_path / f"replay.{store}"
    np.savez(path, **arrays) if store == "npz" else write_zarr(path, arrays)
    episodes = load_demonstrations(path, obs_type=kind)
    np.testing.assert_array_equal(episodes.observation, observations(arrays, kind))
    np.testing.assert_array_equal(episodes.action, arrays["action"])
    assert episodes.ends.tolist() == arrays["episode_ends"].tolist()
    assert (episodes.name, episodes.obs_type) == ("replay", kind)


def test_a_missing_chunk_names_the_episode(tmp_path):
    """Zarr itself reads zeros there."""
    folder = write_zarr(tmp_path / "replay.zarr", replay_arrays())
    (folder / "data" / "action" / "3.0").unlink()
    with pytest.raises(ValueError, match=r"data/action from row 48 on, .* episode 1, cannot be read"):
        load_demonstrations(folder)


def test_a_damaged_chunk_names_the_episode(tmp_path):
    folder = write_zarr(tmp_path / "replay.zarr", replay_arrays())
    chunk = folder / "data" / "state" / "4.0"
    chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(ValueError, match=r"data/state from row 64 on, .* episode 2, cannot be read"):
        load_demonstrations(folder)


@pytest.mark.parametrize("name", ["action", "keypoint", "episode_ends"])
def test_a_store_without_an_array(tmp_path, name):
    arrays = replay_arrays()
    del arrays[name]
    with pytest.raises(ValueError, match=rf"has no (data|meta)/{name}"):
        load_demonstrations(write_zarr(tmp_path / "replay.zarr", arrays))
    np.savez(tmp_path / "replay.npz", **arrays)
    with pytest.raises(ValueError, match=f"has no {name}; it has"):
        load_demonstrations(tmp_path / "replay.npz")


def test_rows_that_are_missing(tmp_path):
    arrays = replay_arrays()
    arrays["action"] = arrays["action"][:40]
    with pytest.raises(ValueError, match="episode 1 ends at row 51, but there are 40 actions"):
        load_demonstrations(write_zarr(tmp_path / "replay.zarr", arrays))
    arrays["keypoint"] = arrays["keypoint"][:40]
    np.savez(tmp_path / "replay.npz", **arrays)
    with pytest.raises(ValueError, match="40 rows of keypoint, 76 of state"):
        load_demonstrations(tmp_path / "replay.npz")


def test_actions_that_are_not_finite(tmp_path):
    arrays = replay_arrays()
    arrays["action"][52, 0] = np.nan
    np.savez(tmp_path / "replay.npz", **arrays)
    with pytest.raises(ValueError, match="action of episode 2, step 1 is not finite"):
        load_demonstrations(tmp_path / "replay.npz")


def test_actions_of_another_dimension(tmp_path):
    arrays = replay_arrays()
    arrays["action"] = np.repeat(arrays["action"], 2, axis=1)[:, :3]
    np.savez(tmp_path / "replay.npz", **arrays)
    with pytest.raises(ValueError, match="actions have 3 dimensions, 2 were expected"):
        load_demonstrations(tmp_path / "replay.npz")
    assert load_demonstrations(tmp_path / "replay.npz", actions=None).action.shape[1] == 3


def test_what_is_not_a_store(tmp_path):
    with pytest.raises(ValueError, match="holds no demonstrations; expected a Zarr store"):
        load_demonstrations(tmp_path)
    with pytest.raises(ValueError, match="obs_type must be one of keypoint, state, relative"):
        load_demonstrations(tmp_path, obs_type="pixels")
    (tmp_path / "replay.npz").write_bytes(b"PK junk")
    with pytest.raises(ValueError, match=r"replay.npz cannot be read"):
        load_demonstrations(tmp_path / "replay.npz")


# -- LeRobot --------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_file", [1, 2, 5])
def test_lerobot_is_read_as_it_was_written(tmp_path, per_file):
    pytest.importorskip("pyarrow")
    table = write_lerobot(tmp_path / "pusht", per_file=per_file)
    episodes = load_demonstrations(tmp_path / "pusht")
    torch.testing.assert_close(episodes.observation, torch.tensor(table["observation.state"]))
    torch.testing.assert_close(episodes.action, torch.tensor(table["action"]))
    assert episodes.ends.tolist() == [20, 51, 76]
    assert (episodes.name, episodes.obs_type, episodes.note) == ("pusht", "agent", AGENT_ONLY)


def test_lerobot_with_the_corners_of_the_block(tmp_path):
    pytest.importorskip("pyarrow")
    corners = np.random.default_rng(1).uniform(0, 500, (76, 16)).astype(np.float32)
    columns = {"observation.environment_state": corners.tolist()}
    write_lerobot(tmp_path / "pusht", columns=columns)
    episodes = load_demonstrations(tmp_path / "pusht")
    np.testing.assert_array_equal(episodes.observation[:, :16], corners)
    assert (episodes.obs_type, episodes.note) == ("corners", "")


def test_lerobot_frames_come_in_their_order(tmp_path):
    pytest.importorskip("pyarrow")
    order = np.random.default_rng(1).permutation(76)
    frame = np.concatenate([np.arange(length) for length in (20, 31, 25)])
    episode = np.repeat(np.arange(3), (20, 31, 25))
    action = np.stack([episode, frame], axis=1).astype(np.float32)
    columns = {"episode_index": episode, "frame_index": frame, "action": action}
    shuffled = {name: values[order].tolist() for name, values in columns.items()}
    write_lerobot(tmp_path / "pusht", columns=shuffled, per_file=5)
    np.testing.assert_array_equal(load_demonstrations(tmp_path / "pusht").action, action)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda data: data[0].unlink(), "episode 0 of 3 is missing"),
        (lambda data: data[-1].unlink(), "episode 2 of 3 is missing"),
        (lambda data: data[1].write_bytes(data[1].read_bytes()[:300]), "cannot be read"),
    ],
)
def test_lerobot_cut_short(tmp_path, broken, message):
    pytest.importorskip("pyarrow")
    write_lerobot(tmp_path / "pusht", per_file=1)
    broken(sorted((tmp_path / "pusht" / "data" / "chunk-000").iterdir()))
    with pytest.raises(ValueError, match=message):
        load_demonstrations(tmp_path / "pusht")


def test_lerobot_with_a_frame_missing(tmp_path):
    pytest.importorskip("pyarrow")
    frame = np.concatenate([np.arange(length) for length in (20, 31, 25)])
    frame[20 + 9 :] += 1
    write_lerobot(tmp_path / "pusht", columns={"frame_index": frame})
    with pytest.raises(ValueError, match="episode 1 has frame 10 where 9 was expected"):
        load_demonstrations(tmp_path / "pusht")


def test_lerobot_with_ragged_actions(tmp_path):
    pytest.importorskip("pyarrow")
    action = np.zeros((76, 2), dtype=np.float32).tolist()
    action[60] = [1.0]
    write_lerobot(tmp_path / "pusht", columns={"action": action})
    with pytest.raises(ValueError, match=r"action of episode 2 has \[1\.\], where 2 numbers"):
        load_demonstrations(tmp_path / "pusht")


def test_the_human_demonstrations(shared_data):
    episodes = load_demonstrations(shared_data / "pusht" / "pusht_cchi_v7_replay.npz")
    assert (len(episodes), len(episodes.action)) == (206, 25_650)
    assert int(episodes.lengths.min()) == 49
    assert int(episodes.lengths.max()) == 246
