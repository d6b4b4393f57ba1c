import numpy as np
import pytest
import torch

from immiscible_diffusion.analysis.thumbnails import HEIGHT, WIDTH, ThumbnailStyle, plane

Image = pytest.importorskip("PIL.Image", reason="writes pictures")


def saved(data, tmp_path):
    path = tmp_path / "sample.png"
    ThumbnailStyle.of(data).save(data[0], path)
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_shown_as_they_are(tmp_path, channels):
    levels = torch.randint(0, 256, (5, channels, 4, 6))
    data = levels / 127.5 - 1
    data[1, 0, 0, 0], data[1, 0, 0, 1] = -1, 1
    shown = saved(data, tmp_path)
    expected = levels[0].permute(1, 2, 0).numpy()
    assert (shown.reshape(4, 6, channels) == expected).all()
    assert ThumbnailStyle.of(data).note == ""


def test_data_from_0_to_1_are_shown_on_that_range(tmp_path):
    data = torch.rand(5, 1, 4, 4)
    data[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    assert saved(data, tmp_path)[0, :2].tolist() == [0, 255]


@pytest.mark.parametrize(
    ("shape", "expected", "note"),
    [
        ((4, 8, 6), (1, 8, 6), "the first channel, gray"),
        ((3, 5, 8, 6), (3, 8, 6), "the frame in the middle"),
        ((5, 3, 8, 6), (3, 8, 6), "the frame in the middle"),
        ((4, 5, 8, 6), (1, 8, 6), "the frame in the middle and the first channel, gray"),
    ],
)
def test_a_plane_of_latents_and_video_is_drawn(tmp_path, shape, expected, note):
    data = torch.randn(10, *shape)
    assert plane(data[0]).shape == expected
    assert note in ThumbnailStyle.of(data).note
    assert "values from" in ThumbnailStyle.of(data).note
    assert saved(data, tmp_path).shape[:2] == expected[1:]


def test_windows_are_curves(tmp_path):
    for shape in ((16, 2), (1, 2), (7,), (16, 20)):
        assert saved(torch.randn(10, *shape), tmp_path).shape == (HEIGHT, WIDTH, 3)
    assert "the first 8" in ThumbnailStyle.of(torch.randn(10, 16, 20)).note


@pytest.mark.parametrize("shape", [(1,), (2,), (2, 2, 2, 2, 2)])
def test_the_note_of_shapes_that_are_not_drawn(shape):
    style = ThumbnailStyle.of(torch.randn(10, *shape))
    assert style.kind == "none"
    assert "are not drawn" in style.note


def test_constant_data_have_a_range():
    style = ThumbnailStyle.of(torch.full((3, 1, 2, 2), 7.0))
    assert style.low < 7 < style.high
