import contextlib
import math
import multiprocessing as mp
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

pytest.importorskip("gym_pusht")

from immiscible_diffusion.applications.pusht.environment import PushT, VectorEnv
from immiscible_diffusion.applications.pusht.states import key_points, observe, start_states

GOAL = np.array([400.0, 400.0, 256.0, 256.0, math.pi / 4])
SQUARE = "pusht/pusht_cchi_v7_replay.npz"


def off(states, expected):
    """Largest difference of states, the angle taken round."""
    error = np.abs(states - expected)
    error[..., 4] = np.minimum(error[..., 4], 2 * math.pi - error[..., 4])
    return error.max(axis=-1)


def replay(states, actions):
    """Simulate recorded actions, every step from its recorded state; the agent keeps its speed."""
    env, results = PushT(), []
    env.reset(states[0])
    for before, target in zip(states[:-1], actions[:-1], strict=True):
        env.set_state(before)
        results.append(env.step(target[None]).state[0])
    return np.array(results)


@pytest.fixture(scope="module")
def recorded(shared_data):
    arrays = np.load(shared_data / SQUARE)
    starts = np.append(0, arrays["episode_ends"][:-1])
    spans = zip(starts, arrays["episode_ends"], strict=True)
    return [(arrays["state"][a:b].astype(float), arrays["action"][a:b].astype(float)) for a, b in spans]


@pytest.mark.parametrize("episode", [*range(0, 200, 20), 120, 156, 192])
def test_recorded_actions_give_the_recorded_states(recorded, episode):
    """To a thousandth of a pixel. 120, 156 and 192 begin with the agent upon the block's edge."""
    states, actions = recorded[episode]
    assert off(replay(states, actions), states[1:]).max() < 1e-3


@pytest.mark.parametrize("episode", [50, 186])
def test_two_starts_that_were_pushed_apart(recorded, episode):
    """They began with agent and block in one place; after three steps they agree as well."""
    states, actions = recorded[episode]
    error = off(replay(states, actions), states[1:])
    assert error[0] > 1
    assert error[3:].max() < 1e-3


@pytest.mark.slow
def test_all_recordings(recorded):
    """25,444 steps of 206 episodes: all but the first three of 50 and of 186."""
    bad = []
    for episode, (states, actions) in enumerate(recorded):
        steps = np.flatnonzero(off(replay(states, actions), states[1:]) > 1e-3)
        bad += [(episode, int(step)) for step in steps]
    assert bad == [(episode, step) for episode in (50, 186) for step in range(3)]


def test_setting_the_angle_last_would_shift_the_block(recorded):
    """What gym-pusht's own reset does, and why it is not used."""
    states, _ = recorded[0]
    env = PushT()
    env.reset(states[0])
    assert off(env.env.get_obs(), states[0]) < 1e-9
    env.env._setup()
    env.env._set_state(states[0])
    assert off(env.env.get_obs(), states[0]) > 10


@pytest.mark.parametrize("angle", [0.0, 1.0, math.pi, 5.0])
def test_a_state_is_set_whatever_came_before(angle):
    env = PushT()
    for before in (GOAL, np.array([100, 100, 300, 200, 2.0])):
        env.reset(before)
        env.step(np.full((5, 2), 250.0))
        expected = np.array([50.0, 60.0, 300.0, 310.0, angle])
        env.reset(expected)
        assert off(env.env.get_obs(), expected) < 1e-9


def test_the_goal_covers_itself():
    env = PushT()
    env.reset(GOAL)
    assert env.env._get_coverage() == pytest.approx(1)
    env.reset(np.array([400, 400, 100, 100, 0.0]))
    assert env.env._get_coverage() == 0


def test_the_agent_goes_where_it_is_sent_and_a_block_far_away_rests():
    env = PushT()
    start = np.array([100.0, 100.0, 350.0, 350.0, 1.0])
    env.reset(start)
    steps = env.step(np.tile([200.0, 120.0], (30, 1)))
    np.testing.assert_allclose(steps.state[-1, :2], [200, 120], atol=0.5)
    np.testing.assert_allclose(steps.state[:, 2:], np.tile(start[2:], (30, 1)), atol=1e-9)
    assert steps.state.shape == (30, 5)
    assert steps.coverage.shape == (30,)


