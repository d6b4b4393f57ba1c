"""Every picture once, whoever makes it and however often that is interrupted."""

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

from fixtures import sample_folders as made_bulk
from fixtures.sample_folders import CLASSES, draw, files, picture, stores
from immiscible_diffusion.evaluation.bulk import BulkPictures, BulkSet, Plan, missing_rows, run_bulk
from immiscible_diffusion.evaluation.bulk.run import claim
from immiscible_diffusion.evaluation.bulk.tar import whole_members

pytest.importorskip("PIL", reason="pictures are written with Pillow")


@given(st.integers(1, 200), st.integers(1, 30), st.integers(1, 7))
@settings(max_examples=100, deadline=None)
def test_processes_share_all_rows_and_none_twice(count: int, unit: int, world: int) -> None:
    parts = [Plan(count).rows(unit, rank, world) for rank in range(world)]
    assert sorted(row for part in parts for row in part) == list(range(count))


def test_classes_come_in_order_and_names_never_twice() -> None:
    plan = Plan(7, ["tench", "crane", "crane", "T-shirt/top", "日本"])
    assert [plan.text(row) for row in (0, 1, 4, 5)] == ["tench", "crane", "日本", "tench"]
    names = [plan.file_name(row) for row in range(7)]
    assert names[:3] == ["tench_000000.png", "crane_000001.png", "crane_000002.png"]
    assert names[3:5] == ["T-shirt-top_000003.png", "class_000004.png"]
    assert len(set(names)) == 7
    assert len(Plan(1, ["x" * 300]).file_name(0)) < 100
    assert Plan(1).file_name(0) == "000000.png"


@pytest.mark.parametrize("kind", ["png", "tar", "both"])
def test_what_is_made_and_read_again(tmp_path: Path, kind: str) -> None:
    made = stores(tmp_path, kind=kind)
    assert missing_rows(made) == 25
    told: list[tuple[int, int]] = []
    assert run_bulk(made, draw, batch_size=4, told=lambda *a: told.append(a)) == 25
    assert (told[0], told[-1]) == ((0, 25), (25, 25))
    assert missing_rows(made) == 0
    found = torch.cat(list(BulkPictures(tmp_path).batches(size=10)))
    assert float((found - draw(range(25))).abs().max()) <= 1 / 127.5
    assert [number for number, _ in BulkPictures(tmp_path).files()] == list(range(25))


def test_tar_shards_are_a_data_set(tmp_path: Path) -> None:
    run_bulk(stores(tmp_path, kind="tar"), draw)
    dataset = BulkSet(BulkPictures(tmp_path), 16)
    rows = torch.tensor([24, 3, 11])
    assert float((dataset.batch(rows).data - draw(rows.tolist())).abs().max()) <= 1 / 127.5
    assert (len(dataset), dataset.shape) == (25, (3, 16, 16))
    assert BulkSet(BulkPictures(tmp_path), 8, 1).batch(rows).data.shape == (3, 1, 8, 8)
    with pytest.raises(ValueError, match=r"prompts\.txt is absent"):
        BulkPictures(tmp_path).prompts()
    (tmp_path / "prompts.txt").write_text("a\nb\nc\n")
    texts = [text for _, some in BulkPictures(tmp_path).with_texts(10) for text in some]
    assert texts == ["abc"[row % 3] for row in range(25)]


def test_the_tar_is_a_tar(tmp_path: Path) -> None:
    run_bulk(stores(tmp_path / "tar", kind="tar"), draw)
    run_bulk(stores(tmp_path / "png", kind="png"), draw)
    found = {}
    for shard in sorted((tmp_path / "tar").iterdir()):
        with tarfile.open(shard) as tar:
            for member in tar.getmembers():
                content = tar.extractfile(member)
                assert content is not None
                found[member.name] = content.read()
    assert found == files(tmp_path / "png")
    assert [file.name for file in sorted((tmp_path / "tar").iterdir())] == [
        f"pictures-0000{shard}.tar" for shard in range(3)
    ]


@pytest.mark.parametrize("kind", ["png", "tar", "both"])
def test_processes_and_batches_do_not_matter(tmp_path: Path, kind: str) -> None:
    run_bulk(stores(tmp_path / "one", kind=kind), draw, batch_size=25)
    for rank in range(3):
        run_bulk(
            stores(tmp_path / "many", kind=kind), draw, batch_size=2 + rank, rank=rank, world=3
        )
    assert files(tmp_path / "one") == files(tmp_path / "many")


class Killed(BaseException):
    pass


