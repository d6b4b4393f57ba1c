import dataclasses
import math

import numpy as np
import pytest
import torch

pytest.importorskip("gym_pusht")

from immiscible_diffusion.applications.pusht.environment import Simulator
from immiscible_diffusion.applications.pusht.normalization import MinMax
from immiscible_diffusion.applications.pusht.observation_normalizer import Sight
from immiscible_diffusion.applications.pusht.policy import Planner
from immiscible_diffusion.applications.pusht.rollout import Execution, roll_out
from immiscible_diffusion.applications.pusht.states import observe, start_states
from immiscible_diffusion.applications.pusht.vector_env import Tables
from immiscible_diffusion.applications.pusht.video import film
from immiscible_diffusion.diffusion.paths import VPPath
from immiscible_diffusion.diffusion.samplers import SamplerConfig
from immiscible_diffusion.models import UNet1D

INIT_NOISES = start_states(3).numpy()
DONE = np.array([50.0, 50.0, 256.0, 256.0, math.pi / 4])  # the block upon the goal


class Recorded:
    """Goes to a place that its observation, episode and plan name; keeps what it was asked."""

    def __init__(self, horizon=16):
        self.asked, self.horizon = [], horizon

    def __call__(self, observations, *, episodes, plan):
        self.asked.append((observations, episodes, plan))
        steps = torch.arange(self.horizon)[:, None] * torch.tensor([3.0, -2.0])
        return 250 + steps + 5 * plan + 10 * episodes[:, None, None]


SHORT = Execution(steps=20)


def used(policy, starts=INIT_NOISES, execution=SHORT, workers=0):
    with Tables(len(starts), workers=workers) as tables:
        return roll_out(tables, policy, starts, execution)


@pytest.fixture(scope="module")
def run():
    policy = Recorded()
    return used(policy), policy


def test_eight_of_sixteen_are_carried_out_from_the_last_observation_on(run):
    rollouts, _ = run
    for step in range(20):
        plan, within = divmod(step, 8)
        place = 1 + within  # the first action is that of the first of two observations
        wanted = [250 + 3 * place + 5 * plan, 250 - 2 * place + 5 * plan]
        np.testing.assert_allclose(rollouts.actions[0, step], wanted)
        np.testing.assert_allclose(rollouts.actions[2, step], np.add(wanted, 20))


def test_states_are_those_of_the_simulator(run):
    rollouts, _ = run
    for episode in range(3):
        simulator = Simulator()
        simulator.reset(INIT_NOISES[episode])
        found = simulator.step(rollouts.actions[episode])
        np.testing.assert_array_equal(rollouts.states[episode, 1:], found.state)
        np.testing.assert_array_equal(rollouts.coverage[episode], found.coverage)


def test_a_policy_sees_the_last_two_states(run):
    rollouts, policy = run
    assert [plan for _, _, plan in policy.asked] == [0, 1, 2]
    for seen, episodes, plan in policy.asked:
        assert episodes.tolist() == [0, 1, 2]
        now = 8 * plan
        wanted = rollouts.states[:, [max(0, now - 1), now]]
        wanted = observe(torch.from_numpy(wanted), "keypoint").float()
        torch.testing.assert_close(seen, wanted)


def test_processes_make_no_difference(run):
    found = used(Recorded(), workers=2)
    np.testing.assert_array_equal(found.states, run[0].states)


def test_an_episode_ends_with_success_and_the_others_go_on():
    policy = Recorded()
    rollouts = used(policy, np.stack([INIT_NOISES[0], DONE, INIT_NOISES[2]]))
    assert rollouts.steps.tolist() == [20, 1, 20]
    assert rollouts.success.tolist() == [False, True, False]
    assert rollouts.score[1] == 1
    assert np.isnan(rollouts.coverage[1, 1:]).all()
    assert np.isnan(rollouts.actions[1, 1:]).all()
    assert (rollouts.states[1, 2:] == rollouts.states[1, 1]).all()
    assert [episodes.tolist() for _, episodes, _ in policy.asked] == [[0, 1, 2], [0, 2], [0, 2]]
    assert [count for _, count in rollouts.latency] == [3, 2, 2]


def test_all_done_ends_the_run():
    rollouts = used(Recorded(), np.stack([DONE, DONE]))
    assert len(rollouts.latency) == 1


def test_score_is_the_largest_coverage(run):
    rollouts, _ = run
    np.testing.assert_allclose(rollouts.score, np.minimum(1, rollouts.coverage.max(axis=1) / 0.95))


