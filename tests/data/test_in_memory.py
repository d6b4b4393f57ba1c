import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from immiscible_diffusion.cli.data_options import DataOptions
from immiscible_diffusion.data import DataConfig
from immiscible_diffusion.data.in_memory import load_arrays, load_in_memory

RANDOM = np.random.default_rng(0)
ACTIONS = RANDOM.normal(size=(12, 5, 2)).astype(np.float32)


def npz(tmp_path, **arrays):
    path = tmp_path / "arrays.npz"
    np.savez(path, **arrays)
    return path


def test_named_data_are_complete_with_labels_and_class_names():
    pytest.importorskip("sklearn", reason="digits come with scikit-learn")
    whole = load_in_memory(DataConfig(name="digits"))
    assert whole.batch.data.shape == (1797, 1, 8, 8)
    assert whole.batch.data.dtype == torch.float32
    assert float(whole.batch.data.min()) == -1
    assert whole.batch.cond["label"].bincount().min() > 100
    assert whole.class_names == tuple("0123456789")
    assert not whole.mirrored


def test_a_subset_is_random_by_the_seed_and_says_so():
    pytest.importorskip("sklearn", reason="digits come with scikit-learn")
    config = DataConfig(name="digits")
    every = load_in_memory(config).batch.data.flatten(1)
    some, again, other = (load_in_memory(config, 50, seed=seed) for seed in (0, 0, 1))
    assert_array_equal(some.batch.data, again.batch.data)
    assert not torch.equal(some.batch.data, other.batch.data)
    rows = [int((every == row).all(dim=1).nonzero()[0]) for row in some.batch.data.flatten(1)]
    assert rows == sorted(rows)
    assert max(rows) > 1000  # not the first ones
    assert some.note == "a random 50 of 1,797 (seed 0)"


def test_mirror_images_follow_their_originals():
    pytest.importorskip("sklearn", reason="digits come with scikit-learn")
    whole = load_in_memory(DataConfig(name="digits", flip=True), 20)
    assert whole.mirrored
    assert_array_equal(whole.batch.data[20:], whole.batch.data[:20].flip(-1))
    assert_array_equal(whole.batch.cond["label"][20:], whole.batch.cond["label"][:20])
    assert "mirror" in whole.note


def test_a_folder_of_images_by_its_path(tmp_path, hf_cache):
    image = pytest.importorskip("PIL.Image", reason="writes images")
    for label in ("cat", "dog"):
        for number in range(3):
            (tmp_path / "images" / label).mkdir(parents=True, exist_ok=True)
            pixels = RANDOM.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            image.fromarray(pixels).save(tmp_path / "images" / label / f"{number}.png")
    options = DataOptions(data=str(tmp_path / "images"), cond=("label",), max_images=4)
    whole = options.load()
    assert whole.batch.data.shape == (4, 3, 6, 6)
    assert whole.name == "images"
    assert whole.class_names == ("cat", "dog")
    assert whole.batch.cond["label"].shape == (4,)


def test_npy_is_one_array(tmp_path):
    np.save(tmp_path / "windows.npy", ACTIONS)
    whole = load_arrays(tmp_path / "windows.npy")
    assert_array_equal(whole.batch.data, ACTIONS)
    assert (whole.name, whole.note, whole.batch.cond) == ("windows.npy", "", None)


def test_npz_with_conditions_and_mask_and_a_subset_that_keeps_rows_together(tmp_path):
    number = np.arange(12)
    path = npz(
        tmp_path,
        action=np.broadcast_to(number[:, None, None], (12, 5, 2)).astype(np.float64),
        obs=number[:, None] * np.ones((1, 3)),
        task=number,
        valid=(number[:, None, None] % 2 == 0) | (np.arange(5)[:, None] > 0),
    )
    options = DataOptions(data=str(path), array="action", cond=("obs", "task"), mask="valid", max_images=7)
    batch = options.load(seed=3).batch
    assert batch.data.shape == (7, 5, 2)
    assert_array_equal(batch.cond["obs"][:, 0], batch.data[:, 0, 0])
    assert_array_equal(batch.cond["task"], batch.data[:, 0, 0].long())
    assert batch.cond["task"].dtype == torch.int64
    assert_array_equal(batch.mask[:, 0, 0], batch.data[:, 0, 0] % 2 == 0)


def test_safetensors(tmp_path):
    files = pytest.importorskip("safetensors.torch")
    latents = torch.randn(6, 4, 2, 2).to(torch.bfloat16)
    path = tmp_path / "latents.safetensors"
    files.save_file({"latents": latents, "label": torch.arange(6)}, str(path))
    whole = load_arrays(path, cond=("label",))
    assert_array_equal(whole.batch.data, latents.float())
    assert_array_equal(whole.batch.cond["label"], torch.arange(6))


def test_bytes_are_images_and_other_numbers_are_unchanged(tmp_path):
    pixels = RANDOM.integers(0, 256, (3, 6, 5, 3), dtype=np.uint8)
    whole = load_arrays(npz(tmp_path, pixels=pixels))
    assert whole.batch.data.shape == (3, 3, 6, 5)
    expected = np.moveaxis(pixels, -1, 1) / 127.5 - 1
    assert np.abs(whole.batch.data.numpy() - expected).max() < 1e-6
    assert whole.note == "bytes scaled from 0 ... 255 to [-1, 1], channels moved to the front"
    whole = load_arrays(npz(tmp_path, counts=np.full((3, 4), 300, dtype=">i4")))
    assert float(whole.batch.data.max()) == 300
    assert "as they are" in whole.note