@given(st.lists(st.integers(1, 9), max_size=4), st.sampled_from(["png", "tar", "both"]))
@settings(max_examples=12, deadline=None)
def test_interrupted_at_any_batch_by_any_number_of_processes(
    tmp_path_factory: pytest.TempPathFactory, stops: list[int], kind: str
) -> None:
    tmp_path = tmp_path_factory.mktemp("bulk")
    run_bulk(stores(tmp_path / "whole", kind=kind), draw)
    seen: list[int] = []

    def dies(after: int, rows: Sequence[int]) -> Tensor:
        if len(seen) >= after:
            raise Killed
        seen.extend(rows)
        return draw(rows)

    for stop in stops:
        seen.clear()
        for rank in range(2):
            with contextlib.suppress(Killed):
                run_bulk(
                    stores(tmp_path / "cut", kind=kind),
                    lambda rows: dies(stop, rows),  # noqa: B023
                    batch_size=1,
                    rank=rank,
                    world=2,
                )
    left = missing_rows(stores(tmp_path / "cut", kind=kind))
    made = run_bulk(stores(tmp_path / "cut", kind=kind), draw, batch_size=3)
    assert made <= left
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["png", "tar"])
def test_killed_in_the_middle_of_a_shard(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, made_bulk.__file__, str(out), kind]
    process = subprocess.Popen(command, env=environment)
    wanted = out / ".pictures-00001.tar.part" if kind == "tar" else out / "tench_000150.png"
    deadline = time.monotonic() + 60
    while not wanted.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    again = stores(out, count=300, kind=kind, unit=100)
    made = run_bulk(again, draw)
    assert 0 < made <= 200
    run_bulk(stores(tmp_path / "whole", count=300, kind=kind, unit=100), draw)
    assert files(out) == files(tmp_path / "whole")


def test_a_tar_cut_at_any_byte_goes_on(tmp_path: Path) -> None:
    [store] = stores(tmp_path, count=4, kind="tar")
    run_bulk([store], draw)
    path = tmp_path / "pictures-00000.tar"
    whole = path.read_bytes()
    ends = [member.end for member in whole_members(path)]
    for size in (
        0,
        1,
        511,
        513,
        *(end + shift for end in ends for shift in (-1, 0, 1)),
        len(whole),
    ):
        path.unlink()
        (tmp_path / ".pictures-00000.tar.part").write_bytes(whole[:size])
        assert run_bulk([store], draw) == sum(end > size for end in ends)
        assert files(tmp_path) == {path.name: whole}


def test_more_pictures_later(tmp_path: Path) -> None:
    for kind in ("png", "tar"):
        run_bulk(stores(tmp_path / kind, count=14, kind=kind), draw)
        assert run_bulk(stores(tmp_path / kind, count=25, kind=kind), draw) == 11
        run_bulk(stores(tmp_path / f"{kind} at once", count=25, kind=kind), draw)
        assert files(tmp_path / kind) == files(tmp_path / f"{kind} at once")


def test_fewer_pictures_than_there_are_is_an_error(tmp_path: Path) -> None:
    for kind in ("png", "tar"):
        run_bulk(stores(tmp_path / kind, kind=kind), draw)
        with pytest.raises(ValueError, match="not among those asked for"):
            missing_rows(stores(tmp_path / kind, count=14, kind=kind))
    with pytest.raises(ValueError, match="other pictures than those asked for"):
        run_bulk(stores(tmp_path / "tar", count=14, kind="tar"), draw)


def test_other_settings_in_the_same_folder(tmp_path: Path) -> None:
    claim(tmp_path, {"seed": 0, "model": "a"})
    claim(tmp_path, {"seed": 0, "model": "a"})
    with pytest.raises(ValueError, match="model is 'a' there and None here"):
        claim(tmp_path, {"seed": 0})  # a setting that is left out is another setting
    with pytest.raises(ValueError, match="made otherwise: seed is 0 there and 1 here; choose"):
        claim(tmp_path, {"seed": 1, "model": "a"})


def test_bad_pictures(tmp_path: Path) -> None:
    made = stores(tmp_path)
    with pytest.raises(ValueError, match=r"expected 16 pictures \[B, C, H, W\], got \[1,"):
        run_bulk(made, lambda rows: draw(rows[:1]))
    broken = picture(0).clone()
    broken[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="picture 0 is not finite"):
        run_bulk(made, lambda rows: broken.expand(len(rows), -1, -1, -1))
    assert missing_rows(made) == 25
    with pytest.raises(ValueError, match="batch_size"):
        run_bulk(made, draw, batch_size=0)
    with pytest.raises(ValueError, match="count must be"):
        Plan(0)
    with pytest.raises(ValueError, match="no classes"):
        Plan(1, [])
    with pytest.raises(ValueError, match="holds no pictures"):
        next(BulkPictures(tmp_path / "none").files())
    assert CLASSES[0] == "tench"


def test_shards_of_any_size_beside_files_whatever_process_comes_first(tmp_path: Path) -> None:
    """A shard is of one process, also where files alone would be dealt out otherwise."""
    for rank in reversed(range(3)):
        run_bulk(stores(tmp_path, unit=10), draw, batch_size=4, rank=rank, world=3)
    assert missing_rows(stores(tmp_path, unit=10)) == 0
