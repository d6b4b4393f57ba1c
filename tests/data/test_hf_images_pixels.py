"""What becomes of the pixels: modes, bit depths, rotation, resizing, cropping."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fixtures.image_files import Image, folder, noise, pixels, save
from immiscible_diffusion.data.image_decoding import ORIENTATION, image_size, open_image

pytestmark = pytest.mark.usefixtures("hf_cache")


def test_palette_and_transparency_become_color(tmp_path: Path) -> None:
    base = (noise(1)[0] > 127).astype(np.uint8) * 255  # eight colors: a palette holds them
    opaque = np.concatenate([base, np.full((6, 6, 1), 255, np.uint8)], -1)
    save(base, tmp_path / "pics" / "1.png")
    save(opaque, tmp_path / "pics" / "2.png")
    palette = Image.fromarray(base).convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    palette.save(tmp_path / "pics" / "3.png")
    gray = save(base[..., 0], tmp_path / "pics" / "4.png")
    read = pixels(folder(tmp_path / "pics"))
    assert torch.equal(read[:3], torch.from_numpy(base).expand(3, -1, -1, -1))
    assert torch.equal(read[3], torch.from_numpy(np.repeat(base[..., :1], 3, -1)))
    assert gray.exists()


def test_gray_stays_gray_unless_asked(tmp_path: Path) -> None:
    array = noise(1)[0, ..., 0]
    save(array, tmp_path / "pics" / "1.png")
    Image.fromarray(array).convert("LA").save(tmp_path / "pics" / "2.png")
    expected = torch.from_numpy(array)[..., None]
    assert torch.equal(pixels(folder(tmp_path / "pics")), expected.expand(2, 6, 6, 1))
    colored = pixels(folder(tmp_path / "pics", channels=3))
    assert torch.equal(colored, expected.expand(2, 6, 6, 3))


def test_color_made_gray_is_luma(tmp_path: Path) -> None:
    array = noise(1)[0]
    save(array, tmp_path / "pics" / "1.png")
    luma = torch.from_numpy(array @ np.array([0.299, 0.587, 0.114]))
    read = pixels(folder(tmp_path / "pics", channels=1))[0, ..., 0]
    torch.testing.assert_close(read.double(), luma, rtol=0, atol=1)


@pytest.mark.parametrize("kind", ["png", "tif"])
@pytest.mark.parametrize("channels", [None, 3])
def test_sixteen_bit_gray_is_scaled_not_clipped(tmp_path: Path, kind: str, channels: int | None) -> None:
    values = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
    save(values, tmp_path / "pics" / f"1.{kind}")
    read = pixels(folder(tmp_path / "pics", channels=channels))[0]
    assert read.shape == (8, 8, channels or 1)
    expected = torch.from_numpy(values.astype(np.float64) / 257)
    torch.testing.assert_close(read[..., 0].double(), expected, rtol=0, atol=0.5)


def test_floating_point_images_are_refused(tmp_path: Path) -> None:
    save(np.linspace(0, 1, 36, dtype=np.float32).reshape(6, 6), tmp_path / "pics" / "1.tif")
    with pytest.raises(ValueError, match=r"1\.tif cannot be read as an image: .*floating-point"):
        folder(tmp_path / "pics")


def test_camera_rotation_is_undone(tmp_path: Path) -> None:
    array = noise(1, 4, 7)[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned a quarter clockwise
    save(array, tmp_path / "pics" / "1.png", exif=exif)
    read = pixels(folder(tmp_path / "pics"))[0]
    assert torch.equal(read, torch.from_numpy(np.rot90(array, -1).copy()))


def test_halving_averages_blocks_and_keeps_symmetry(tmp_path: Path) -> None:
    image = noise(1, 8, 8)[0] // 2
    even = image + image[:, ::-1]
    save(even, tmp_path / "pics" / "1.png")
    save(np.full((8, 8, 3), 77, np.uint8), tmp_path / "pics" / "2.png")
    read = pixels(folder(tmp_path / "pics", size=4)).double()
    blocks = torch.from_numpy(even.reshape(4, 2, 4, 2, 3).mean((1, 3)))
    torch.testing.assert_close(read[0], blocks, rtol=0, atol=1)
    assert torch.equal(read[0], read[0].flip(1))
    assert torch.equal(read[1], torch.full((4, 4, 3), 77.0, dtype=torch.float64))


@pytest.mark.parametrize("size", [3, 5, 8, 13])
def test_constant_stays_constant(tmp_path: Path, size: int) -> None:
    save(np.full((8, 11, 3), 201, np.uint8), tmp_path / "pics" / "1.png")
    read = pixels(folder(tmp_path / "pics", size=size))
    assert torch.equal(read, torch.full((1, size, size, 3), 201, dtype=torch.uint8))


@pytest.mark.parametrize("turned", [False, True], ids=["wide", "tall"])
def test_crop_is_the_center_square(tmp_path: Path, turned: bool) -> None:
    array = noise(1, 6, 10)[0]
    center = array[:, 2:8]
    if turned:
        array, center = array.transpose(1, 0, 2), center.transpose(1, 0, 2)
    save(np.ascontiguousarray(array), tmp_path / "pics" / "1.png")
    read = pixels(folder(tmp_path / "pics", size=6))[0]
    assert torch.equal(read, torch.from_numpy(center.copy()))


def test_resize_keeps_the_aspect_ratio(tmp_path: Path) -> None:
    """A disc on a wide ground is a disc after halving, not an ellipse."""
    rows, columns = np.mgrid[-15.5:16, -31.5:32]
    disc = np.where(rows**2 + columns**2 < 100, 255, 0).astype(np.uint8)
    save(disc, tmp_path / "pics" / "1.png")
    read = pixels(folder(tmp_path / "pics", size=16))[0, ..., 0].double()
    assert read.shape == (16, 16)
    torch.testing.assert_close(read, read.T, rtol=0, atol=1)
    assert float(read.sum()) == pytest.approx(disc.astype(float).sum() / 4, rel=0.01)


def test_colors_under_transparency_are_ignored(tmp_path: Path) -> None:
    red = np.full((6, 6, 4), (200, 0, 0, 0), np.uint8)
    red[:3, :, 3] = 255
    save(red, tmp_path / "pics" / "1.png")
    read = pixels(folder(tmp_path / "pics"))[0]
    assert torch.equal(read[:3], torch.tensor([200, 0, 0], dtype=torch.uint8).expand(3, 6, 3))
    assert bool((read[3:] == 255).all()), "white"


@pytest.mark.parametrize("name", ["1.tiff", "1.png", "1.jpg"])
def test_image_size_is_that_of_the_upright_image(tmp_path: Path, name: str) -> None:
    image = Image.fromarray(np.zeros((10, 30, 3), np.uint8))
    exif = image.getexif()
    exif[ORIENTATION] = 6
    image.save(tmp_path / name, exif=exif)
    cell = {"path": str(tmp_path / name)}
    assert image_size(cell) == open_image(cell, "RGB").size[::-1] == (30, 10)
