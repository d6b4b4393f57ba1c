import dataclasses

import pytest
import torch

from fixtures.demonstrations import episodes
from immiscible_diffusion.applications.pusht.normalization import MinMax, load_ranges, save_ranges
from immiscible_diffusion.applications.pusht.observation_normalizer import Sight
from immiscible_diffusion.applications.pusht.windows import Episodes, Windows

HORIZON, SEEN, EXECUTE = 16, 2, 8


def by_hand(recorded, windows):
    """Every window, cut and padded step by step."""
    found = []
    for start, end in zip(recorded.starts.tolist(), recorded.ends.tolist(), strict=True):
        for first in range(start - (SEEN - 1), end - HORIZON + (EXECUTE - 1) + 1):
            rows = [min(max(row, start), end - 1) for row in range(first, first + HORIZON)]
            inside = [start <= row < end for row in range(first, first + HORIZON)]
            found.append((rows, inside))
    return found


def test_windows_are_those_of_diffusion_policy():
    recorded = episodes()
    windows = Windows.of(recorded)
    wanted = by_hand(recorded, windows)
    assert len(windows) == len(wanted)
    batch = windows.batch(torch.arange(len(windows)))
    for index, (rows, inside) in enumerate(wanted):
        assert torch.equal(batch.data[index], windows.acted.apply(recorded.action[rows]))
        seen = windows.sight(recorded.observation[rows[:SEEN]][None])[0]
        assert torch.equal(batch.cond["observation"][index], seen)
        assert batch.mask[index, :, 0].tolist() == inside


def test_every_step_is_the_last_one_seen_once():
    """So the policy learns what to do at every step of every episode but those near the end."""
    recorded = episodes()
    windows = Windows.of(recorded)
    places = [windows.place(index) for index in range(len(windows))]
    assert len(set(places)) == len(places)
    for episode, length in enumerate(recorded.lengths.tolist()):
        steps = [step for where, step in places if where == episode]
        assert steps == list(range(length - HORIZON + (EXECUTE - 1) + SEEN))
    batch = windows.batch(torch.arange(len(windows)))
    for index, (episode, step) in enumerate(places):
        row = int(recorded.starts[episode]) + step
        seen = windows.sight.observed.apply(recorded.observation[row])
        assert torch.equal(batch.cond["observation"][index, -3:], seen)


def test_padding_is_at_the_ends_and_no_longer_than_it_may_be():
    batch = Windows.of(episodes()).batch(torch.arange(len(Windows.of(episodes()))))
    inside = batch.mask[..., 0]
    assert inside.shape == (len(batch), HORIZON)
    assert bool(inside[:, SEEN - 1 : HORIZON - EXECUTE + 1].all())
    assert int((~inside[:, 0]).sum()) == int((~inside[:, -1]).sum()) / (EXECUTE - 1) == 3


def test_whole_windows_have_no_padding():
    windows = Windows.of(episodes())
    whole = windows.whole
    inside = windows.batch(torch.arange(len(windows))).mask.flatten(1).all(dim=1)
    assert whole.tolist() == inside.nonzero()[:, 0].tolist()
    assert len(whole) == (20 + 31 + 25) - 3 * (HORIZON - 1)


def test_copies_may_be_learned():
    windows = Windows.of(episodes(), learn_copies=True)
    same = Windows.of(episodes())
    rows = torch.arange(len(windows))
    assert windows.batch(rows).mask is None
    assert torch.equal(windows.batch(rows).data, same.batch(rows).data)


def test_a_batch_depends_on_its_indices_alone():
    windows = Windows.of(episodes())
    rows = torch.tensor([5, 0, 5, 17])
    whole, one = windows.batch(rows, torch.Generator()), windows.batch(torch.tensor([17]))
    assert torch.equal(whole.data[0], whole.data[2])
    assert torch.equal(whole.data[3:], one.data)
    assert windows.shape == (HORIZON, 2)
    assert windows.condition_shapes == {"observation": (2 * 3,)}
    assert windows.num_classes is None


def test_data_lie_in_the_range_and_come_back():
    recorded = episodes()
    windows = Windows.of(recorded)
    batch = windows.batch(torch.arange(len(windows)))
    assert float(batch.data.min()) == pytest.approx(-1)
    assert float(batch.data.max()) == pytest.approx(1)
    torch.testing.assert_close(windows.acted.undo(batch.data)[0, 1:], recorded.action[:15])


def test_validation_windows_are_normalized_by_the_training_range():
    train, held = episodes().split(0.3, seed=1)
    windows = Windows.of(train)
    assert windows.like(held).acted == windows.acted
    assert windows.like(held).episodes is held


# -- split ----------------------------------------------------------------------------------------


def test_split_is_by_episode_and_loses_none():
    recorded = episodes((17, 18, 19, 20, 21, 22, 23, 24, 25, 26))
    train, held = recorded.split(0.2, seed=3)
    assert len(train) == 8
    assert len(held) == 2
    assert sorted(train.lengths.tolist() + held.lengths.tolist()) == recorded.lengths.tolist()
    assert {tuple(row) for row in train.action.tolist()}.isdisjoint(
        map(tuple, held.action.tolist())
    )


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
    train, held = recorded.split(0.1, limit=7)
    assert (len(train), len(held)) == (7, 4)
    whole, same = recorded.split(0.1)
    assert torch.equal(held.action, same.action)
    assert {tuple(a) for a in train.action.tolist()} <= {tuple(a) for a in whole.action.tolist()}


@pytest.mark.parametrize("share", [0.0, 1.0, 0.9])
def test_split_that_leaves_nothing(share):
    with pytest.raises(ValueError, match="on each side"):
        episodes((17, 18)).split(share)


