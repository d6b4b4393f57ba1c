"""Pictures in folders and parquet files: splits, labels, errors, lazy sets."""

from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from fixtures.image_files import datasets, folder, labels_of, noise, pixels, save, whole_numbers, write_parquet
from immiscible_diffusion.data import DataConfig, ImageSet, LazyImageSet, load_images
from immiscible_diffusion.data.image_decoding import decode_image

pytestmark = pytest.mark.usefixtures("hf_cache")


def test_flat_folder_has_no_labels(tmp_path: Path) -> None:
    arrays = noise(3)
    for number, array in enumerate(arrays):
        save(array, tmp_path / "pics" / f"{number}.png")
    (tmp_path / "pics" / "notes.txt").write_text("not an image")
    dataset = folder(tmp_path / "pics")
    assert (len(dataset), dataset.num_classes, dataset.note) == (3, None, "")
    assert torch.equal(pixels(dataset), torch.from_numpy(arrays))


def test_sub_folders_are_classes(tmp_path: Path) -> None:
    arrays = noise(4)
    for array, name in zip(arrays, ("dog/1", "dog/2", "ant/1", "cat/1"), strict=True):
        save(array, tmp_path / "pics" / f"{name}.png")
    dataset = folder(tmp_path / "pics")
    assert isinstance(dataset, ImageSet)
    assert dataset.class_names == ("ant", "cat", "dog")
    found = {(label, bytes(p.numpy())) for label, p in zip(labels_of(dataset), pixels(dataset), strict=True)}
    assert found == {(label, a.tobytes()) for label, a in zip((2, 2, 0, 1), arrays, strict=True)}
    assert folder(tmp_path / "pics", labels=False).num_classes is None


def test_loose_images_beside_sub_folders_are_no_class(tmp_path: Path) -> None:
    for name in ("cat/1", "dog/1", "loose"):
        save(noise(1)[0], tmp_path / "pics" / f"{name}.png")
    dataset = folder(tmp_path / "pics")
    assert (len(dataset), dataset.num_classes) == (3, None)


def test_train_and_test_sub_folders(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 2)):
        for number in range(count):
            save(noise(5)[number], tmp_path / "pics" / split / "abc"[number] / "1.png")
    train, test = (folder(tmp_path / "pics", split=split) for split in ("train", "test"))
    assert (len(train), train.num_classes) == (3, 3)
    assert (len(test), test.num_classes) == (2, 2)
    with pytest.raises(ValueError, match="has no folder 'validation'"):
        folder(tmp_path / "pics", split="validation")


def test_folder_name_of_glob_characters(tmp_path: Path) -> None:
    save(noise(1)[0], tmp_path / "run [1] *x" / "1.png")
    assert len(folder(tmp_path / "run [1] *x")) == 1
    write_parquet(tmp_path / "set [2]" / "train.parquet", noise(2))
    assert len(folder(tmp_path / "set [2]")) == 2


@pytest.mark.parametrize("content", ["nothing", "text"])
def test_folder_without_images(tmp_path: Path, content: str) -> None:
    (tmp_path / "pics").mkdir()
    if content == "text":
        (tmp_path / "pics" / "a.txt").write_text("a")
    with pytest.raises(ValueError, match=r"pics has no images$"):
        folder(tmp_path / "pics")
    (tmp_path / "pics" / "a.tar").touch()
    with pytest.raises(ValueError, match=r"read with data\.stream"):
        folder(tmp_path / "pics")


def test_missing_or_wrong_path(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="absent does not exist"):
        folder(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"needs data\.path"):
        load_images(DataConfig("folder"))
    file = save(noise(1)[0], tmp_path / "one.png")
    with pytest.raises(ValueError, match=r"neither a folder nor a \.parquet file"):
        folder(file)


@pytest.mark.parametrize("in_memory_gib", [0.0, 4.0])
def test_mixed_sizes_need_a_size(tmp_path: Path, in_memory_gib: float) -> None:
    save(noise(1, 6, 9)[0], tmp_path / "pics" / "1.png")
    save(noise(1, 12, 7)[0], tmp_path / "pics" / "2.png")
    with pytest.raises(ValueError, match=r"\(3, 6, 9\) and \(3, 12, 7\); set data.size"):
        pixels(folder(tmp_path / "pics", in_memory_gib=in_memory_gib))
    dataset = folder(tmp_path / "pics", size=5, in_memory_gib=in_memory_gib)
    assert pixels(dataset).shape == (2, 5, 5, 3)


