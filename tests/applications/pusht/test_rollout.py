import dataclasses
import math

import numpy as np
import pytest
import torch

pytest.importorskip("gym_pusht")

from immiscible_diffusion.applications.pusht.environment import PushT, VectorEnv
from immiscible_diffusion.applications.pusht.normalization import LinearNormalizer, PolicyNormalizer
from immiscible_diffusion.applications.pusht.policy import DiffusionPolicy, sample_actions
from immiscible_diffusion.applications.pusht.rollout import rollout
from immiscible_diffusion.applications.pusht.states import observe, start_states
from immiscible_diffusion.applications.pusht.video import save_video
from immiscible_diffusion.diffusion.paths import VPPath
from immiscible_diffusion.diffusion.pipeline import SamplingPipeline
from immiscible_diffusion.diffusion.samplers import SamplerConfig
from immiscible_diffusion.models import UNet1D

STARTS = start_states(3).numpy()
DONE = np.array([50.0, 50.0, 256.0, 256.0, math.pi / 4])  # the block upon the goal


class RecordingPolicy:
    """Goes to positions that depend on episode and chunk; records its calls."""

    def __init__(self, horizon=16):
        self.calls, self.horizon = [], horizon

    def __call__(self, observations, *, episodes, chunk):
        self.calls.append((observations, episodes, chunk))
        steps = torch.arange(self.horizon)[:, None] * torch.tensor([3.0, -2.0])
        return 250 + steps + 5 * chunk + 10 * episodes[:, None, None]


def run_policy(policy, starts=STARTS, workers=0, **options):
    with VectorEnv(len(starts), workers=workers) as env:
        return rollout(env, policy, starts, **{"max_steps": 20, **options})


@pytest.fixture(scope="module")
def run():
    policy = RecordingPolicy()
    return run_policy(policy), policy


def test_eight_of_sixteen_are_carried_out_from_the_last_observation_on(run):
    rollouts, _ = run
    for step in range(20):
        chunk, within = divmod(step, 8)
        place = 1 + within  # the first action is that of the first of two observations
        expected = [250 + 3 * place + 5 * chunk, 250 - 2 * place + 5 * chunk]
        np.testing.assert_allclose(rollouts.actions[0, step], expected)
        np.testing.assert_allclose(rollouts.actions[2, step], np.add(expected, 20))


def test_states_are_those_of_the_simulator(run):
    rollouts, _ = run
    for episode in range(3):
        env = PushT()
        env.reset(STARTS[episode])
        expected = env.step(rollouts.actions[episode])
        np.testing.assert_array_equal(rollouts.states[episode, 1:], expected.state)
        np.testing.assert_array_equal(rollouts.coverage[episode], expected.coverage)


def test_a_policy_observes_the_last_two_states(run):
    rollouts, policy = run
    assert [chunk for _, _, chunk in policy.calls] == [0, 1, 2]
    for observations, episodes, chunk in policy.calls:
        assert episodes.tolist() == [0, 1, 2]
        now = 8 * chunk
        expected = rollouts.states[:, [max(0, now - 1), now]]
        expected = observe(torch.from_numpy(expected), "keypoint").float()
        torch.testing.assert_close(observations, expected)


@pytest.mark.subprocess
def test_processes_make_no_difference(run):
    rollouts = run_policy(RecordingPolicy(), workers=2)
    np.testing.assert_array_equal(rollouts.states, run[0].states)


def test_an_episode_ends_with_success_and_the_others_go_on():
    policy = RecordingPolicy()
    rollouts = run_policy(policy, np.stack([STARTS[0], DONE, STARTS[2]]))
    assert rollouts.steps.tolist() == [20, 1, 20]
    assert rollouts.success.tolist() == [False, True, False]
    assert rollouts.score[1] == 1
    assert np.isnan(rollouts.coverage[1, 1:]).all()
    assert np.isnan(rollouts.actions[1, 1:]).all()
    assert (rollouts.states[1, 2:] == rollouts.states[1, 1]).all()
    assert [episodes.tolist() for _, episodes, _ in policy.calls] == [[0, 1, 2], [0, 2], [0, 2]]
    assert [count for _, count in rollouts.latency] == [3, 2, 2]


def test_all_done_ends_the_run():
    rollouts = run_policy(RecordingPolicy(), np.stack([DONE, DONE]))
    assert len(rollouts.latency) == 1


def test_score_is_the_largest_coverage(run):
    rollouts, _ = run
    np.testing.assert_allclose(rollouts.score, np.minimum(1, rollouts.coverage.max(axis=1) / 0.95))


def test_the_clock_gives_the_latency():
    ticks = iter([0.0, 0.25, 1.0, 1.1, 2.0, 2.1])
    rollouts = run_policy(RecordingPolicy(), STARTS[:1], clock=lambda: next(ticks))
    assert rollouts.latency_ms == pytest.approx(100)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (RecordingPolicy(horizon=8), r"expected actions \[B, 9 or more, 2\]"),
        (lambda *_, **__: torch.full((3, 16, 2), torch.nan), "actions for episode 0 at step 0 are not"),
        (lambda *_, **__: torch.zeros(3, 32), "expected actions"),
    ],
)
def test_invalid_actions_raise(policy, message):
    with pytest.raises(ValueError, match=message):
        run_policy(policy)


