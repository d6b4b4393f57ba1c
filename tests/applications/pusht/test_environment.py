import math

import numpy as np
import pytest
import torch

pytest.importorskip("gym_pusht")

from immiscible_diffusion.applications.pusht.environment import Simulator, replayed
from immiscible_diffusion.applications.pusht.states import key_points, observe, start_states

GOAL = np.array([400.0, 400.0, 256.0, 256.0, math.pi / 4])
SQUARE = "pusht/pusht_cchi_v7_replay.npz"


def off(found, wanted):
    """Largest difference of states, the angle taken round."""
    error = np.abs(found - wanted)
    error[..., 4] = np.minimum(error[..., 4], 2 * math.pi - error[..., 4])
    return error.max(axis=-1)


@pytest.fixture(scope="module")
def recorded(shared_data):
    arrays = np.load(shared_data / SQUARE)
    starts = np.append(0, arrays["episode_ends"][:-1])
    spans = zip(starts, arrays["episode_ends"], strict=True)
    return [
        (arrays["state"][a:b].astype(float), arrays["action"][a:b].astype(float)) for a, b in spans
    ]


@pytest.mark.parametrize("episode", [*range(0, 200, 20), 120, 156, 192])
def test_recorded_actions_give_the_recorded_states(recorded, episode):
    """To a thousandth of a pixel. 120, 156 and 192 begin with the agent upon the block's edge."""
    states, actions = recorded[episode]
    assert off(replayed(states, actions), states[1:]).max() < 1e-3


@pytest.mark.parametrize("episode", [50, 186])
def test_two_starts_that_were_pushed_apart(recorded, episode):
    """They began with agent and block in one place; after three steps they agree as well."""
    states, actions = recorded[episode]
    error = off(replayed(states, actions), states[1:])
    assert error[0] > 1
    assert error[3:].max() < 1e-3


@pytest.mark.slow
def test_all_recordings(recorded):
    """25,444 steps of 206 episodes: all but the first three of 50 and of 186."""
    bad = []
    for episode, (states, actions) in enumerate(recorded):
        steps = np.flatnonzero(off(replayed(states, actions), states[1:]) > 1e-3)
        bad += [(episode, int(step)) for step in steps]
    assert bad == [(episode, step) for episode in (50, 186) for step in range(3)]


def test_setting_the_angle_last_would_shift_the_block(recorded):
    """What gym-pusht's own reset does, and why it is not used."""
    states, _ = recorded[0]
    simulator = Simulator()
    simulator.reset(states[0])
    assert off(simulator.state, states[0]) < 1e-9
    simulator.table._setup()
    simulator.table._set_state(states[0])
    assert off(simulator.state, states[0]) > 10


@pytest.mark.parametrize("angle", [0.0, 1.0, math.pi, 5.0])
def test_a_state_is_set_whatever_came_before(angle):
    simulator = Simulator()
    for before in (GOAL, np.array([100, 100, 300, 200, 2.0])):
        simulator.reset(before)
        simulator.step(np.full((5, 2), 250.0))
        wanted = np.array([50.0, 60.0, 300.0, 310.0, angle])
        simulator.reset(wanted)
        assert off(simulator.state, wanted) < 1e-9


def test_the_goal_covers_itself():
    simulator = Simulator()
    simulator.reset(GOAL)
    assert simulator.coverage == pytest.approx(1)
    simulator.reset(np.array([400, 400, 100, 100, 0.0]))
    assert simulator.coverage == 0


def test_the_agent_goes_where_it_is_sent_and_a_block_far_away_rests():
    simulator = Simulator()
    start = np.array([100.0, 100.0, 350.0, 350.0, 1.0])
    simulator.reset(start)
    steps = simulator.step(np.tile([200.0, 120.0], (30, 1)))
    np.testing.assert_allclose(steps.state[-1, :2], [200, 120], atol=0.5)
    np.testing.assert_allclose(steps.state[:, 2:], np.tile(start[2:], (30, 1)), atol=1e-9)
    assert steps.state.shape == (30, 5)
    assert steps.coverage.shape == (30,)


