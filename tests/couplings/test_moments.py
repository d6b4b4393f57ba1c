import dataclasses

import numpy as np
import pytest
import torch

from immiscible_diffusion import Moments


def data_of(count, *shape, seed=0):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)) * 2 + 3


def test_mean_and_variance():
    data = data_of(1000, 3, 4)
    moments = Moments.fit(data)
    assert torch.allclose(moments.mean, data.mean(dim=0), atol=1e-5)
    assert moments.mean.dtype == torch.float32
    assert moments.variance == pytest.approx(float(data.var(dim=0, correction=0).mean()), rel=1e-5)
    assert moments.count == 1000


@pytest.mark.parametrize("size", [1, 7, 100, 1000])
def test_batches_are_the_same_as_all_at_once(size):
    data = data_of(100, 5).double()
    whole, parts = Moments.fit(data), Moments.fit(iter(data.split(size)))
    assert torch.allclose(parts.mean, whole.mean)
    assert parts.variance == pytest.approx(whole.variance)
    assert parts.count == whole.count


def test_sums_keep_their_digits():
    # In float32 the mean of the squares would swallow a variance of 1 beside a mean of 1e4.
    data = data_of(20_000, 2).double() / 2 + 1e4
    assert Moments.fit(data).variance == pytest.approx(1, rel=0.05)


def test_half_precision_data_do_not_overflow():
    moments = Moments.fit(torch.full((1000, 2), 300.0, dtype=torch.float16))
    assert moments.mean.tolist() == [300, 300]
    assert moments.variance == 0


def test_data_are_not_touched_and_gradient_is_dropped():
    data = data_of(4, 2).requires_grad_()
    before = data.detach().clone()
    assert not Moments.fit(data).mean.requires_grad
    assert torch.equal(data, before)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "at least one sample, got none"),
        (torch.zeros(0, 3), "at least one sample, got none"),
        (torch.tensor([[float("nan")]]), "not finite"),
        (torch.tensor([[float("inf")], [0]]), "not finite"),
        ([torch.zeros(2, 3), torch.zeros(2, 4)], r"differ in shape: \(3,\) and \(4,\)"),
        ([(torch.zeros(2, 3), torch.zeros(2))], r"whole numbers \[2\], got torch.float32 \(2,\)"),
        ([(torch.zeros(2, 3), torch.zeros(3).long())], r"got torch.int64 \(3,\)"),
        ([(torch.zeros(2, 3), torch.tensor([0, -1]))], "0 or more, got -1"),
        ([(torch.zeros(2, 3), [0, 1])], r"must be a tensor \[2\], got list"),
        ([(torch.zeros(2, 3), torch.zeros(2).long()), torch.zeros(2, 3)], "2 of 4 data came with"),
    ],
)
def test_errors(data, message):
    with pytest.raises(ValueError, match=message):
        Moments.fit(data)


def test_no_fewer_directions_than_none():
    with pytest.raises(ValueError, match="directions must be 0"):
        Moments.fit(data_of(4, 2), directions=-1)


def labeled(count=900, classes=3, shape=(2, 3), seed=5):
    labels = torch.arange(count) % classes
    return data_of(count, *shape, seed=seed) + labels.view(-1, *(1 for _ in shape)), labels


def test_means_of_labels():
    data, labels = labeled()
    moments = Moments.fit(zip(data.split(100), labels.split(100), strict=True))
    for label in range(3):
        assert torch.allclose(moments.label_mean[label], data[labels == label].mean(dim=0), atol=1e-5)
    assert moments.label_mean.dtype == torch.float32
    assert moments.label_count.tolist() == [300] * 3
    assert torch.allclose(moments.mean, Moments.fit(data).mean)
    assert Moments.fit(data).label_mean is None
    assert Moments.fit(data).label_count is None


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_a_label_never_seen_has_the_mean_of_all(dtype):
    data, labels = labeled(classes=2)
    # Labels come to light batch by batch, the highest first and last.
    late = torch.cat([torch.full((1,), 3), labels[1:-1], torch.full((1,), 5)]).to(dtype)
    moments = Moments.fit(zip(data.split(50), late.split(50), strict=True))
    assert moments.label_count.tolist() == [449, 449, 0, 1, 0, 1]
    for never in (2, 4):
        assert torch.equal(moments.label_mean[never], moments.mean)
    assert torch.allclose(moments.label_mean[3], data[0], atol=1e-6)
    assert torch.allclose(moments.label_mean[5], data[-1], atol=1e-6)


def test_mean_of_channels():
    data = data_of(50, 3, 4, 5)
    whole = Moments.fit(data)
    assert torch.allclose(whole.channel_mean, data.mean(dim=(0, 2, 3)), atol=1e-5)
    assert torch.equal(Moments.fit(data_of(50, 6)).channel_mean, Moments.fit(data_of(50, 6)).mean)
    channels = Moments.fit_channels([data[:20], data[20:]])
    assert torch.allclose(channels.mean, whole.channel_mean, atol=1e-5)
    assert torch.equal(channels.channel_mean, channels.mean)
    assert channels.count == 50