@pytest.mark.parametrize("damage", ["cut", "text"])
def test_corrupt_image_is_named(tmp_path: Path, damage: str) -> None:
    for number in range(3):
        save(noise(1, 40, 40)[0], tmp_path / "pics" / f"{number}.png")
    bad = tmp_path / "pics" / "1.png"
    bad.write_bytes(bad.read_bytes()[:200] if damage == "cut" else b"this is not an image")
    with pytest.raises(ValueError, match=r"1\.png cannot be read as an image: .*; repair or remove it$"):
        folder(tmp_path / "pics")


@pytest.mark.parametrize("named", [False, True], ids=["integers", "ClassLabel"])
def test_parquet_labels(tmp_path: Path, named: bool) -> None:
    names = ["ant", "bee", "cat", "dog"]
    values = [2, 0, 1, 2]
    labels = (values, datasets.ClassLabel(names=names)) if named else whole_numbers(values)
    write_parquet(tmp_path / "train.parquet", noise(4), labels)
    dataset = folder(tmp_path)
    assert isinstance(dataset, ImageSet)
    assert labels_of(dataset) == values
    assert dataset.class_names == (tuple(names) if named else ("0", "1", "2"))
    assert torch.equal(pixels(dataset), torch.from_numpy(noise(4)))
    assert folder(tmp_path, labels=False).num_classes is None


