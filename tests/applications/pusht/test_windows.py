import dataclasses

import pytest
import torch

from fixtures.demonstrations import episodes
from immiscible_diffusion.applications.pusht.config import DemonstrationConfig
from immiscible_diffusion.applications.pusht.normalization import LinearNormalizer, PolicyNormalizer
from immiscible_diffusion.applications.pusht.windows import Episodes, Windows

HORIZON, N_OBS, N_ACTIONS = 16, 2, 8


def by_hand(recorded):
    """Every window, cut and padded step by step."""
    windows = []
    for start, end in zip(recorded.starts.tolist(), recorded.ends.tolist(), strict=True):
        for first in range(start - (N_OBS - 1), end - HORIZON + (N_ACTIONS - 1) + 1):
            rows = [min(max(row, start), end - 1) for row in range(first, first + HORIZON)]
            inside = [start <= row < end for row in range(first, first + HORIZON)]
            windows.append((rows, inside))
    return windows


def test_windows_are_those_of_diffusion_policy():
    recorded = episodes()
    windows = Windows.fit(recorded)
    expected = by_hand(recorded)
    assert len(windows) == len(expected)
    batch = windows.batch(torch.arange(len(windows)))
    for index, (rows, inside) in enumerate(expected):
        assert torch.equal(batch.data[index], windows.normalizer.action.normalize(recorded.action[rows]))
        observations = windows.normalizer.observations(recorded.observation[rows[:N_OBS]][None])[0]
        assert torch.equal(batch.cond["observation"][index], observations)
        assert batch.mask[index, :, 0].tolist() == inside


def test_every_step_is_the_last_observation_once():
    """So the policy learns what to do at every step of every episode, except near its end."""
    recorded = episodes()
    latest = [rows[N_OBS - 1] for rows, _ in by_hand(recorded)]
    assert len(set(latest)) == len(latest)
    for start, end in zip(recorded.starts.tolist(), recorded.ends.tolist(), strict=True):
        assert set(range(start, end - N_ACTIONS)) <= set(latest)


def test_padding_is_at_the_ends_and_no_longer_than_it_may_be():
    batch = Windows.fit(episodes()).batch(torch.arange(len(Windows.fit(episodes()))))
    inside = batch.mask[..., 0]
    assert inside.shape == (len(batch), HORIZON)
    assert bool(inside[:, N_OBS - 1 : HORIZON - N_ACTIONS + 1].all())
    assert int((~inside[:, 0]).sum()) == int((~inside[:, -1]).sum()) / (N_ACTIONS - 1) == 3


def test_complete_windows_have_no_padding():
    windows = Windows.fit(episodes())
    complete = windows.complete_rows()
    inside = windows.batch(torch.arange(len(windows))).mask.flatten(1).all(dim=1)
    assert complete.tolist() == inside.nonzero()[:, 0].tolist()
    assert len(complete) == (20 + 31 + 25) - 3 * (HORIZON - 1)


def test_padding_may_be_data():
    windows = Windows.fit(episodes(), DemonstrationConfig(do_mask_loss_for_padding=False))
    same = Windows.fit(episodes())
    rows = torch.arange(len(windows))
    assert windows.batch(rows).mask is None
    assert torch.equal(windows.batch(rows).data, same.batch(rows).data)


def test_a_batch_depends_on_its_indices_alone():
    windows = Windows.fit(episodes())
    rows = torch.tensor([5, 0, 5, 17])
    complete, one = windows.batch(rows, torch.Generator()), windows.batch(torch.tensor([17]))
    assert torch.equal(complete.data[0], complete.data[2])
    assert torch.equal(complete.data[3:], one.data)
    assert windows.shape == (HORIZON, 2)
    assert windows.condition_shapes == {"observation": (2 * 3,)}
    assert windows.num_classes is None


def test_data_lie_in_the_range_and_come_back():
    recorded = episodes()
    windows = Windows.fit(recorded)
    batch = windows.batch(torch.arange(len(windows)))
    assert float(batch.data.min()) == pytest.approx(-1)
    assert float(batch.data.max()) == pytest.approx(1)
    torch.testing.assert_close(windows.normalizer.action.unnormalize(batch.data)[0, 1:], recorded.action[:15])


