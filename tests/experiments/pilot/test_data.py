import pytest
import torch

from immiscible_diffusion.data.in_memory import InMemoryData, add_mirror_images
from immiscible_diffusion.experiments.pilot.data import LABEL, MAX_DIM, VECTOR, Samples
from immiscible_diffusion.utils.batch import Batch
from tests.helpers import generator


def source(*shape, cond=None, mask=None, scale=1.0):
    data = scale * torch.randn(*shape, generator=generator())
    return InMemoryData("mine", "", Batch(data, cond, mask))


def test_halves_are_disjoint_and_change_with_the_seed():
    samples = Samples.of(source(101, 3))
    split = samples.split(0)
    assert len(split.held_out) == samples.num_held_out == 50
    assert sorted(torch.cat([split.rows, split.held_out]).tolist()) == list(range(101))
    assert not torch.equal(samples.split(1).held_out, split.held_out)
    assert torch.equal(samples.split(0).held_out, split.held_out)


def test_a_sample_and_its_mirror_image_are_on_one_side():
    samples = Samples.of(add_mirror_images(source(40, 1, 4, 4)))
    split = samples.split(3)
    assert samples.count == 40
    assert len(split) == 2 * (40 - len(split.held_out))
    assert not set((split.rows % 40).tolist()) & set(split.held_out.tolist())


@pytest.mark.parametrize(
    ("shape", "pooled"),
    [
        ((4, 3, 200, 200), (3, 50, 50)),
        ((4, 3, 16, 64, 64), (3, 16, 16, 16)),
        ((4, 40_000), (10_000,)),
        ((4, 5000, 7), (1250, 7)),
        ((4, 3, 129, 129), (3, 65, 65)),
        ((4, 3, 64, 64), (3, 64, 64)),
    ],
)
def test_large_data_are_pooled_to_what_a_cpu_can_train(shape, pooled):
    samples = Samples.of(source(*shape))
    assert torch.Size(samples.shape).numel() <= MAX_DIM
    assert ("pooled" in samples.note) == (samples.shape != shape[1:])
    assert samples.shape == pooled


def test_pooling_keeps_means_and_looks_at_valid_positions_only():
    data, mask = torch.ones(4, 40_000), torch.ones(4, 40_000).bool()
    mask[:, 1::2] = False
    mask[:, 20_000:] = False
    data[~mask] = 77.0
    batch = Samples.of(InMemoryData("mine", "", Batch(data, None, mask))).every
    assert torch.equal(batch.mask, batch.data > 0.5)
    assert torch.allclose(batch.data[batch.mask], torch.tensor(1.0))
    plain = Samples.of(source(4, 3, 200, 200)).every.data
    expected = torch.nn.functional.avg_pool2d(source(4, 3, 200, 200).batch.data, 4)
    assert torch.allclose(plain, expected, atol=1e-6)


def test_data_on_another_scale_than_noise_are_refused_or_normalized():
    with pytest.raises(ValueError, match=r"root mean square.*--normalize"):
        Samples.of(source(100, 3, scale=300))
    data = Samples.of(source(100, 3, scale=300), normalize=True).every.data
    assert float(data.std()) == pytest.approx(1, abs=1e-4)


def test_a_condition_that_is_not_there():
    with pytest.raises(ValueError, match="no condition 'state'"):
        Samples.of(source(100, 3), ("state",))


def test_the_network_is_given_one_label_and_all_else_as_standardized_numbers():
    mask = torch.ones(70, 6, 1).bool()
    mask[::2, 4:] = False
    cond = {"kind": torch.arange(70) % 3, "state": 5 + torch.randn(70, 2), "same": torch.ones(70)}
    samples = Samples.of(source(70, 6, 2, cond=cond, mask=mask), ("kind", "state", "same"))
    assert samples.num_classes == 3
    given = samples.every.cond
    assert torch.equal(given[LABEL], cond["kind"])
    assert given[VECTOR].shape == (70, 2 + 4)  # state, and where the mask of six by two changes
    assert torch.allclose(given[VECTOR].mean(dim=0), torch.zeros(6), atol=1e-5)
    assert torch.allclose(given[VECTOR].std(dim=0), torch.ones(6), atol=1e-5)
    two = Samples.of(source(70, 6, cond=cond | {"other": torch.arange(70) % 5}), ("kind", "other"))
    assert two.num_classes is None
    assert two.every.cond[VECTOR].shape == (70, 3 + 5)
    assert Samples.of(source(70, 6, cond=cond)).condition_matrix is None


def test_the_digest_is_of_all_data_conditions_and_the_mask():
    data = torch.randn(400, 3, generator=generator())
    later, label = data.clone(), torch.arange(400) % 3
    later[300] += 1
    mask = torch.ones(400, 1, dtype=torch.bool)
    parts = [
        (data, {"label": label}, None),
        (later, {"label": label}, None),
        (data, {"label": label.flip(0)}, None),
        (data, {"label": label}, mask),
    ]
    every = [InMemoryData("mine", "", Batch(*each)) for each in [*parts, parts[0]]]
    digests = [Samples.of(each, ("label",)).digest for each in every]
    assert len(set(digests)) == 4
    assert digests[0] == digests[-1]
