"""Every image once, whoever makes it and however often that is interrupted."""

import contextlib
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fixtures import sample_folders
from fixtures.sample_folders import draw, files, image, writer
from immiscible_diffusion.data.folder_of_samples import SampleFolder
from immiscible_diffusion.evaluation.generate_folder import claim_folder, generate_folder
from immiscible_diffusion.evaluation.sample_writers import SampleWriter

pytest.importorskip("PIL", reason="images are written with Pillow")
FORMATS = pytest.mark.parametrize("format", ["png", "tar", "both"])


@given(st.integers(1, 200), st.integers(1, 30), st.integers(1, 7), st.sampled_from(["png", "tar"]))
@settings(max_examples=100, deadline=None)
def test_processes_share_all_images_and_none_twice(tmp_path_factory, count, shard, world, format):
    empty = SampleWriter(tmp_path_factory.getbasetemp() / "absent", count, (), format, shard)
    groups = [group for rank in range(world) for group, _ in empty.missing(rank, world)]
    assert sorted(index for group in groups for index in group) == list(range(count))


def test_file_names_are_plain_and_never_equal(tmp_path: Path) -> None:
    names = ["tench", "crane", "crane", "T-shirt/top", "日本"]
    found = [SampleWriter(tmp_path, 7, names).file_name(index) for index in range(7)]
    assert found[:3] == ["tench_000000.png", "crane_000001.png", "crane_000002.png"]
    assert found[3:5] == ["T-shirt-top_000003.png", "class_000004.png"]
    assert found[5] == "tench_000005.png"
    assert len(SampleWriter(tmp_path, 1, ["x" * 300]).file_name(0)) < 100
    assert SampleWriter(tmp_path, 1).file_name(0) == "000000.png"


@FORMATS
def test_images_are_written_and_read(tmp_path: Path, format: str) -> None:
    both = writer(tmp_path, format)
    assert both.existing() == 0
    assert generate_folder(both, draw, batch_size=4) == 25
    assert both.existing() == 25
    folder = SampleFolder(tmp_path)
    images = torch.cat(list(folder.in_batches(10)))
    assert float((images - draw(range(25))).abs().max()) <= 1 / 127.5
    assert [place.number for place in folder.places] == list(range(25))


def test_shards_hold_the_png_files(tmp_path: Path) -> None:
    generate_folder(writer(tmp_path / "tar", "tar"), draw)
    generate_folder(writer(tmp_path / "png", "png"), draw)
    members = {}
    for shard in sorted((tmp_path / "tar").iterdir()):
        with tarfile.open(shard) as tar:
            members |= {m.name: tar.extractfile(m).read() for m in tar.getmembers()}  # type: ignore[union-attr]
    assert members == files(tmp_path / "png")
    assert [*files(tmp_path / "tar")] == [f"images-0000{shard}.tar" for shard in range(3)]


@FORMATS
def test_processes_and_batches_do_not_matter(tmp_path: Path, format: str) -> None:
    generate_folder(writer(tmp_path / "one", format), draw, batch_size=25)
    many = writer(tmp_path / "many", format)
    for rank in reversed(range(3)):
        generate_folder(many, draw, batch_size=2 + rank, rank=rank, world=3)
    assert files(tmp_path / "one") == files(tmp_path / "many")


class Killed(BaseException):
    pass


@given(st.lists(st.integers(1, 9), max_size=4), st.sampled_from(["png", "tar", "both"]))
@settings(max_examples=12, deadline=None)
def test_interrupted_at_any_batch_by_any_number_of_processes(
    tmp_path_factory: pytest.TempPathFactory, stops: list[int], format: str
) -> None:
    tmp_path = tmp_path_factory.mktemp("folder")
    generate_folder(writer(tmp_path / "whole", format), draw)
    cut, seen = writer(tmp_path / "cut", format), []

    def dies(after: int, indices: Sequence[int]) -> Tensor:
        if len(seen) >= after:
            raise Killed
        seen.extend(indices)
        return draw(indices)

    for stop in stops:
        seen.clear()
        for rank in range(2):
            with contextlib.suppress(Killed):
                generate_folder(
                    cut,
                    lambda indices: dies(stop, indices),  # noqa: B023
                    batch_size=1,
                    rank=rank,
                    world=2,
                )
    left = 25 - cut.existing()
    assert generate_folder(cut, draw, batch_size=3) == left
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