def test_invalid_options_raise():
    with pytest.raises(ValueError, match="n_action_steps and max_steps >= 1"):
        run_policy(RecordingPolicy(), n_action_steps=0)
    with pytest.raises(ValueError, match="obs_type must be one of"):
        run_policy(RecordingPolicy(), obs_type="pixels")
    with VectorEnv(2) as env, pytest.raises(ValueError, match="a row for each of 2 envs"):
        rollout(env, RecordingPolicy(), STARTS)


# -- a diffusion model as a policy ----------------------------------------------------------------


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    model = UNet1D(channels=(8,), groups=4, embedding=8).build((16, 2), conditions={"observation": (40,)})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return DiffusionPolicy(
        model,
        SamplingPipeline(VPPath("cosine", steps=100), SamplerConfig("ddim", steps=3, clip=1.0), (16, 2)),
        PolicyNormalizer(
            observation=LinearNormalizer(torch.zeros(20), torch.full((20,), 512.0)),
            action=LinearNormalizer(torch.full((2,), 100.0), torch.full((2,), 400.0)),
        ),
    )


def test_chunks_are_in_the_range_of_the_actions(policy):
    chunks = policy(100 * torch.rand(4, 2, 20), episodes=torch.arange(4), chunk=0)
    assert chunks.shape == (4, 16, 2)
    assert float(chunks.min()) >= 100 - 1e-3
    assert float(chunks.max()) <= 400 + 1e-3


def test_a_chunk_depends_on_its_episode_and_number_alone(policy):
    observations = 400 * torch.rand(4, 2, 20)
    chunks = policy(observations, episodes=torch.arange(4), chunk=2)
    some = policy(observations[[3, 1]], episodes=torch.tensor([3, 1]), chunk=2)
    torch.testing.assert_close(some, chunks[[3, 1]], atol=0.05, rtol=0)
    assert not torch.allclose(policy(observations, episodes=torch.arange(4), chunk=3), chunks)
    other = dataclasses.replace(policy, seed=1)
    assert not torch.allclose(other(observations, episodes=torch.arange(4), chunk=2), chunks)


@pytest.mark.parametrize("method", ["ddim", "ddpm", "euler"])
def test_every_sampler_samples_actions(policy, method):
    sampler = SamplerConfig(method, steps=2, clip=1.0)
    pipeline = dataclasses.replace(policy.pipeline, sampler=sampler)
    chunks = dataclasses.replace(policy, pipeline=pipeline)(torch.rand(2, 2, 20), episodes=torch.arange(2), chunk=0)
    assert bool(chunks.isfinite().all())


def test_matched_actions_start_from_the_distribution_of_the_noise(policy):
    class Shifted:
        def color(self, noise, labels=None):
            return 0.5 * noise + 0.1

    sampler = dataclasses.replace(policy.pipeline.sampler, init_noise="matched")
    pipeline = dataclasses.replace(policy.pipeline, sampler=sampler, init_noise=Shifted())
    cond = {"observation": torch.rand(2, 40)}
    noise = torch.randn(2, 16, 2)
    matched = sample_actions(pipeline, policy.model, cond, lambda step: noise)
    plain = sample_actions(policy.pipeline, policy.model, cond, lambda step: 0.5 * noise + 0.1)
    torch.testing.assert_close(matched, plain)


def test_a_diffusion_policy_acts(policy):
    rollouts = run_policy(policy, STARTS[:2], max_steps=9)
    assert rollouts.states.shape == (2, 10, 5)
    assert np.isfinite(rollouts.actions).all()


# -- video ----------------------------------------------------------------------------------------


def test_a_video_has_a_row_for_each_policy_and_a_column_for_each_episode(run, tmp_path):
    image = pytest.importorskip("PIL.Image")
    save_video(tmp_path / "a.gif", {"one": run[0], "two": run[0]}, episodes=(0, 2), size=32, every=6)
    with image.open(tmp_path / "a.gif") as video:
        assert video.size == (2 * 34, 2 * (34 + 28))
        assert video.n_frames == 5  # steps 0, 6, 12, 18 and 20
        video.seek(4)
        last = np.asarray(video.convert("RGB"))
    assert (last[28:60] == last[62 + 28 : 62 + 60]).all()


@pytest.mark.parametrize("wrong", [{"episodes": (3,)}, {"episodes": ()}, {"every": 0}])
def test_a_video_of_episodes_that_do_not_exist(run, tmp_path, wrong):
    pytest.importorskip("PIL")
    with pytest.raises(ValueError, match="expected episodes below 3"):
        save_video(tmp_path / "a.gif", {"one": run[0]}, **{"episodes": (0,), **wrong})
    assert not list(tmp_path.iterdir())