def test_channels_of_data_of_many_sizes_weigh_by_position():
    small, large = data_of(4, 3, 2, 2), data_of(4, 3, 8, 2, seed=1)
    moments = Moments.fit_channels([small, (large, torch.zeros(4).long())])
    every = torch.cat([small.flatten(2), large.flatten(2)], dim=2).double()
    assert torch.allclose(moments.mean.double(), every.mean(dim=(0, 2)), atol=1e-5)
    variance = every.transpose(0, 1).flatten(1).var(dim=1, correction=0).mean()
    assert moments.variance == pytest.approx(float(variance))
    with pytest.raises(ValueError, match="differ in channels: 3 and"):
        Moments.fit_channels([small, data_of(2, 4, 2, 2)])
    with pytest.raises(ValueError, match="at least one sample"):
        Moments.fit_channels([])


def test_directions_are_those_of_numpy_svd():
    scales = torch.linspace(3, 0.2, 60)
    data = (data_of(400, 60).double() * scales).view(400, 3, 4, 5)
    moments = Moments.fit(data.split(64), directions=8)
    rows = (data - data.mean(dim=0)).flatten(1).numpy()
    _, values, vectors = np.linalg.svd(rows, full_matrices=False)
    assert moments.directions.shape == (8, 60)
    assert moments.directions.dtype == moments.spectrum.dtype == torch.float32
    assert np.allclose(moments.spectrum, values[:8] ** 2 / 400, rtol=1e-5)
    assert np.allclose(np.abs(moments.directions.numpy() @ vectors[:8].T), np.eye(8), atol=1e-4)


def test_directions_are_no_more_than_the_data_span():
    assert Moments.fit(data_of(5, 40)).directions.shape == (4, 40)
    assert Moments.fit(data_of(50, 3)).directions.shape == (3, 3)
    assert Moments.fit(data_of(50, 3), directions=0).directions is None
    assert Moments.fit(torch.ones(5, 4)).spectrum.sum() == 0


def test_equal_by_content():
    data = data_of(10, 3)
    one, same = Moments.fit(data), Moments.fit(data.clone())
    assert one == same
    assert hash(one) == hash(same)
    assert one != Moments.fit(data_of(10, 3, seed=1))
    assert one != dataclasses.replace(one, count=11)
    assert one != dataclasses.replace(one, variance=one.variance + 1e-9)
    assert one != dataclasses.replace(one, mean=one.mean.view(3, 1))
    assert one != dataclasses.replace(one, spectrum=one.spectrum * 2)
    assert one != dataclasses.replace(one, directions=-one.directions)
    assert one != Moments.fit([(data, torch.arange(10))])
    assert one != "moments"
    assert one.digest in repr(one)
    assert len(one.digest) == 16


def test_digest_does_not_change_between_versions():
    # It is written into runs; a change would make every resumed run look altered.
    moments = Moments(torch.arange(6.0).view(2, 3), 0.25, 7)
    assert moments.digest == "683f1f71a85db63c"


def test_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Moments.fit(data_of(3, 2)).count = 4


def test_saved_and_loaded_exactly(tmp_path):
    pytest.importorskip("safetensors")
    moments = Moments.fit(data_of(30, 2, 3))
    moments.save(tmp_path / "moments.safetensors")
    loaded = Moments.load(tmp_path / "moments.safetensors")
    assert loaded == moments
    assert torch.equal(loaded.mean, moments.mean)
    assert loaded.variance == moments.variance
    assert [path.name for path in tmp_path.iterdir()] == ["moments.safetensors"]


def test_every_field_is_saved(tmp_path):
    pytest.importorskip("safetensors")
    moments = Moments.fit([labeled()], directions=2)
    moments.save(tmp_path / "moments.safetensors")
    loaded = Moments.load(tmp_path / "moments.safetensors")
    assert loaded == moments
    for name in ("label_mean", "label_count", "directions", "spectrum"):
        assert torch.equal(getattr(loaded, name), getattr(moments, name)), name
        assert getattr(loaded, name).dtype == getattr(moments, name).dtype
        assert getattr(moments.to("meta"), name).device.type == "meta"


def test_files_of_a_mean_alone_are_still_read(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    mean = torch.arange(6.0).view(2, 3)
    save_file({"mean": mean}, tmp_path / "old", {"variance": "0.25", "count": "7"})
    loaded = Moments.load(tmp_path / "old")
    assert loaded == Moments(mean, 0.25, 7)
    assert loaded.digest == "683f1f71a85db63c"
    assert loaded.directions is None


def test_a_mean_that_is_a_view_is_saved(tmp_path):
    pytest.importorskip("safetensors")
    moments = Moments(torch.randn(4, 3).T, 1.0, 2)
    moments.save(tmp_path / "moments.safetensors")
    assert Moments.load(tmp_path / "moments.safetensors") == moments


def test_files_that_hold_no_moments(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    with pytest.raises(ValueError, match="does not exist"):
        Moments.load(tmp_path / "absent")
    (tmp_path / "text").write_text("moments")
    with pytest.raises(ValueError, match="text does not hold moments"):
        Moments.load(tmp_path / "text")
    save_file({"weight": torch.zeros(2)}, tmp_path / "weights")
    with pytest.raises(ValueError, match="weights does not hold moments"):
        Moments.load(tmp_path / "weights")
    save_file({"mean": torch.zeros(2)}, tmp_path / "odd", {"variance": "wide", "count": "7"})
    with pytest.raises(ValueError, match="odd does not hold moments"):
        Moments.load(tmp_path / "odd")


def test_to_device_keeps_content():
    moments = Moments.fit(data_of(3, 2))
    assert moments.to("cpu") == moments
    assert moments.to(torch.device("meta")).mean.device.type == "meta"
