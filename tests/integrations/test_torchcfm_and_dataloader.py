"""``pull`` by closed form, ``Collate`` in real loader workers, forked and spawned."""

import pickle
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch.utils.data import DataLoader, default_collate

from immiscible_diffusion import KNN, Coupling, Independent, LinearAssignment, Moments
from immiscible_diffusion.integrations import Collate, as_torchcfm, pull

Pair = namedtuple("Pair", "data label")


class Images:
    """A data set that spawned workers can load."""

    def __init__(self, kind="dict", count=32):
        self.kind, self.count = kind, count

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if i >= self.count:
            raise IndexError(i)
        row = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(i))
        if self.kind == "dict":
            return {"pixel_values": row, "input_ids": torch.tensor(i)}
        return row if self.kind == "tensor" else (row, i)


@dataclass(frozen=True)
class Across(Coupling):
    across_ranks: bool = True

    def choose(self, data, noise, cond, mask, generator):
        return torch.randn_like(data)


@dataclass(frozen=True)
class Labeled:
    """Noise that says which label it was told."""

    def __call__(self, data, *, cond=None, generator=None):
        return torch.zeros_like(data) + cond["class"].view(-1, 1, 1, 1)


def stacked(data_set):
    return torch.stack([item["pixel_values"] for item in data_set])


def noises(seed, workers=2, context="fork", epochs=1, coupling=None, persistent=False):
    """Noises ``[epochs, N, 3, 4, 4]`` in the order of the data, from a loader."""
    collate = Collate(coupling or Independent(), data_key="pixel_values")
    torch.manual_seed(seed)
    loader = DataLoader(
        Images(),
        8,
        num_workers=workers,
        collate_fn=collate,
        multiprocessing_context=context if workers else None,
        persistent_workers=persistent,
    )
    return torch.stack([torch.cat([batch["noise"] for batch in loader]) for _ in range(epochs)])


def all_differ(rows):
    rows = rows.flatten(0, -4).flatten(1)
    return len(rows.unique(dim=0)) == len(rows)


@pytest.mark.parametrize(
    "coupling", [KNN(1), KNN(4), LinearAssignment(max_size=4), Independent(), Labeled()], ids=repr
)
def test_a_plan_with_a_generator_of_its_own_shares_the_times_of_other_runs(coupling):
    x1, own = torch.randn(12, 3, 4, 4), torch.Generator().manual_seed(3)
    sampler = as_torchcfm(coupling, label_key="class", generator=own)
    torch.manual_seed(0)
    x0, times = torch.randn_like(x1), torch.rand(12)
    torch.manual_seed(0)
    noise, data, *_ = sampler.sample_plan_with_labels(torch.randn_like(x1), x1, y1=torch.arange(12))
    assert torch.equal(torch.rand(12), times)
    own.manual_seed(3)
    again, *_ = sampler.sample_plan_with_labels(x0, x1, y1=torch.arange(12))
    assert torch.equal(noise, again)
    assert data is x1


def test_pull_is_the_length_along_the_datum():
    data = torch.tensor([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]])
    noise = torch.tensor([[1.0, 2.0], [5.0, -1.0], [1.0, 1.0]])
    torch.testing.assert_close(pull(data, noise), torch.tensor([2.2, -1.0, 0.0]))


def test_pull_counts_valid_positions_only():
    data = torch.tensor([[3.0, 4.0, float("nan")]])
    noise = torch.tensor([[1.0, 2.0, float("nan")]])
    mask = torch.tensor([[True, True, False]])
    torch.testing.assert_close(pull(data, noise, mask=mask), torch.tensor([2.2]))


def test_pull_of_noise_that_is_not_paired():
    data = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0)).half()
    noise = torch.randn(4000, 8, generator=torch.Generator().manual_seed(1)).half()
    found = pull(data, noise)
    assert found.dtype == torch.float32
    assert abs(found.mean()) < 4 / 4000**0.5
    assert abs(found.var() - 1) < 4 * (2 / 4000) ** 0.5


def test_pull_of_other_shapes_is_refused():
    with pytest.raises(ValueError, match=r"noise must be \(2, 3\)"):
        pull(torch.ones(2, 3), torch.ones(2, 4))


@pytest.mark.subprocess
@pytest.mark.parametrize(("workers", "context"), [(0, None), (2, "fork")])
def test_a_dict_keeps_all_it_had_and_gets_paired_noise(workers, context):
    data_set = Images(count=32)
    collate = Collate(KNN(k=64), data_key="pixel_values")
    loader = DataLoader(data_set, 8, num_workers=workers, collate_fn=collate, multiprocessing_context=context)
    batches = list(loader)
    assert [set(batch) for batch in batches] == [{"pixel_values", "input_ids", "noise"}] * 4
    joined = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    assert torch.equal(joined["pixel_values"], stacked(data_set))
    assert torch.equal(joined["input_ids"], torch.arange(32))
    assert pull(joined["pixel_values"], joined["noise"]).mean() > 1


