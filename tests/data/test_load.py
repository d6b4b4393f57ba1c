"""Named sets: digits, Fashion-MNIST from local idx files, unknown names, the hub offline."""

import gzip
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from immiscible_diffusion.data import DataConfig, ImageSet, load_images
from immiscible_diffusion.data import load as sources

EVERY_CLASS = torch.arange(10)


def write_fashion(folder: Path, prefix: str, images: np.ndarray, packed: bool = False) -> None:
    folder.mkdir(exist_ok=True)
    labels = np.arange(len(images), dtype=np.uint8) % 10
    for name, array in ((f"{prefix}-images-idx3", images), (f"{prefix}-labels-idx1", labels)):
        head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        content = head + array.astype(np.uint8).tobytes()
        path = folder / f"{name}-ubyte{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(content) if packed else content)


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    write_fashion(tmp_path / "fashion", "train", rng.integers(0, 256, (30, 28, 28)))
    write_fashion(tmp_path / "fashion", "t10k", rng.integers(0, 256, (20, 28, 28)), packed=True)
    return tmp_path / "fashion"


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    pytest.importorskip("sklearn", reason="digits come with scikit-learn")
    dataset = load_images(DataConfig("digits"))
    assert isinstance(dataset, ImageSet)
    return dataset


def test_digits_are_those_of_scikit_learn(digits: ImageSet) -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    batch = digits.batch(torch.arange(1797))
    assert (len(digits), digits.shape, digits.num_classes) == (1797, (1, 8, 8), 10)
    expected = torch.from_numpy(bunch.images)[:, None] / 8 - 1
    assert torch.equal(batch.data.double(), expected)
    assert batch.cond is not None
    assert torch.equal(batch.cond["label"], torch.from_numpy(bunch.target).long())


def test_digits_have_one_split() -> None:
    with pytest.raises(ValueError, match="digits has the split train only, got 'test'"):
        load_images(DataConfig("digits", split="test"))


def test_digits_grown_keep_their_range(digits: ImageSet) -> None:
    grown = load_images(DataConfig("digits", size=16, channels=3))
    data = grown.batch(torch.arange(200)).data
    assert tuple(data.shape) == (200, 3, 16, 16)
    assert torch.equal(data[:, 0], data[:, 2])
    assert float(data.min()) >= -1
    assert float(data.max()) <= 1
    small = torch.nn.functional.avg_pool2d(data[:, :1], 2)
    truth = digits.batch(torch.arange(200)).data
    assert np.corrcoef(small.flatten(), truth.flatten())[0, 1] > 0.95


def test_max_samples_are_the_first(digits: ImageSet) -> None:
    few = load_images(DataConfig("digits", max_samples=7))
    assert len(few) == 7
    assert few.num_classes == 10
    rows = torch.arange(7)
    assert torch.equal(few.batch(rows).data, digits.batch(rows).data)
    assert len(load_images(DataConfig("digits", max_samples=10**6))) == 1797


def test_digits_with_a_path_are_digits_with_a_warning(digits: ImageSet) -> None:
    with pytest.warns(UserWarning, match=r"data\.path mine is not read"):
        found = load_images(DataConfig("digits", path="mine"))
    rows = torch.arange(len(digits))
    assert torch.equal(found.batch(rows).data, digits.batch(rows).data)


def test_without_labels() -> None:
    pytest.importorskip("sklearn", reason="digits come with scikit-learn")
    bare = load_images(DataConfig("digits", labels=False))
    assert bare.num_classes is None
    assert bare.batch(torch.arange(2)).cond is None


@pytest.mark.parametrize(("split", "count"), [("train", 30), ("test", 20)])
def test_fashion_from_plain_and_packed_files(fashion: Path, split: str, count: int) -> None:
    dataset = load_images(DataConfig("fashion_mnist", path=str(fashion), split=split))
    rng = np.random.default_rng(0)
    images = {"train": rng.integers(0, 256, (30, 28, 28)), "test": rng.integers(0, 256, (20, 28, 28))}
    batch = dataset.batch(torch.arange(count))
    assert (len(dataset), dataset.shape, dataset.num_classes) == (count, (1, 28, 28), 10)
    back = (batch.data[:, 0].double() + 1) * 127.5
    torch.testing.assert_close(back, torch.from_numpy(images[split]).double(), rtol=0, atol=1e-4)
    assert batch.cond is not None
    assert torch.equal(batch.cond["label"][:10], EVERY_CLASS)


def test_fashion_halved_keeps_means_and_symmetry(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(60, 200, (28, 28))
    flat, even = np.full((28, 28), 77), (image + image[:, ::-1]) // 2
    write_fashion(tmp_path / "f", "train", np.stack([flat, even]))
    config = DataConfig("fashion_mnist", path=str(tmp_path / "f"), size=14)
    small = (load_images(config).batch(torch.arange(2)).data[:, 0] + 1) * 127.5
    assert tuple(small.shape) == (2, 14, 14)
    torch.testing.assert_close(small[0], torch.full((14, 14), 77.0), rtol=0, atol=1e-3)
    torch.testing.assert_close(small[1], small[1].flip(-1), rtol=0, atol=1e-3)
    assert abs(float(small[1].mean()) - even.mean()) < 2


def test_fashion_of_the_same_size_is_untouched(fashion: Path) -> None:
    config = DataConfig("fashion_mnist", path=str(fashion))
    one, other = (load_images(c) for c in (config, replace(config, size=28)))
    assert torch.equal(one.batch(EVERY_CLASS).data, other.batch(EVERY_CLASS).data)


def test_fashion_folder_without_the_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lacks train-images-idx3-ubyte or train-labels"):
        load_images(DataConfig("fashion_mnist", path=str(tmp_path)))


def test_fashion_images_and_labels_must_agree(fashion: Path) -> None:
    labels = fashion / "train-labels-idx1-ubyte"
    labels.write_bytes(struct.pack(">HBBI", 0, 8, 1, 29) + bytes(29))
    with pytest.raises(ValueError, match=r"labels must be int64 \[30\]"):
        load_images(DataConfig("fashion_mnist", path=str(fashion)))


def test_fashion_has_train_and_test() -> None:
    with pytest.raises(ValueError, match="splits train and test, got 'valid'"):
        load_images(DataConfig("fashion_mnist", split="valid"))


def test_fashion_offline_says_what_to_do(tmp_path: Path, hf_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "DEBIAN_FASHION", tmp_path / "absent")
    with pytest.raises(ValueError, match=r"dataset-fashion-mnist, or set data\.path") as raised:
        load_images(DataConfig("fashion_mnist"))
    assert "zalandoresearch/fashion_mnist cannot be loaded from the hub" in str(raised.value)


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(ValueError, match="unknown data set 'mnist'; known: digits, fashion_mnist"):
        load_images(DataConfig("mnist"))


@pytest.mark.parametrize("wrong", [{"max_samples": 0}, {"size": 0}, {"channels": 2}])
def test_config_is_checked_at_once(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"data.{next(iter(wrong))} must be"):
        DataConfig(**wrong)  # type: ignore[arg-type]
