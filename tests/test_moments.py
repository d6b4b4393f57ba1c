import dataclasses

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
        ([], "at least one datum, got none"),
        (torch.zeros(0, 3), "at least one datum, got none"),
        (torch.tensor([[float("nan")]]), "not finite"),
        (torch.tensor([[float("inf")], [0]]), "not finite"),
        ([torch.zeros(2, 3), torch.zeros(2, 4)], r"differ in shape: \(3,\) and \(4,\)"),
    ],
)
def test_errors(data, message):
    with pytest.raises(ValueError, match=message):
        Moments.fit(data)


def test_equal_by_content():
    data = data_of(10, 3)
    one, same = Moments.fit(data), Moments.fit(data.clone())
    assert one == same
    assert hash(one) == hash(same)
    assert one != Moments.fit(data_of(10, 3, seed=1))
    assert one != dataclasses.replace(one, count=11)
    assert one != dataclasses.replace(one, variance=one.variance + 1e-9)
    assert one != dataclasses.replace(one, mean=one.mean.view(3, 1))
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


def test_to_device_keeps_content():
    moments = Moments.fit(data_of(3, 2))
    assert moments.to("cpu") == moments
    assert moments.to(torch.device("meta")).mean.device.type == "meta"