def test_max_samples_do_not_change_the_classes(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", noise(6), whole_numbers([0, 1, 0, 4, 1, 0]))
    few = folder(tmp_path, max_samples=2)
    assert (len(few), few.num_classes, labels_of(few)) == (2, 5, [0, 1])
    assert torch.equal(pixels(few), torch.from_numpy(noise(6)[:2]))


@pytest.mark.parametrize("missing", [-1, None])
def test_rows_without_a_label(tmp_path: Path, missing: int | None) -> None:
    write_parquet(tmp_path / "train.parquet", noise(3), whole_numbers([0, missing, 1]))
    with pytest.raises(ValueError, match=r"rows without a label .* set data\.labels false"):
        folder(tmp_path)
    assert len(folder(tmp_path, labels=False)) == 3


def test_parquet_splits_go_by_name_and_folder(tmp_path: Path) -> None:
    write_parquet(tmp_path / "named" / "train-00000-of-00001.parquet", noise(3))
    write_parquet(tmp_path / "named" / "test-00000-of-00001.parquet", noise(2))
    write_parquet(tmp_path / "latest" / "default" / "train" / "0000.parquet", noise(4))
    assert len(folder(tmp_path / "named")) == 3
    assert len(folder(tmp_path / "named", split="test")) == 2
    assert len(folder(tmp_path / "latest")) == 4
    with pytest.raises(ValueError, match="no parquet file there has 'test'"):
        folder(tmp_path / "latest", split="test")


def test_training_file_is_not_taken_for_a_test_split(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "faces.parquet", noise(3))
    assert len(folder(file)) == 3
    with pytest.raises(ValueError, match="no parquet file there has 'test'"):
        folder(file, split="test")
    test = write_parquet(tmp_path / "test-0.parquet", noise(2))
    assert len(folder(test, split="test")) == 2


def test_parquet_without_images_or_rows(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict({"text": ["a", "b"]})
    table.to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="no column of images; columns: text"):
        folder(tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"not parquet")
    with pytest.raises(ValueError, match="cannot be read as images"):
        folder(tmp_path)


@pytest.mark.parametrize("options", [{}, {"size": 4}, {"channels": 1}, {"max_samples": 3}])
def test_lazy_and_in_memory_batches_are_equal(tmp_path: Path, options: dict[str, Any]) -> None:
    write_parquet(tmp_path / "train.parquet", noise(8, 6, 7), whole_numbers([0, 1, 2, 3] * 2))
    held, lazy = (folder(tmp_path, flip=True, in_memory_gib=g, **options) for g in (4.0, 0.0))
    assert isinstance(held, ImageSet)
    assert isinstance(lazy, LazyImageSet)
    assert (len(lazy), lazy.shape, lazy.num_classes) == (len(held), held.shape, held.num_classes)
    rows = torch.tensor([2, 0, 2, 1])
    for seed in (None, 0, 1):
        generators = [None if seed is None else torch.Generator().manual_seed(seed) for _ in "ab"]
        one, other = held.batch(rows, generators[0]), lazy.batch(rows, generators[1])
        assert torch.equal(one.data, other.data)
        assert one.cond is not None
        assert other.cond is not None
        assert torch.equal(one.cond["label"], other.cond["label"])


def test_lazy_digest_knows_its_rows(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", noise(8))
    configs = ({}, {}, {"max_samples": 5}, {"size": 4}, {"channels": 1})
    digests = [folder(tmp_path, in_memory_gib=0, **options).digest for options in configs]  # type: ignore
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4


@pytest.mark.parametrize(
    ("name", "kind", "note"), [("cifar10", "JPEG", "JPEG re-encoded"), ("cifar10", "PNG", ""), ("folder", "JPEG", "")]
)
@pytest.mark.parametrize("in_memory_gib", [0.0, 4.0])
def test_jpeg_note_is_for_cifar10_in_jpeg(
    tmp_path: Path, name: str, kind: str, note: str, in_memory_gib: float
) -> None:
    write_parquet(tmp_path / "train.parquet", noise(2), kind=kind)
    config = DataConfig(name, path=str(tmp_path), in_memory_gib=in_memory_gib)
    assert load_images(config).note == note


def test_jpeg_note_of_a_folder_of_files(tmp_path: Path) -> None:
    save(noise(1)[0], tmp_path / "pics" / "1.jpg")
    assert load_images(DataConfig("cifar10", path=str(tmp_path / "pics"))).note == "JPEG re-encoded"


@pytest.mark.parametrize("name", ["cifar10", "hub:someone/images"])
def test_offline_error_names_the_set_and_the_way_out(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be loaded from the hub") as raised:
        load_images(DataConfig(name))
    assert "uoft-cs/cifar10" in str(raised.value) or "someone/images" in str(raised.value)
    assert "go online once, or set data.path to a local copy" in str(raised.value)


def test_cifar10_as_published_here(shared_data: Path) -> None:
    config = DataConfig("cifar10", path=str(shared_data / "cifar10"), split="test", max_samples=64)
    dataset = load_images(config)
    assert (len(dataset), dataset.shape, dataset.num_classes) == (64, (3, 32, 32), 10)
    assert dataset.note == "JPEG re-encoded"
    assert isinstance(dataset, ImageSet)
    assert dataset.class_names is not None
    assert dataset.class_names[0] == "airplane"
    data = dataset.batch(torch.arange(64)).data
    assert -0.3 < float(data.mean()) < 0.2
    assert 0.3 < float(data.std()) < 0.7
    assert len(set(labels_of(dataset))) >= 8


def test_chosen_samples_are_those_of_a_shuffled_set(tmp_path: Path) -> None:
    """As diffusers' max_train_samples: ``shuffle(seed).select(range(n))``."""
    arrays = noise(12)
    write_parquet(tmp_path / "train.parquet", arrays, whole_numbers([*range(12)]))
    chosen = folder(tmp_path, max_samples=5, max_samples_seed=3)
    rows = datasets.Dataset.from_dict({"row": [*range(12)]}).shuffle(seed=3)["row"][:5]
    assert labels_of(chosen) == list(rows)
    assert torch.equal(pixels(chosen), torch.from_numpy(arrays[list(rows)]))
    digits = load_images(DataConfig("digits", max_samples=5, max_samples_seed=3))
    every = load_images(DataConfig("digits"))
    order = datasets.Dataset.from_dict({"row": [*range(len(every))]}).shuffle(seed=3)["row"][:5]
    assert torch.equal(digits.images, every.images[list(order)])


# -- worker processes -----------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 2])
def test_files_decoded_by_any_number_of_workers_are_the_same(tmp_path, start):
    """Three batches an epoch: one that starts at step 2 is resumed in the middle of an epoch."""
    for number, array in enumerate(noise(12)):
        save(array, tmp_path / f"{number}.png")
    images = folder(tmp_path, in_memory_gib=0, flip=True, size=4)
    made = [images.batches(4, 0, start=start, ahead=0, num_workers=workers) for workers in range(4)]
    for plain, *others in islice(zip(*made, strict=True), 5):
        for other in others:
            assert torch.equal(other.data, plain.data)
            assert torch.equal(other.index, plain.index)


def test_what_a_worker_cannot_read_is_named_by_its_file(tmp_path):
    for number, array in enumerate(noise(4)):
        save(array, tmp_path / f"{number}.png")
    images = folder(tmp_path, in_memory_gib=0)
    (tmp_path / "2.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"^\S*2\.png cannot be read as an image"):
        next(images.batches(4, 0, ahead=0, num_workers=1))


def test_an_image_without_a_file_is_named_by_its_number():
    rows = [{"img": {"bytes": b"not an image", "path": None}}]
    images = LazyImageSet(rows, "img", partial(decode_image, mode="RGB"), (3, 6, 6), "birds")
    with pytest.raises(ValueError, match="image 0 of birds cannot be read as an image"):
        images.batch(torch.tensor([0]))