def test_what_happened_before_a_reset_does_not_matter():
    start, actions = start_states(1)[0].numpy(), np.random.default_rng(0).uniform(50, 450, (20, 2))
    fresh, used = PushT(), PushT()
    used.reset(GOAL)
    used.step(actions)
    for env in (fresh, used):
        env.reset(start)
    np.testing.assert_array_equal(fresh.step(actions).state, used.step(actions).state)


@pytest.mark.parametrize("state", [[1, 2, 3, 4], [1, 2, 3, 4, math.nan]])
def test_invalid_states_raise(state):
    with pytest.raises(ValueError, match="a state is five finite numbers"):
        PushT().reset(np.array(state))


@pytest.mark.parametrize("actions", [[1.0, 2.0], [[1.0, 2.0, 3.0]], [[math.nan, 0.0]]])
def test_invalid_actions_raise(actions):
    with pytest.raises(ValueError, match="finite positions"):
        PushT().step(np.array(actions))


def test_an_image_shows_the_block_where_it_is():
    env = PushT()
    image = env.render(np.array([60.0, 60.0, 350.0, 350.0, 0.0]), 64)
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8
    gray = np.array([119, 136, 153])  # light slate gray, the block's
    near = np.abs(image.astype(int) - gray).sum(axis=2) < 60
    rows, columns = near.nonzero()
    assert abs(rows.mean() * 8 - 395) < 20  # 45 below its origin
    assert abs(columns.mean() * 8 - 350) < 20


# -- states --------------------------------------------------------------------------------------


def test_key_points_are_the_recorded_ones(shared_data):
    arrays = np.load(shared_data / SQUARE)
    points = key_points(torch.from_numpy(arrays["state"]).double()).numpy()
    error = np.abs(points - arrays["keypoint"]).max(axis=(1, 2))
    assert np.median(error) < 1e-4
    assert np.quantile(error, 0.99) < 0.1  # where the block moves they were taken a moment apart


def test_corners_are_those_of_the_env():
    state = np.array([50.0, 60.0, 300.0, 310.0, 2.0])
    env = PushT()
    env.reset(state)
    expected = env.env.get_keypoints(env.env._block_shapes).flatten()
    corners = observe(torch.from_numpy(state), "corners").numpy()
    points = {tuple(np.round(point, 6)) for point in corners[:16].reshape(8, 2)}
    assert points == {tuple(np.round(point, 6)) for point in expected.reshape(8, 2)}
    np.testing.assert_allclose(corners[:16], expected, atol=1e-9)
    np.testing.assert_array_equal(corners[16:], state[:2])


@pytest.mark.parametrize(("kind", "size"), [("keypoint", 20), ("relative", 38), ("state", 5), ("agent", 2)])
def test_observations(kind, size):
    states = start_states(4)
    observations = observe(states, kind)
    assert observations.shape == (4, size)
    turned = states + torch.tensor([0, 0, 0, 0, 2 * math.pi])
    torch.testing.assert_close(observe(turned, kind), observations, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["keypoint", "relative", "state"])
def test_a_policy_observes_what_was_recorded(shared_data, kind):
    from immiscible_diffusion.applications.pusht.demonstrations import load_demonstrations

    path = shared_data / SQUARE
    recorded = load_demonstrations(path, obs_type=kind)
    states = torch.from_numpy(np.load(path)["state"])
    error = (observe(states, recorded.obs_type) - recorded.observation).abs().amax(dim=1)
    assert float(error.median()) < 1e-3
    assert float(error.quantile(0.99)) < 0.1


def test_an_unknown_obs_type_raises():
    with pytest.raises(ValueError, match="must be one of keypoint, relative, state, corners, agent"):
        observe(torch.zeros(5), "pixels")


def test_start_states_are_the_published_ones():
    states = start_states()
    assert states.shape == (50, 5)
    assert torch.equal(start_states(3, first=100_002), states[2:5])
    legacy = np.random.RandomState(100_000)
    assert states[0, :2].tolist() == [legacy.randint(50, 450), legacy.randint(50, 450)]
    assert bool(((states[:, :2] >= 50) & (states[:, :2] < 450)).all())
    assert bool(((states[:, 2:4] >= 100) & (states[:, 2:4] < 400)).all())


# -- many environments ----------------------------------------------------------------------------

STARTS = start_states(3).numpy()
ACTIONS = np.random.default_rng(0).uniform(50, 450, (3, 6, 2))


@pytest.fixture(scope="module")
def alone():
    with VectorEnv(3) as env:
        env.reset(STARTS)
        return env.step(ACTIONS)


