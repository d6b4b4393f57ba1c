import pytest
import torch

from immiscible_diffusion.data.in_memory import InMemoryData, add_mirror_images
from immiscible_diffusion.experiments.pilot.features import Features, floor_of
from immiscible_diffusion.experiments.pilot.network import VALID, Network
from immiscible_diffusion.experiments.pilot.prepared import LARGEST, Prepared
from immiscible_diffusion.experiments.pilot.training import sample
from immiscible_diffusion.utils.batch import Batch

CPU = torch.device("cpu")


def whole(*shape, cond=None, mask=None, scale=1.0):
    data = scale * torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    return InMemoryData("mine", "", Batch(data, cond, mask))


def test_halves_are_disjoint_and_change_with_the_seed():
    prepared = Prepared.of(whole(101, 3))
    train, held = prepared.split(0)
    assert len(held) == prepared.held == 50
    assert sorted(torch.cat([train, held]).tolist()) == list(range(101))
    assert not torch.equal(prepared.split(1)[1], held)
    assert torch.equal(prepared.split(0)[1], held)


def test_a_datum_and_its_mirror_image_are_on_one_side():
    prepared = Prepared.of(add_mirror_images(whole(40, 1, 4, 4)))
    train, held = prepared.split(3)
    assert len(prepared) == 40
    assert len(train) == 2 * (40 - len(held))
    assert not set((train % 40).tolist()) & set(held.tolist())


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
    prepared = Prepared.of(whole(*shape))
    assert torch.Size(prepared.shape).numel() <= LARGEST
    assert ("pooled" in prepared.note) == (prepared.shape != shape[1:])
    assert prepared.original == shape[1:]
    if shape != (4, 3, 129, 129):
        assert prepared.shape == pooled


def test_pooling_keeps_means_and_looks_at_valid_positions_only():
    data, mask = torch.ones(4, 40_000), torch.ones(4, 40_000).bool()
    mask[:, 1::2] = False
    mask[:, 20_000:] = False
    data[~mask] = 77.0
    prepared = Prepared.of(InMemoryData("mine", "", Batch(data, None, mask)))
    kept = prepared.batch
    assert torch.equal(kept.mask, kept.data > 0.5)
    assert torch.allclose(kept.data[kept.mask], torch.tensor(1.0))
    plain = Prepared.of(whole(4, 3, 200, 200)).batch.data
    expected = torch.nn.functional.avg_pool2d(whole(4, 3, 200, 200).batch.data, 2)
    assert plain.mean() == pytest.approx(float(expected.mean()), abs=1e-6)


def test_data_on_another_scale_than_noise_are_refused_or_normalized():
    with pytest.raises(ValueError, match=r"root mean square.*--normalize"):
        Prepared.of(whole(100, 3, scale=300))
    data = Prepared.of(whole(100, 3, scale=300), normalize=True).batch.data
    assert float(data.std()) == pytest.approx(1, abs=1e-4)


def test_a_condition_that_is_not_there():
    with pytest.raises(ValueError, match="no condition 'state'"):
        Prepared.of(whole(100, 3), ("state",))


@pytest.mark.parametrize("kind", ["mlp", "unet"])
def test_the_network_hears_conditions_and_stays_within_the_mask(kind):
    count, shape = 70, (2, 8, 8)
    cond = {"label": torch.arange(count) % 3, "state": torch.randn(count, 2, 2)}
    mask = torch.ones(count, 1, 8, 8).bool()
    mask[:, :, 5:] = False
    prepared = Prepared.of(whole(count, *shape, cond=cond, mask=mask), ("label", "state"))
    network = Network.choose(kind, shape, CPU)
    told = prepared.told(prepared.batch)
    model = network.build(shape, told, 0)
    for parameter in model.parameters():  # the last layer begins at zero
        torch.nn.init.normal_(parameter, std=0.1)
    x, t = prepared.batch.data, torch.full((count,), 500.0)
    said = model(x, t, told)
    assert said.shape == x.shape
    assert not bool(said[~told[VALID]].any())
    other = {**told, "label": (told["label"] + 1) % 3}
    assert not torch.allclose(model(x, t, other), said)
    other = {**told, "state": told["state"] + 1}
    assert not torch.allclose(model(x, t, other), said)
    hidden = torch.where(told[VALID], x, 99.0)
    assert torch.equal(model(hidden, t, told), said)
    made = sample(model, x * mask, told, 3, device=CPU)
    assert not bool(made[~told[VALID]].any())