def test_validation_windows_are_normalized_by_the_training_range():
    train, validation = episodes().split(0.3, seed=1)
    windows = Windows.fit(train)
    assert windows.digest == Windows.fit(train).digest != Windows(validation, windows.normalizer).digest
    assert not torch.equal(
        Windows(validation, windows.normalizer).batch(torch.arange(3)).data,
        Windows.fit(validation).batch(torch.arange(3)).data,
    )


# -- split ----------------------------------------------------------------------------------------


def test_split_is_by_episode_and_loses_none():
    recorded = episodes((17, 18, 19, 20, 21, 22, 23, 24, 25, 26))
    train, validation = recorded.split(0.2, seed=3)
    assert len(train) == 8
    assert len(validation) == 2
    assert sorted(train.lengths.tolist() + validation.lengths.tolist()) == recorded.lengths.tolist()
    assert {tuple(row) for row in train.action.tolist()}.isdisjoint(map(tuple, validation.action.tolist()))


def test_split_is_a_function_of_the_seed_alone():
    recorded = episodes((17,) * 40)
    again = dataclasses.replace(recorded, action=recorded.action + 1)
    torch.manual_seed(0)
    first = recorded.split(0.1, seed=3)[1].observation
    torch.manual_seed(1)
    assert torch.equal(first, again.split(0.1, seed=3)[1].observation)
    assert not torch.equal(first, recorded.split(0.1, seed=4)[1].observation)


def test_split_with_a_limit_takes_from_the_rest():
    recorded = episodes((17,) * 40)
    train, validation = recorded.split(0.1, max_train_episodes=7)
    assert (len(train), len(validation)) == (7, 4)
    complete, same = recorded.split(0.1)
    assert torch.equal(validation.action, same.action)
    assert {tuple(a) for a in train.action.tolist()} <= {tuple(a) for a in complete.action.tolist()}


@pytest.mark.parametrize("share", [0.0, 1.0, 0.9])
def test_split_that_leaves_nothing(share):
    with pytest.raises(ValueError, match="on each side"):
        episodes((17, 18)).split(share)


def test_messages_name_the_episode_of_the_store():
    recorded = episodes((30, 31, 9, 32, 33, 34))
    for seed in range(4):
        train, validation = recorded.split(0.2, seed=seed)
        part = train if 9 in train.lengths else validation
        with pytest.raises(ValueError, match="episode 2 has 9 steps"):
            Windows.fit(part)
    again = recorded.select(torch.tensor([1, 2, 4])).select(torch.tensor([1, 0]))
    assert [again.number(i) for i in range(2)] == [2, 1]


# -- normalization --------------------------------------------------------------------------------


def test_differences_are_a_condition_of_their_own():
    recorded = episodes()
    windows = Windows.fit(recorded, DemonstrationConfig(differences=True))
    observations = windows.batch(torch.arange(len(windows))).cond["observation"]
    assert windows.condition_shapes == {"observation": (6,)}
    positions, changes = recorded.observation, recorded.observation[1:] - recorded.observation[:-1]
    inside = [row for row in range(75) if row + 1 not in (20, 51)]
    fits = [LinearNormalizer.fit(x, standardize=True) for x in (positions, changes[inside])]
    expected = PolicyNormalizer(fits[0], windows.normalizer.action, fits[1])
    assert same_limits(windows.normalizer, expected)
    row = 27  # in the second episode
    index = next(i for i, (rows, _) in enumerate(by_hand(recorded)) if rows[N_OBS - 1] == row)
    mean, std = changes[inside].mean(0), changes[inside].std(0, unbiased=False)
    position = (positions[row] - positions.mean(0)) / positions.std(0, unbiased=False)
    expected = torch.cat([position, (changes[row - 1] - mean) / std])
    torch.testing.assert_close(observations[index], expected)


def same_limits(one, other):
    one, other = one.tensors(), other.tensors()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("differences", [False, True])
def test_normalizers_come_back_from_their_file(tmp_path, differences):
    pytest.importorskip("safetensors")
    windows = Windows.fit(episodes(), DemonstrationConfig(differences=differences))
    windows.normalizer.save(tmp_path / "normalizer", windows.digest)
    normalizer, digest = PolicyNormalizer.load(tmp_path / "normalizer")
    assert digest == windows.digest
    assert same_limits(normalizer, windows.normalizer)