def test_what_happened_before_a_reset_does_not_matter():
    start, actions = start_states(1)[0].numpy(), np.random.default_rng(0).uniform(50, 450, (20, 2))
    fresh, used = Simulator(), Simulator()
    used.reset(GOAL)
    used.step(actions)
    for simulator in (fresh, used):
        simulator.reset(start)
    np.testing.assert_array_equal(fresh.step(actions).state, used.step(actions).state)


@pytest.mark.parametrize("state", [[1, 2, 3, 4], [1, 2, 3, 4, math.nan]])
def test_states_that_are_none(state):
    with pytest.raises(ValueError, match="a state is five finite numbers"):
        Simulator().reset(np.array(state))


@pytest.mark.parametrize("actions", [[1.0, 2.0], [[1.0, 2.0, 3.0]], [[math.nan, 0.0]]])
def test_actions_that_are_none(actions):
    with pytest.raises(ValueError, match="finite places"):
        Simulator().step(np.array(actions))


def test_a_picture_shows_the_block_where_it_is():
    simulator = Simulator()
    simulator.reset(np.array([60.0, 60.0, 350.0, 350.0, 0.0]))
    picture = simulator.picture(64)
    assert picture.shape == (64, 64, 3)
    assert picture.dtype == np.uint8
    gray = np.array([119, 136, 153])  # light slate gray, the block's
    near = np.abs(picture.astype(int) - gray).sum(axis=2) < 60
    rows, columns = near.nonzero()
    assert abs(rows.mean() * 8 - 395) < 20  # 45 below its origin
    assert abs(columns.mean() * 8 - 350) < 20


# -- the task -------------------------------------------------------------------------------------


def test_key_points_are_the_recorded_ones(shared_data):
    arrays = np.load(shared_data / SQUARE)
    found = key_points(torch.from_numpy(arrays["state"]).double()).numpy()
    error = np.abs(found - arrays["keypoint"]).max(axis=(1, 2))
    assert np.median(error) < 1e-4
    assert np.quantile(error, 0.99) < 0.1  # where the block moves they were taken a moment apart


def test_corners_are_those_of_the_simulator():
    state = np.array([50.0, 60.0, 300.0, 310.0, 2.0])
    simulator = Simulator()
    simulator.reset(state)
    wanted = simulator.table.get_keypoints(simulator.table._block_shapes).flatten()
    found = observe(torch.from_numpy(state), "corners").numpy()
    points = {tuple(np.round(point, 6)) for point in found[:16].reshape(8, 2)}
    assert points == {tuple(np.round(point, 6)) for point in wanted.reshape(8, 2)}
    np.testing.assert_allclose(found[:16], wanted, atol=1e-9)
    np.testing.assert_array_equal(found[16:], state[:2])


@pytest.mark.parametrize(
    ("kind", "size"), [("keypoint", 20), ("relative", 38), ("state", 5), ("agent", 2)]
)
def test_observations(kind, size):
    states = start_states(4)
    seen = observe(states, kind)
    assert seen.shape == (4, size)
    turned = states + torch.tensor([0, 0, 0, 0, 2 * math.pi])
    torch.testing.assert_close(observe(turned, kind), seen, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["keypoint", "relative", "state"])
def test_a_policy_sees_what_was_recorded(shared_data, kind):
    from immiscible_diffusion.applications.pusht.demonstrations import load_demonstrations

    path = shared_data / SQUARE
    recorded = load_demonstrations(path, observation=kind)
    states = torch.from_numpy(np.load(path)["state"])
    error = (observe(states, recorded.kind) - recorded.observation).abs().amax(dim=1)
    assert float(error.median()) < 1e-3
    assert float(error.quantile(0.99)) < 0.1


def test_an_observation_that_is_none():
    with pytest.raises(
        ValueError, match="must be one of keypoint, relative, state, corners, agent"
    ):
        observe(torch.zeros(5), "pixels")


def test_start_states_are_the_published_ones():
    states = start_states()
    assert states.shape == (50, 5)
    assert torch.equal(start_states(3, first=100_002), states[2:5])
    legacy = np.random.RandomState(100_000)
    assert states[0, :2].tolist() == [legacy.randint(50, 450), legacy.randint(50, 450)]
    assert bool(((states[:, :2] >= 50) & (states[:, :2] < 450)).all())
    assert bool(((states[:, 2:4] >= 100) & (states[:, 2:4] < 400)).all())