@pytest.mark.subprocess
@pytest.mark.parametrize("format", ["png", "tar"])
def test_a_killed_process_repeats_at_most_a_shard(tmp_path: Path, format: str) -> None:
    out = tmp_path / "out"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, sample_folders.__file__, str(out), format]
    process = subprocess.Popen(command, env=environment)
    wanted = out / ("images-00000.tar" if format == "tar" else "tench_000150.png")
    deadline = time.monotonic() + 60
    while not wanted.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    again = writer(out, format, count=300, shard=100)
    assert 0 < generate_folder(again, draw) <= 200
    generate_folder(writer(tmp_path / "whole", format, count=300, shard=100), draw)
    assert files(out) == files(tmp_path / "whole")


@FORMATS
def test_more_images_later(tmp_path: Path, format: str) -> None:
    generate_folder(writer(tmp_path / "twice", format, count=14), draw)
    made = generate_folder(writer(tmp_path / "twice", format, count=25), draw)
    assert made == {"png": 11, "tar": 15, "both": 15}[format]  # the shard that was short, anew
    generate_folder(writer(tmp_path / "once", format, count=25), draw)
    assert files(tmp_path / "twice") == files(tmp_path / "once")


def test_a_file_that_is_lost_is_made_again_beside_its_shard(tmp_path: Path) -> None:
    generate_folder(writer(tmp_path), draw)
    before = files(tmp_path)
    (tmp_path / "tench_000003.png").unlink()
    (tmp_path / "images-00001.tar").unlink()
    assert generate_folder(writer(tmp_path), draw) == 11
    assert files(tmp_path) == before


@pytest.mark.parametrize("form", ["png", "tar"])
@pytest.mark.parametrize("at", [0, 600, 700])
def test_damaged_images_are_made_anew(tmp_path: Path, form: str, at: int) -> None:
    generate_folder(writer(tmp_path, form), draw)
    file = sorted(tmp_path.glob(f"*.{form}"))[1]
    whole = file.read_bytes()
    at %= len(whole)
    file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert generate_folder(writer(tmp_path, form), draw) > 0
    assert file.read_bytes() == whole


def test_fewer_images_than_exist_is_an_error(tmp_path: Path) -> None:
    for format in ("png", "tar"):
        generate_folder(writer(tmp_path / format, format), draw)
        with pytest.raises(ValueError, match="not among those asked for"):
            writer(tmp_path / format, format, count=14).existing()
    with pytest.raises(ValueError, match="not among those asked for"):
        generate_folder(writer(tmp_path / "tar", "tar", count=24), draw)


def test_a_folder_belongs_to_one_kind_of_images(tmp_path: Path) -> None:
    claim_folder(tmp_path, {"seed": 0, "model": "a"})
    claim_folder(tmp_path, {"seed": 1, "model": "a"})  # no image was made yet
    (tmp_path / "000000.png").touch()
    claim_folder(tmp_path, {"seed": 1, "model": "a"})
    with pytest.raises(ValueError, match="model is 'a' there and None here"):
        claim_folder(tmp_path, {"seed": 1})  # a setting that is left out is another setting
    with pytest.raises(ValueError, match="made otherwise: seed is 1 there and 0 here; choose"):
        claim_folder(tmp_path, {"seed": 0, "model": "a"})
    (tmp_path / "sampling.json").unlink()
    with pytest.raises(ValueError, match="seed is None there"):
        claim_folder(tmp_path, {"seed": 0})


def test_bad_images_and_numbers_are_errors(tmp_path: Path) -> None:
    png = writer(tmp_path, "png")
    with pytest.raises(ValueError, match=r"expected 16 images \[B, C, H, W\], got \[1,"):
        generate_folder(png, lambda indices: draw(indices[:1]))
    broken = image(0).clone()
    broken[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="image 0 is not finite"):
        generate_folder(png, lambda indices: broken.expand(len(indices), -1, -1, -1))
    assert png.existing() == 0
    with pytest.raises(ValueError, match="batch_size"):
        generate_folder(png, draw, batch_size=0)
    with pytest.raises(ValueError, match="count must be >= 1"):
        SampleWriter(tmp_path, 0)