def test_other_demonstrations_have_another_digest():
    """Even where the ranges are the same: one value in the middle was changed."""
    recorded = episodes()
    action = recorded.action.clone()
    action[5] = action.mean(0)
    windows = Windows.fit(recorded)
    other = Windows.fit(dataclasses.replace(recorded, action=action))
    assert same_limits(other.normalizer, windows.normalizer)
    assert other.digest != windows.digest


def test_a_normalizer_is_invertible():
    rows = torch.randn(50, 4, dtype=torch.float64) * torch.tensor([1, 10, 100, 0]).double()
    normalizer = LinearNormalizer.fit(rows)
    normalized = normalizer.normalize(rows)
    assert float(normalized[:, :3].amin()) == pytest.approx(-1)
    assert float(normalized[:, :3].amax()) == pytest.approx(1)
    assert not normalized[:, 3].any()
    torch.testing.assert_close(normalizer.unnormalize(normalized), rows, atol=1e-5, rtol=1e-6)


def test_files_that_hold_no_normalizers(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    with pytest.raises(ValueError, match="absent does not hold normalizers"):
        PolicyNormalizer.load(tmp_path / "absent")
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(ValueError, match="does not hold normalizers"):
        PolicyNormalizer.load(tmp_path / "junk")
    tensors = {"action.low": torch.zeros(2), "action.high": torch.ones(2)}
    safetensors.save_file(tensors, str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"does not hold normalizers .*observation"):
        PolicyNormalizer.load(tmp_path / "other")


@pytest.mark.parametrize("rows", [torch.zeros(0, 2), torch.zeros(3), torch.full((2, 2), torch.nan)])
@pytest.mark.parametrize("standardize", [False, True])
def test_a_normalizer_of_nothing(standardize, rows):
    with pytest.raises(ValueError, match="finite rows"):
        LinearNormalizer.fit(rows, standardize=standardize)


def test_a_normalizer_upside_down():
    with pytest.raises(ValueError, match="low <= high"):
        LinearNormalizer(torch.ones(2), torch.zeros(2))


# -- invalid input names the episode --------------------------------------------------------------


@pytest.mark.parametrize("field", ["action", "observation"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_name_their_step(field, value):
    recorded = episodes()
    rows = getattr(recorded, field).clone()
    rows[20 + 7, 1] = value
    with pytest.raises(ValueError, match=rf"{field} of episode 1, step 7 is not finite"):
        dataclasses.replace(recorded, **{field: rows})


def test_an_episode_shorter_than_the_horizon():
    with pytest.raises(ValueError, match="episode 1 has 15 steps, fewer than the horizon of 16"):
        Windows.fit(episodes((16, 15, 40)))
    assert len(Windows.fit(episodes((16, 15, 40)), DemonstrationConfig(horizon=15))) > 0


def test_rows_that_are_missing():
    recorded = episodes()
    with pytest.raises(ValueError, match="episode 2 ends at row 76, but there are 60 actions"):
        dataclasses.replace(recorded, action=recorded.action[:60])
    with pytest.raises(ValueError, match="episode 2 ends at row 76, but there are 152 obs"):
        dataclasses.replace(recorded, observation=recorded.observation.repeat(2, 1))


@pytest.mark.parametrize("ends", [[20, 20, 76], [30, 20, 76], [0, 20, 76]])
def test_episodes_without_steps(ends):
    with pytest.raises(ValueError, match=r"episode [01] has no steps"):
        dataclasses.replace(episodes(), ends=torch.tensor(ends))


def test_actions_of_another_dimension():
    recorded = episodes()
    windows = Windows.fit(recorded)
    with pytest.raises(ValueError, match="actions have 3 dimensions, not 2"):
        Windows(episodes(action=3), windows.normalizer)
    with pytest.raises(ValueError, match=r"action must be floating \[N, dim\]"):
        Episodes(recorded.observation, recorded.action[:, 0], recorded.ends)


def test_windows_that_execute_more_than_they_plan():
    with pytest.raises(ValueError, match="horizon >= n_obs_steps - 1"):
        Windows.fit(episodes(), DemonstrationConfig(horizon=8, n_action_steps=8))