def test_words_are_labels_with_names(tmp_path):
    words = np.array(["push", "lift", "push", "turn"])
    whole = load_arrays(npz(tmp_path, data=ACTIONS[:4], task=words), cond=("task",))
    assert whole.class_names == ("lift", "push", "turn")
    assert whole.batch.cond["task"].tolist() == [1, 0, 1, 2]


def test_one_mask_for_all_and_mirrored_masks(tmp_path):
    mask = np.array([[[[1, 1, 0]]]])
    options = DataOptions(data=str(npz(tmp_path, data=np.ones((5, 1, 3, 3)), mask=mask)), mask="mask", flip=True)
    batch = options.load().batch
    assert batch.mask[0, 0, 0].tolist() == [True, True, False]
    assert batch.mask[-1, 0, 0].tolist() == [False, True, True]


def test_only_masked_data_may_be_not_finite(tmp_path):
    data = ACTIONS.copy()
    data[9, 2, 1] = np.nan
    mask = np.isfinite(data)
    whole = load_arrays(npz(tmp_path, data=data, mask=mask), mask="mask")
    assert not bool(whole.batch.mask[9, 2, 1])
    with pytest.raises(ValueError, match="'data' is not finite in row 9;"):
        load_arrays(npz(tmp_path, data=data, mask=mask))


NAN = np.array([0.0, np.nan] + [1.0] * 10)
REFUSED = [
    ({"a": ACTIONS, "b": ACTIONS}, {}, r"several arrays \(a, b\).*--array"),
    ({"a": ACTIONS}, {"data": "b"}, "no array 'b'; there are: a"),
    ({"a": ACTIONS}, {"cond": ("c",)}, "no array 'c'; there are: a"),
    ({"a": ACTIONS, "c": np.arange(3)}, {"cond": ("c",)}, r"12 rows like the data, got shape \(3"),
    ({"a": ACTIONS, "c": NAN}, {"cond": ("c",)}, "condition 'c' .* finite"),
    ({"a": ACTIONS, "c": -np.arange(12)}, {"cond": ("c",)}, "labels must be from 0, got -11"),
    ({"a": ACTIONS, "m": np.ones((12, 5))}, {"mask": "m"}, "expected one that broadcasts"),
    ({"a": ACTIONS, "m": np.full((12, 5, 2), 2)}, {"mask": "m"}, "true and false"),
    ({"a": ACTIONS, "m": np.zeros((1, 5, 2))}, {"mask": "m"}, "no valid position"),
    ({"a": np.arange(12.0)}, {}, r"data \[N, ...\]"),
    ({"a": np.zeros((0, 3))}, {}, r"at least one sample"),
    ({"a": np.array([["x", "y"]])}, {}, "must be numbers"),
    ({"a": ACTIONS > 0}, {}, "must be numbers, got torch.bool"),
    ({"a": ACTIONS * 1j}, {}, "must be numbers, got complex"),
    ({"a": ACTIONS}, {"max_samples": 0}, "at least 1, got 0"),
]


@pytest.mark.parametrize(("arrays", "arguments", "expected"), REFUSED)
def test_bad_arrays_are_refused(tmp_path, arrays, arguments, expected):
    with pytest.raises(ValueError, match=expected):
        load_arrays(npz(tmp_path, **arrays), **arguments)


class Exploding:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was read",))


@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_pickles_are_never_read(tmp_path, ending):
    objects = np.array([Exploding()], dtype=object)
    path = tmp_path / f"objects.{ending}"
    save = np.save if ending == "npy" else np.savez
    save(path, objects, allow_pickle=True)
    with pytest.raises(ValueError, match="pickles are never read"):
        load_arrays(path)


@pytest.mark.parametrize("ending", ["npy", "npz", "safetensors"])
def test_broken_files_are_refused(tmp_path, ending):
    path = tmp_path / f"broken.{ending}"
    with pytest.raises(ValueError, match="does not exist"):
        load_arrays(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match="cannot be read"):
        load_arrays(path)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (DataOptions(), "which data"),
        (DataOptions(data="nothing"), "no data set, folder or file 'nothing'"),
        (DataOptions(data="nothing", place="a"), "--path is for a named data set"),
        (DataOptions(data="digits", mask="m"), "--mask is for a file of arrays"),
        (DataOptions(data="digits", cond=("text",)), "the condition 'label' only, got 'text'"),
        (DataOptions(data="a.npz", size=3), "--size is for images"),
        (DataOptions(data="a.npz", cond=("c", "c")), "given twice"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, expected):
    with pytest.raises(ValueError, match=expected):
        options.load()


def test_only_images_have_mirror_images(tmp_path):
    np.save(tmp_path / "a.npy", ACTIONS)
    with pytest.raises(ValueError, match="leave out flip"):
        DataOptions(data=str(tmp_path / "a.npy"), flip=True).load()