def children():
    return [process for process in mp.active_children() if process.name.startswith("Spawn")]


@pytest.mark.subprocess
def test_workers_do_what_one_process_does_and_end(alone):
    before = children()
    with VectorEnv(3, workers=2) as env:
        env.reset(STARTS)
        steps = env.step(ACTIONS)
        assert len(children()) == len(before) + 2
    np.testing.assert_array_equal(steps.state, alone.state)
    np.testing.assert_array_equal(steps.coverage, alone.coverage)
    assert children() == before


def test_some_envs_go_on_while_others_rest(alone):
    with VectorEnv(3) as env:
        env.reset(STARTS)
        first = env.step(ACTIONS[[2, 0], :3], [2, 0])
        rest = env.step(ACTIONS[[0, 2], 3:], [0, 2])
    np.testing.assert_array_equal(first.state, alone.state[[2, 0], :3])
    np.testing.assert_array_equal(rest.state, alone.state[[0, 2], 3:])


@pytest.mark.subprocess
def test_an_error_in_a_worker_is_raised_and_leaves_the_envs_in_use(alone):
    with VectorEnv(3, workers=1) as env:
        env.reset(STARTS)
        with pytest.raises(ValueError, match="actions must be finite positions"):
            env.step(np.full((3, 2, 2), np.nan))
        env.reset(STARTS)
        np.testing.assert_array_equal(env.step(ACTIONS).state, alone.state)


@pytest.mark.subprocess
def test_processes_end_with_an_error_in_the_with():
    class Stop(Exception):
        pass

    def fail_within(error):
        with VectorEnv(2, workers=2) as env:
            env.reset(STARTS[:2])
            raise error

    before = children()
    with pytest.raises(Stop):
        fail_within(Stop)
    assert children() == before


@pytest.mark.subprocess
def test_a_killed_process_raises_and_the_others_end():
    before = children()
    with VectorEnv(2, workers=2) as env:
        env.reset(STARTS[:2])
        [victim] = env._pools[0]._processes.values()
        os.kill(victim.pid, signal.SIGKILL)
        victim.join()
        with pytest.raises(RuntimeError, match="a process with Push-T environments ended"):
            env.reset(STARTS[:2])
    assert children() == before


SCRIPT = """
import signal
import numpy as np
from immiscible_diffusion.applications.pusht.environment import VectorEnv
from immiscible_diffusion.applications.pusht.states import start_states

if __name__ == "__main__":
    # A job in the background inherits that it is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with VectorEnv(2, workers=2) as env:
        env.reset(start_states(2).numpy())
        pids = [pid for pool in env._pools for pid in pool._processes]
        print(*pids, flush=True)
        while True:
            env.step(np.full((2, 8, 2), 250.0))
"""


@pytest.fixture
def stepping(tmp_path):
    """A process that steps its environments for ever, and the processes these are in."""
    (tmp_path / "use.py").write_text(SCRIPT)
    run = subprocess.Popen(
        [sys.executable, str(tmp_path / "use.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    pids = [int(pid) for pid in run.stdout.readline().split()]
    assert len(pids) == 2, run.stderr.read()
    time.sleep(0.2)
    yield run, pids
    with contextlib.suppress(ProcessLookupError):
        os.killpg(run.pid, signal.SIGKILL)  # nothing goes on after a test


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.subprocess
def test_ctrl_c_ends_everything(stepping):
    """To the whole group, as a terminal sends it, while the environments are being stepped."""
    run, pids = stepping
    os.killpg(run.pid, signal.SIGINT)
    _, error = run.communicate(timeout=120)
    assert run.returncode != 0
    assert error.count("KeyboardInterrupt") == 1  # of the caller; the workers are silent
    assert not any(map(is_running, pids))


@pytest.mark.subprocess
def test_processes_end_with_a_caller_that_is_killed(stepping):
    run, pids = stepping
    run.kill()
    run.wait()
    deadline = time.monotonic() + 60
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_envs_are_used_inside_their_with():
    env = VectorEnv(2)
    with pytest.raises(ValueError, match="closed"):
        env.reset(STARTS[:2])
    with env:
        pass
    with pytest.raises(ValueError, match="closed"):
        env.reset(STARTS[:2])


def test_invalid_counts_raise():
    with pytest.raises(ValueError, match="count >= 1"):
        VectorEnv(0)
    with VectorEnv(2) as env, pytest.raises(ValueError, match="a row for each of 2 envs"):
        env.reset(STARTS)
