"""Prompts follow their images, wherever they come from."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fixtures.image_files import datasets, noise, pixels, save, whole_numbers, write_parquet
from immiscible_diffusion.data import DataConfig
from immiscible_diffusion.data.captions import Captioned, Captions, load_captioned
from immiscible_diffusion.data.prompts import class_prompts

pytestmark = pytest.mark.usefixtures("hf_cache")

TEXT = datasets.Value("string")


def tokens(texts: Sequence[str], length: int = 8) -> Tensor:
    """Letters as numbers, cut and filled to one length."""
    return torch.tensor([[ord(c) for c in text[:length].ljust(length)] for text in texts])


def folder(path: Path, captions: Captions | None = None, **options: Any) -> Captioned:
    config = DataConfig("folder", path=str(path), **options)
    return load_captioned(config, captions, tokens)


def written(tmp_path: Path, names: Sequence[str]) -> np.ndarray:
    arrays = noise(len(names))
    for array, name in zip(arrays, names, strict=True):
        save(array, tmp_path / f"{name}.png")
    return arrays


def all_texts(dataset: Captioned) -> list[str]:
    return dataset.texts(torch.arange(len(dataset)))


def test_metadata_captions_follow_their_images(tmp_path: Path) -> None:
    arrays = written(tmp_path, "abc")
    lines = [{"file_name": f"{name}.png", "text": f"this is {name}"} for name in "cab"]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    dataset = folder(tmp_path)
    by_image = dict(zip(map(bytes, pixels(dataset).numpy()), all_texts(dataset), strict=True))
    assert by_image == {bytes(array): f"this is {n}" for array, n in zip(arrays, "abc", strict=True)}


def test_text_files_beside_the_images(tmp_path: Path) -> None:
    written(tmp_path, "ab")
    (tmp_path / "a.txt").write_text("one\n line\n")
    with pytest.raises(ValueError, match=r"1 of 2 images have no caption, such as .*b\.txt"):
        folder(tmp_path)
    (tmp_path / "b.txt").write_text("")
    dataset = folder(tmp_path)
    assert all_texts(dataset) == ["one line", ""]
    batch = dataset.batch(torch.tensor([1, 0]))
    assert batch.cond is not None
    assert batch.cond["tokens"].dtype == torch.int64
    assert torch.equal(batch.cond["tokens"], tokens(["", "one line"]))


def test_an_absent_column_is_reported_with_the_others(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "train.parquet", noise(2), alt=(["x", "y"], TEXT))
    with pytest.raises(ValueError, match="'blip' is not there; columns: img, alt; of texts: alt"):
        folder(file, Captions("blip"))
    with pytest.raises(ValueError, match="'img' holds no texts"):
        folder(file, Captions("img"))
    with pytest.raises(ValueError, match=r"no prompts for its images.*columns: img, alt.*metadata\.jsonl"):
        folder(file)
    assert all_texts(folder(file, Captions("alt"))) == ["x", "y"]


def test_a_row_without_caption_is_refused_on_loading(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "train.parquet", noise(3), text=(["x", None, "z"], TEXT))
    with pytest.raises(ValueError, match="'text' has 1 of 3 rows without a caption"):
        folder(file)


@pytest.mark.parametrize("hole", [[], None, ["a", None]])
def test_so_is_one_without_any_of_several(tmp_path: Path, hole: list[str | None] | None) -> None:
    file = write_parquet(tmp_path / "train.parquet", noise(2), text=([["a", "b"], hole], [TEXT]))
    with pytest.raises(ValueError, match="1 of 2 rows without a caption"):
        folder(file)


def test_one_of_several_captions_is_drawn_and_all_come_up(tmp_path: Path) -> None:
    lists = datasets.Sequence(TEXT)
    file = write_parquet(tmp_path / "train.parquet", noise(2), captions=([["a", "b", "c"], ["d"]], lists))
    dataset = folder(file)
    assert all_texts(dataset) == ["a", "d"]
    rows = torch.zeros(300, dtype=torch.int64)
    said = dataset.texts(rows, torch.Generator().manual_seed(0))
    counts = [said.count(text) for text in "abc"]
    assert sum(counts) == 300
    assert min(counts) > 70  # 100 expected, standard deviation 8.2
    assert said == dataset.texts(rows, torch.Generator().manual_seed(0))


def test_class_names_as_prompts_and_labels_kept(tmp_path: Path) -> None:
    written(tmp_path, ["night_bird/1", "crane, big bird/1", "crane, big bird/2"])
    dataset = folder(tmp_path, Captions(template="a photo of a {label}"))
    assert all_texts(dataset) == ["a photo of a crane"] * 2 + ["a photo of a night bird"]
    cond = dataset.batch(torch.tensor([2, 0])).cond
    assert cond is not None
    assert cond["label"].tolist() == [1, 0]
    whole = folder(tmp_path, Captions(synonyms="all"))
    assert all_texts(whole)[0] == "crane, big bird"
    drawn = folder(tmp_path, Captions(synonyms="random"))
    some = set(drawn.texts(torch.zeros(50).long(), torch.Generator().manual_seed(1)))
    assert some == {"crane", "big bird"}


def test_captions_do_not_shift_the_flips(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "train.parquet", noise(6), text=(list("abcdef"), TEXT))
    dataset = folder(file, flip=True)
    rows = torch.arange(6)
    alone = dataset.images.batch(rows, torch.Generator().manual_seed(3)).data
    assert torch.equal(dataset.batch(rows, torch.Generator().manual_seed(3)).data, alone)


def test_several_tokenizers(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "train.parquet", noise(2), text=(["x", "y"], TEXT))
    both = folder(file).tokenized(lambda t: {"tokens": tokens(t), "tokens_2": tokens(t, 3)})
    cond = both.batch(torch.tensor([0, 1])).cond
    assert cond is not None
    assert {name: tuple(value.shape) for name, value in cond.items()} == {"tokens": (2, 8), "tokens_2": (2, 3)}


def test_imagenet_folders_take_their_names_from_the_list(tmp_path: Path) -> None:
    written(tmp_path, ["train/n01440764/1", "train/n01443537/1"])
    with pytest.raises(ValueError, match=r"named n01440764 .*LOC_synset_mapping\.txt"):
        load_captioned(DataConfig("imagenet-1k", path=str(tmp_path)))
    (tmp_path / "LOC_synset_mapping.txt").write_text(
        "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n"
    )
    dataset = load_captioned(DataConfig("imagenet-1k", path=str(tmp_path), size=4))
    assert all_texts(dataset) == ["tench", "goldfish"]
    assert dataset.shape == (3, 4, 4)
    assert dataset.batch(torch.tensor([0])).cond is not None


def test_names_from_a_file_in_the_order_of_the_classes(tmp_path: Path) -> None:
    numbers = whole_numbers([1, 0])
    file = write_parquet(tmp_path / "train.parquet", noise(2), numbers)
    (tmp_path / "names").write_text("zero\none\n")
    assert all_texts(folder(file, Captions(names=str(tmp_path / "names")))) == ["one", "zero"]
    (tmp_path / "names").write_text("zero\n")
    with pytest.raises(ValueError, match="has 1 names; expected one for each of 2 classes"):
        folder(file, Captions(names=str(tmp_path / "names")))


@pytest.mark.parametrize(
    ("name", "said"), [("imagenet-1k", "terms must be accepted"), ("hub:nobody/nothing", "data.path")]
)
def test_the_hub_out_of_reach_says_what_to_do(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load_captioned(DataConfig(name))


def coco(root: Path) -> Path:
    for number in (1, 2, 3):
        save(noise(3)[number - 1], root / "train2017" / f"{number:012d}.png")
    images = [{"id": n, "file_name": f"{n:012d}.png"} for n in (3, 1, 2)]
    said = [(1, "cat "), (2, "dog"), (1, "gray cat")]
    content = {"images": images, "annotations": [{"image_id": i, "caption": c} for i, c in said]}
    (root / "annotations").mkdir()
    (root / "annotations" / "captions_train2017.json").write_text(json.dumps(content))
    return root


def test_coco_as_it_is_published(tmp_path: Path) -> None:
    dataset = load_captioned(DataConfig("coco", path=str(coco(tmp_path))))
    assert [dataset.prompts.choices(row) for row in range(2)] == [["cat", "gray cat"], ["dog"]]
    assert np.array_equal(pixels(dataset).numpy(), noise(3)[:2])
    with pytest.raises(ValueError, match=r"val2017 .*annotations_trainval2017\.zip"):
        load_captioned(DataConfig("coco", path=str(tmp_path), split="validation"))
    with pytest.raises(ValueError, match=r"needs data\.path: download train2017\.zip"):
        load_captioned(DataConfig("coco"))


def test_digits_have_prompts_too() -> None:
    dataset = load_captioned(DataConfig("digits", max_samples=3), Captions(template="a {label}"))
    assert all_texts(dataset) == ["a 0", "a 1", "a 2"]


def test_runs_of_a_name_of_their_own_load(tmp_path: Path) -> None:
    arrays = written(tmp_path, ["a", "b"])
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name)
    dataset = load_captioned(DataConfig("my-photos", path=str(tmp_path), channels=3))
    assert dataset.texts(torch.arange(2)) == ["a", "b"]
    assert torch.equal(pixels(dataset), torch.from_numpy(arrays))
    with pytest.raises(ValueError, match="unknown data set 'my-photos'"):
        load_captioned(DataConfig("my-photos"))


def test_prompts_of_classes() -> None:
    assert class_prompts(["tench, Tinca", "a_b"], "see {label}") == ["see tench", "see a b"]
    with pytest.raises(ValueError, match=r"must contain \{label\}"):
        class_prompts(["a"], "image")
    with pytest.raises(ValueError, match="synonyms must be"):
        Captions(synonyms="some")  # type: ignore[arg-type]