def test_equal_seeds_begin_with_equal_weights():
    network = Network.choose("auto", (5,), CPU)
    one, two, other = (network.build((5,), None, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_a_network_narrower_than_the_data_can_say_the_noise():
    """Data that are all 0: the target is the noise, ``x_t / t``, of 300 numbers by 256."""
    network = Network.choose("auto", (300,), CPU)
    model = network.build((300,), None, 0)
    t = torch.linspace(0.3, 1, 64)
    noise = torch.randn(64, 300, generator=torch.Generator().manual_seed(0))
    said = model(t[:, None] * noise, 1000 * t, None)
    assert float((said - noise).detach().square().mean()) < 0.1


def test_networks_that_do_not_fit():
    with pytest.raises(ValueError, match="--network mlp"):
        Network.choose("unet", (7, 2), CPU)
    with pytest.raises(ValueError, match="must be one of"):
        Network.choose("transformer", (7, 2), CPU)


def test_the_distance_sees_more_than_mean_and_covariance():
    """A ring of eight points and a Gaussian with its covariance."""
    generator = torch.Generator().manual_seed(0)
    angle = torch.randint(8, (2000,), generator=generator) * torch.pi / 4
    data = torch.stack([angle.cos(), angle.sin()], dim=1)
    prepared = Prepared.of(InMemoryData("ring", "", Batch(data)))
    features = Features.of(prepared)
    _, held = prepared.split(0)
    from immiscible_diffusion.metrics import FeatureStatistics, frechet_distance

    gaussian = 0.5**0.5 * torch.randn(len(held), 2, generator=generator)
    real = FeatureStatistics.of(features(data[held], held))
    made = FeatureStatistics.of(features(gaussian, held))
    assert frechet_distance(made, real) > 3 * floor_of(prepared, features).high


def test_the_distance_is_of_the_joint_law_with_conditions():
    label = torch.arange(1000) % 2
    data = torch.randn(1000, 3) + 4 * label[:, None]
    prepared = Prepared.of(InMemoryData("two", "", Batch(data, {"label": label})), ("label",))
    features = Features.of(prepared)
    _, held = prepared.split(0)
    from immiscible_diffusion.metrics import FeatureStatistics, frechet_distance

    real = FeatureStatistics.of(features(data[held], held))
    wrong = FeatureStatistics.of(features(data[held].flip(0)[torch.randperm(len(held))], held))
    assert frechet_distance(wrong, real) > 10 * floor_of(prepared, features).high


def test_what_conditions_become_depends_on_them_alone():
    """Not on the global generator, nor on the order of the data."""
    label = torch.arange(3000) // 300  # sorted, as in many files
    data = torch.randn(3000, 4, generator=torch.Generator().manual_seed(0))
    many = torch.cat([data, data]), torch.cat([label, label + 10])

    def conditions():
        batch = Batch(many[0], {"label": many[1]})
        return Features.of(Prepared.of(InMemoryData("w", "", batch), ("label",))).conditions

    torch.manual_seed(0)
    first = conditions()
    torch.manual_seed(1)
    assert torch.equal(conditions(), first)
    seen = [bool(first[many[1] == name].abs().sum() > 0) for name in range(20)]
    assert seen[10:].count(True) > 1  # labels of which the first 5,000 rows have few
    assert len(first.round(decimals=3).unique(dim=0)) > 8


def test_a_condition_that_never_changes_says_nothing():
    data = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    batch = Batch(data, {"state": torch.ones(100, 2)})
    features = Features.of(Prepared.of(InMemoryData("w", "", batch), ("state",)))
    assert bool(features(data, torch.arange(100)).isfinite().all())
    assert float(features.conditions.abs().sum()) == 0