def test_the_clock_gives_the_latency():
    ticks = iter([0.0, 0.25, 1.0, 1.1, 2.0, 2.1])
    with Tables(1) as tables:
        rollouts = roll_out(
            tables, Recorded(), INIT_NOISES[:1], Execution(steps=20), clock=lambda: next(ticks)
        )
    assert rollouts.latency_ms == pytest.approx(100)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (Recorded(horizon=8), r"must plan \[B, 9 or more, 2\]"),
        (lambda *_, **__: torch.full((3, 16, 2), torch.nan), "plan for episode 0 at step 0 is not"),
        (lambda *_, **__: torch.zeros(3, 32), "must plan"),
    ],
)
def test_plans_that_are_none(policy, message):
    with pytest.raises(ValueError, match=message):
        used(policy)


def test_settings_that_are_none():
    with pytest.raises(ValueError, match="execute and steps >= 1"):
        Execution(execute=0)
    with pytest.raises(ValueError, match="observation must be one of"):
        Execution(kind="pixels")
    with Tables(2) as tables, pytest.raises(ValueError, match="a row for each of 2 tables"):
        roll_out(tables, Recorded(), INIT_NOISES)


# -- a diffusion model as a policy ----------------------------------------------------------------


@pytest.fixture(scope="module")
def planner():
    torch.manual_seed(0)
    model = UNet1D(channels=(8,), groups=4, embedding=8).build(
        (16, 2), conditions={"observation": (40,)}
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return Planner(
        model,
        VPPath("cosine", steps=100),
        SamplerConfig("ddim", steps=3, clip=1.0),
        (16, 2),
        Sight(MinMax(torch.zeros(20), torch.full((20,), 512.0))),
        MinMax(torch.full((2,), 100.0), torch.full((2,), 400.0)),
    )


def test_plans_are_in_the_range_of_the_actions(planner):
    plans = planner(100 * torch.rand(4, 2, 20), episodes=torch.arange(4), plan=0)
    assert plans.shape == (4, 16, 2)
    assert float(plans.min()) >= 100 - 1e-3
    assert float(plans.max()) <= 400 + 1e-3


def test_a_plan_depends_on_its_episode_and_number_alone(planner):
    seen = 400 * torch.rand(4, 2, 20)
    whole = planner(seen, episodes=torch.arange(4), plan=2)
    some = planner(seen[[3, 1]], episodes=torch.tensor([3, 1]), plan=2)
    torch.testing.assert_close(some, whole[[3, 1]], atol=0.05, rtol=0)
    assert not torch.allclose(planner(seen, episodes=torch.arange(4), plan=3), whole)
    other = dataclasses.replace(planner, seed=1)
    assert not torch.allclose(other(seen, episodes=torch.arange(4), plan=2), whole)


@pytest.mark.parametrize("method", ["ddim", "ddpm", "euler"])
def test_every_sampler_plans(planner, method):
    sampler = SamplerConfig(method, steps=2, clip=1.0)
    again = dataclasses.replace(planner, sampler=sampler)
    plans = again(torch.rand(2, 2, 20), episodes=torch.arange(2), plan=0)
    assert bool(plans.isfinite().all())


def test_the_matched_start_needs_its_law(planner):
    with pytest.raises(ValueError, match="do not go together"):
        dataclasses.replace(planner, sampler=SamplerConfig("ddim", init_noise="matched"))


def test_a_planner_works_on_tables(planner):
    rollouts = used(planner, INIT_NOISES[:2], Execution(steps=9))
    assert rollouts.states.shape == (2, 10, 5)
    assert np.isfinite(rollouts.actions).all()


# -- film -----------------------------------------------------------------------------------------


def test_a_film_has_a_row_for_each_policy_and_a_column_for_each_episode(run, tmp_path):
    image = pytest.importorskip("PIL.Image")
    film(tmp_path / "a.gif", {"one": run[0], "two": run[0]}, episodes=(0, 2), size=32, every=6)
    with image.open(tmp_path / "a.gif") as found:
        assert found.size == (2 * 34, 2 * (34 + 28))
        assert found.n_frames == 5  # steps 0, 6, 12, 18 and 20
        found.seek(4)
        last = np.asarray(found.convert("RGB"))
    assert (last[28:60] == last[62 + 28 : 62 + 60]).all()


@pytest.mark.parametrize("wrong", [{"episodes": (3,)}, {"episodes": ()}, {"every": 0}])
def test_a_film_of_what_there_is_not(run, tmp_path, wrong):
    pytest.importorskip("PIL")
    with pytest.raises(ValueError, match="expected episodes below 3"):
        film(tmp_path / "a.gif", {"one": run[0]}, **{"episodes": (0,), **wrong})
    assert not list(tmp_path.iterdir())