# -- sight ----------------------------------------------------------------------------------------


def test_differences_are_told_apart_from_places():
    recorded = episodes()
    windows = Windows.of(recorded, differences=True)
    seen = windows.batch(torch.arange(len(windows))).cond["observation"]
    assert windows.condition_shapes == {"observation": (6,)}
    places, changes = recorded.observation, recorded.observation[1:] - recorded.observation[:-1]
    inside = [row for row in range(75) if row + 1 not in (20, 51)]
    assert windows.sight.observed == MinMax.of_spread(places)
    assert windows.sight.changed == MinMax.of_spread(changes[inside])
    row = 27  # in the second episode
    index = next(i for i in range(len(windows)) if windows.place(i) == (1, row - 20))
    wanted = torch.cat(
        [
            (places[row] - places.mean(0)) / places.std(0, unbiased=False),
            (changes[row - 1] - changes[inside].mean(0)) / changes[inside].std(0, unbiased=False),
        ]
    )
    torch.testing.assert_close(seen[index], wanted)


def test_sight_comes_back_from_its_ranges(tmp_path):
    pytest.importorskip("safetensors")
    for differences in (False, True):
        windows = Windows.of(episodes(), differences=differences)
        save_ranges(tmp_path / "ranges", windows.ranges)
        found = load_ranges(tmp_path / "ranges")
        assert Sight.of_ranges(found) == windows.sight
        assert found["acted"] == windows.acted


# -- ranges ---------------------------------------------------------------------------------------


def test_a_range_goes_there_and_back():
    rows = torch.randn(50, 4, dtype=torch.float64) * torch.tensor([1, 10, 100, 0]).double()
    span = MinMax.fit(rows)
    there = span.apply(rows)
    assert float(there[:, :3].amin()) == pytest.approx(-1)
    assert float(there[:, :3].amax()) == pytest.approx(1)
    assert not there[:, 3].any()
    torch.testing.assert_close(span.undo(there), rows, atol=1e-5, rtol=1e-6)


def test_ranges_are_saved_whole(tmp_path):
    pytest.importorskip("safetensors")
    ranges = {"action": MinMax.fit(torch.randn(9, 2)), "observation": MinMax.fit(torch.randn(9, 5))}
    save_ranges(tmp_path / "ranges.safetensors", ranges)
    found = load_ranges(tmp_path / "ranges.safetensors")
    assert found == ranges
    assert hash(found["action"]) == hash(ranges["action"])
    assert ranges["action"].digest in repr(found["action"])
    assert ranges["action"] != MinMax(ranges["action"].low - 1e-3, ranges["action"].high)


def test_ranges_that_are_none(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    with pytest.raises(ValueError, match="does not exist"):
        load_ranges(tmp_path / "absent")
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(ValueError, match="does not hold ranges"):
        load_ranges(tmp_path / "junk")
    tensors = {"action.low": torch.zeros(2), "action.high": torch.ones(2)}
    safetensors.save_file(tensors, str(tmp_path / "other"), {"action": "0" * 16})
    with pytest.raises(ValueError, match="action was changed"):
        load_ranges(tmp_path / "other")


@pytest.mark.parametrize("rows", [torch.zeros(0, 2), torch.zeros(3), torch.full((2, 2), torch.nan)])
def test_a_range_of_nothing(rows):
    with pytest.raises(ValueError, match="finite rows"):
        MinMax.fit(rows)


def test_a_range_upside_down():
    with pytest.raises(ValueError, match="low <= high"):
        MinMax(torch.ones(2), torch.zeros(2))


# -- bad input names the episode ------------------------------------------------------------------


@pytest.mark.parametrize("field", ["action", "observation"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_numbers_that_are_none(field, value):
    recorded = episodes()
    rows = getattr(recorded, field).clone()
    rows[20 + 7, 1] = value
    with pytest.raises(ValueError, match=rf"{field} of episode 1, step 7 is not finite"):
        dataclasses.replace(recorded, **{field: rows})


def test_an_episode_shorter_than_the_horizon():
    with pytest.raises(ValueError, match="episode 1 has 15 steps, fewer than the horizon of 16"):
        Windows.of(episodes((16, 15, 40)))
    assert len(Windows.of(episodes((16, 15, 40)), horizon=15)) > 0


def test_rows_that_are_missing():
    recorded = episodes()
    with pytest.raises(ValueError, match="episode 2 ends at row 76, but there are 60 actions"):
        dataclasses.replace(recorded, action=recorded.action[:60])
    with pytest.raises(ValueError, match=r"last episode \(2\) ends at row 76"):
        dataclasses.replace(recorded, observation=recorded.observation.repeat(2, 1))


@pytest.mark.parametrize("ends", [[20, 20, 76], [30, 20, 76], [0, 20, 76]])
def test_episodes_without_steps(ends):
    with pytest.raises(ValueError, match=r"episode [01] has no steps"):
        dataclasses.replace(episodes(), ends=torch.tensor(ends))


def test_actions_of_another_dimension():
    recorded = episodes()
    windows = Windows.of(recorded)
    with pytest.raises(ValueError, match="action of episode 0 has 3 dimensions, 2 were expected"):
        windows.like(episodes(action=3))
    with pytest.raises(ValueError, match=r"action must be floating \[N, dim\]"):
        Episodes(recorded.observation, recorded.action[:, 0], recorded.ends)


def test_windows_that_execute_more_than_they_plan():
    with pytest.raises(ValueError, match="horizon >= observations - 1 \\+ execute"):
        Windows.of(episodes(), horizon=8, execute=8)