def test_a_tuple_gets_the_noise_last():
    items = [Images("tuple")[i] for i in range(5)]
    data, label, noise = Collate(KNN(k=64))(items)
    assert torch.equal(data, torch.stack([item[0] for item in items]))
    assert label.tolist() == [0, 1, 2, 3, 4]
    assert pull(data, noise).mean() > 1
    turned = Collate(KNN(k=64), data_key=1)([(i, row) for row, i in items])
    assert torch.equal(turned[1], data)
    assert turned[2].shape == data.shape


def test_a_tensor_becomes_data_and_noise():
    data, noise = Collate(Independent())([Images("tensor")[i] for i in range(5)])
    assert data.shape == noise.shape == (5, 3, 4, 4)


def test_named_tuples_become_tuples():
    found = Collate(Independent())([Pair(torch.ones(2), 0), Pair(torch.ones(2), 1)])
    assert type(found) is tuple
    assert len(found) == 3


def test_a_collate_function_of_ones_own():
    def collate_fn(items):
        return {"x": torch.stack([item[0] for item in items]), "n": len(items)}

    found = Collate(Independent(), collate_fn, data_key="x", noise_key="eps")([Images("tuple")[i] for i in range(3)])
    assert found["n"] == 3
    assert found["eps"].shape == (3, 3, 4, 4)


def test_conditions_and_masks_reach_the_coupling():
    items = [Images("tuple")[i] for i in range(4)]
    *_, noise = Collate(Labeled(), cond={"class": 1})(items)
    assert noise[:, 0, 0, 0].tolist() == [0, 1, 2, 3]

    def collate_fn(rows):
        data = default_collate([row for row, _ in rows])
        valid = torch.ones(len(rows), 1, 1, 4, dtype=torch.bool)
        valid[..., 2:] = False
        return {"data": data.masked_fill(~valid, float("nan")), "valid": valid}

    found = Collate(KNN(k=4), collate_fn, data_key="data", mask_key="valid")(items)
    assert found["noise"].isfinite().all()
    with pytest.raises(ValueError, match="mask"):
        Collate(Labeled(), collate_fn, data_key="data", mask_key="valid")(items)


def test_the_pool_of_an_assignment_is_the_batch_of_the_loader():
    torch.manual_seed(0)
    small = noises(0, workers=0, coupling=LinearAssignment())[0]
    data = stacked(Images())
    collate = Collate(LinearAssignment(), data_key="pixel_values")
    (large,) = DataLoader(Images(), 32, collate_fn=collate)
    pieces = large["noise"].split(8)
    assert all(len(piece) == 8 for piece in pieces)
    assert pull(data, large["noise"]).mean() > pull(data, small).mean()


def test_workers_do_not_repeat_each_other_nor_the_seed_before():
    first = noises(5)
    assert all_differ(first)
    assert torch.equal(first, noises(5))
    assert all_differ(torch.cat([first, noises(6)]))


def test_noise_does_not_depend_on_how_workers_are_started():
    assert torch.equal(noises(5, context="spawn"), noises(5, context="fork"))


@pytest.mark.parametrize("persistent", [False, True])
def test_every_epoch_has_noise_of_its_own(persistent):
    found = noises(5, epochs=3, persistent=persistent)
    assert all_differ(found)
    assert torch.equal(found, noises(5, epochs=3, persistent=persistent))


def test_it_travels_to_workers():
    moments = Moments.fit(stacked(Images()))
    collate = pickle.loads(pickle.dumps(Collate(KNN(k=4, center=moments), data_key="pixel_values")))
    torch.manual_seed(0)
    found = collate([Images()[0]])["noise"]
    torch.manual_seed(0)
    assert torch.equal(found, KNN(k=4, center=moments)(stacked(Images())[:1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"data_key=0 is not in the batch, a dict of pixel_values, input_ids"),
        ({"data_key": "images"}, "data_key='images' is not in the batch"),
        ({"data_key": "pixel_values", "mask_key": "pad"}, "mask_key='pad' is not in the batch"),
        ({"data_key": "pixel_values", "cond": {"label": "y"}}, "cond='y' is not in the batch"),
        ({"data_key": "pixel_values", "noise_key": "input_ids"}, "give another noise_key"),
        ({"data_key": "input_ids"}, "floating-point"),
    ],
)
def test_a_batch_without_what_was_named(options, message):
    with pytest.raises(ValueError, match=message):
        Collate(Independent(), **options)([Images()[0]])


def test_a_place_that_a_tuple_lacks():
    with pytest.raises(ValueError, match="data_key=4 is not in the batch, a list of 2 items"):
        Collate(Independent(), data_key=4)([Images("tuple")[0]])


def test_couplings_of_many_ranks_are_refused():
    with pytest.raises(ValueError, match="across_ranks"):
        Collate(Across())
    Collate(Across(across_ranks=False))
