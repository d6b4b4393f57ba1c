"""A folder of samples as a data set."""

import pytest
import torch

from fixtures.sample_folders import draw, writer
from immiscible_diffusion.data.folder_of_samples import SampleFolder
from immiscible_diffusion.evaluation.generate_folder import generate_folder

pytest.importorskip("PIL", reason="images are written with Pillow")


@pytest.fixture(params=["png", "tar"])
def folder(request, tmp_path):
    generate_folder(writer(tmp_path, request.param), draw)
    return tmp_path


def test_samples_are_addressed_by_their_number(folder):
    samples, rows = SampleFolder(folder), torch.tensor([24, 3, 11])
    assert float((samples.batch(rows).data - draw(rows.tolist())).abs().max()) <= 1 / 127.5
    assert (len(samples), samples.shape) == (25, (3, 16, 16))
    small = SampleFolder(folder, 8, 1)
    assert small.batch(rows).data.shape == (3, *small.shape) == (3, 1, 8, 8)


def test_samples_come_with_their_prompts(folder):
    with pytest.raises(ValueError, match=r"prompts\.txt is absent"):
        SampleFolder(folder).prompts()
    (folder / "prompts.txt").write_text("a\nb\nc\n")
    pairs = list(SampleFolder(folder).with_prompts(10))
    assert [text for _, texts in pairs for text in texts] == ["abc"[row % 3] for row in range(25)]
    assert [len(images) for images, _ in pairs] == [10, 10, 5]


def test_empty_folders_and_damaged_shards_are_errors(tmp_path):
    with pytest.raises(ValueError, match="holds no images"):
        len(SampleFolder(tmp_path))
    (tmp_path / "images-00000.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(ValueError, match=r"images-00000\.tar is not a complete tar file"):
        len(SampleFolder(tmp_path))
