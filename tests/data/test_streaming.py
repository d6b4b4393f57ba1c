"""Streams: every sample of every shard, ranks disjoint, damage is an error or a warning."""

import itertools
import json
import random
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

from fixtures.image_files import datasets, encoded, noise, save, whole_numbers, write_parquet
from fixtures.tar_shards import PER_SHARD, write_shards, write_tar
from immiscible_diffusion.data import DataConfig, load_images
from immiscible_diffusion.data.captions import Captions
from immiscible_diffusion.data.shard_files import shard_files
from immiscible_diffusion.data.shard_readers import Sample, ShardEndError, ShardError, read_tar
from immiscible_diffusion.data.streaming import Stream, load_stream, open_stream
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.optional_deps import MissingDependencyError

pytestmark = pytest.mark.usefixtures("hf_cache")


def numbers(texts: Sequence[str]) -> torch.Tensor:
    """Captions that are numbers, as tokens."""
    return torch.tensor([[int(text)] for text in texts])


def stream(path: Path | str, **options: Any) -> Stream:
    options = {"shuffle_buffer": 4, "stream": True} | options
    return open_stream(DataConfig("folder", path=str(path), size=4, **options), tokenize=numbers)


def take(stream: Stream, steps: int, batch_size: int = 2, **options: Any) -> list[Batch]:
    made = stream.batches(batch_size, 0, **({"ahead": 0} | options))
    return list(islice(made, steps))


def captions_of(batches: list[Batch]) -> list[int]:
    return [int(n) for batch in batches if batch.cond for n in batch.cond["tokens"][:, 0]]


def test_all_come_shuffled_with_their_captions(tmp_path: Path) -> None:
    write_shards(tmp_path, 4)
    whole = stream(tmp_path, shuffle_buffer=1)
    found = take(whole, 12)
    assert sorted(captions_of(found)) == list(range(24))  # one epoch
    for batch in found:
        assert batch.data.shape == (2, 3, 4, 4)
        colors = ((batch.data + 1) * 127.5).round()[:, 0, 0, 0].int().tolist()
        assert colors == captions_of([batch])
    mixed = captions_of(take(stream(tmp_path, shuffle_buffer=8), 12))
    assert mixed != sorted(mixed)
    assert mixed == captions_of(take(stream(tmp_path, shuffle_buffer=8), 12, ahead=2))
    assert mixed[6:] == captions_of(take(stream(tmp_path, shuffle_buffer=8), 9, start=3))


def test_ranks_read_other_shards(tmp_path: Path) -> None:
    write_shards(tmp_path, 4)
    parts = [
        captions_of(take(stream(tmp_path, shuffle_buffer=1), 6, batch_size=4, rank=rank, world=2)) for rank in range(2)
    ]
    assert sorted(parts[0] + parts[1]) == list(range(24))
    with pytest.raises(ValueError, match="has 4 shards for 5 processes"):
        take(stream(tmp_path), 1, batch_size=5, world=5)
    with pytest.raises(ValueError, match="does not divide"):
        take(stream(tmp_path), 1, batch_size=3, world=2)


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_truncated_shard_is_named_and_skipped_on_request(tmp_path: Path, ending: str, share: float) -> None:
    paths = write_shards(tmp_path, 3, ending)
    content = paths[1].read_bytes()
    size = int(share * (len(content) if ending != "tar" else PER_SHARD * 4096))
    paths[1].write_bytes(content[:size])
    with pytest.raises(ValueError, match=r"shard-001\.tar.* cannot be read .*--data\.on_error skip"):
        take(stream(tmp_path), 20)
    skips = stream(tmp_path, on_error="skip", shuffle_buffer=1)
    with pytest.warns(UserWarning, match=r"skipped \(1 so far, and the rest of the shard\).*001"):
        found = captions_of(take(skips, 12))
    assert 1 <= len(skips.skipped) <= 3  # once an epoch
    others = {n for n in range(18) if n // PER_SHARD != 1}
    assert others <= set(found)


@pytest.mark.parametrize("where", ["at a member", "in a header", "not a tar"])
def test_what_tarfile_takes_for_the_end_is_an_error(tmp_path: Path, where: str) -> None:
    path = write_shards(tmp_path, 1)[0]
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        third = tar.getmembers()[4]
    if where == "at a member":  # no block of zeros at the end: a download that broke off
        del content[third.offset :]
    elif where == "in a header":
        content[third.offset_data - 400] ^= 0xFF
    else:
        content[:] = b"<html>not found</html>" * 100
    path.write_bytes(content)
    found = list(read_tar(str(path)))
    assert isinstance(found[-1], ShardEndError)
    assert path.name in str(found[-1])


def test_a_broken_image_is_named_and_skipped_alone(tmp_path: Path) -> None:
    good = {"png": encoded(noise(1)[0]), "txt": b"1"}
    bad = {"png": b"no image", "txt": b"2"}
    none = {"txt": b"3"}
    wrong = {"png": good["png"], "json": b"{"}
    write_tar(tmp_path / "a.tar", {"good": good, "bad": bad, "none": none, "wrong": wrong})
    with pytest.raises(ValueError, match=r"(bad|none|wrong) in .*a\.tar"):
        take(stream(tmp_path), 4)
    skips = stream(tmp_path, on_error="skip", shuffle_buffer=1)
    with pytest.warns(UserWarning, match="skipped"):
        assert captions_of(take(skips, 2)) == [1, 1, 1, 1]
    assert {text.split(" in ")[0] for text in skips.skipped} == {"bad", "none", "wrong"}


def test_a_stream_without_readable_samples_ends_with_an_error(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"bad": {"txt": b"1"}})
    with (
        pytest.raises(ValueError, match=r"no sample of .*a\.tar can be read"),
        pytest.warns(UserWarning, match="skipped"),
    ):
        take(stream(tmp_path, on_error="skip"), 1)


def test_labels_that_are_numbers_need_their_count(tmp_path: Path) -> None:
    """As those of a shard not read yet are not known."""
    image = encoded(noise(1)[0])
    samples = {"a": {"jpg": image, "cls": b"1"}, "b": {"jpg": image, "cls": b"7"}}
    write_tar(tmp_path / "a.tar", samples)
    config = DataConfig("folder", path=str(tmp_path), size=4, stream=True)
    with pytest.warns(UserWarning, match=r"set data\.num_classes"):
        assert load_stream(config).num_classes is None
    known = load_stream(replace(config, num_classes=9))
    assert known.num_classes == 9
    [batch] = islice(known.batches(2, 0, ahead=0), 1)
    assert batch.cond is not None
    assert sorted(batch.cond["label"].tolist()) == [1, 7]
    with pytest.raises(ValueError, match=r"not all of 0 to data\.num_classes"):
        take(open_stream(replace(config, num_classes=7)), 1)
    with pytest.raises(ValueError, match="labels run from 1 to 7"):
        load_stream(replace(config, num_classes=7))
    assert load_stream(replace(config, num_classes=9, labels=False)).num_classes is None
    with pytest.raises(ValueError, match="is for streams"):
        replace(config, num_classes=9, stream=False)
    (tmp_path / "names").write_text("17\n23\n")
    with pytest.raises(ValueError, match="num_classes is 9, and 2 classes have names"):
        open_stream(replace(config, num_classes=9), Captions(names=str(tmp_path / "names")))


def test_labels_and_json(tmp_path: Path) -> None:
    image = encoded(noise(1)[0])
    samples = {"a": {"jpg": image, "cls": b"1"}, "b": {"jpg": image, "json": json.dumps({"label": 0}).encode()}}
    write_tar(tmp_path / "a.tar", samples)
    (tmp_path / "names").write_text("17\n23\n")
    config = DataConfig("folder", path=str(tmp_path), size=4, shuffle_buffer=1)
    found = open_stream(config, Captions(names=str(tmp_path / "names")), numbers)
    [batch] = take(found, 1)
    assert batch.cond is not None
    captions = dict(zip(batch.cond["label"].tolist(), captions_of([batch]), strict=True))
    assert captions == {1: 23, 0: 17}
    assert found.classes is not None
    assert list(found.classes.names) == ["17", "23"]


@pytest.fixture(params=["local", "file://", "memory://"])
def shards_at(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Two shards and their folder, of a kind, in a store: the address of the folder."""

    def write(kind: str) -> str:
        folder = tmp_path / "set"
        if kind == "tar":
            write_shards(folder, 2)
        for shard in range(2) if kind == "parquet" else ():
            rows = range(shard * PER_SHARD, (shard + 1) * PER_SHARD)
            images = [np.full((5, 5, 3), n, dtype=np.uint8) for n in rows]
            text = ([str(n) for n in rows], datasets.Value("string"))
            write_parquet(folder / "train" / f"shard-{shard:03d}.parquet", images, text=text)
        if request.param == "local":
            return str(folder)
        if request.param == "file://":
            return f"file://{folder}"
        fsspec.filesystem("memory").put(str(folder), "/set", recursive=True)
        return "memory://set"

    yield write
    if request.param == "memory://":
        fsspec.filesystem("memory").rm("/set", recursive=True)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("pattern", ["", "/shard-000", "/shard-{000..001}", "/*", "/shard-*", "/shard-{000..001}*"])
def test_every_way_to_name_shards(shards_at: Callable[[str], str], kind: str, pattern: str) -> None:
    inside = "/train" if kind == "parquet" and pattern else ""
    address = f"{shards_at(kind)}{inside}{pattern}{'.' + kind if pattern else ''}"
    found = stream(address, shuffle_buffer=1)
    count = 1 if pattern == "/shard-000" else 2
    assert [name[-len(kind) - 10 :] for name in found.shards] == [f"shard-{n:03d}.{kind}" for n in range(count)]
    assert sorted(captions_of(take(found, 3 * count))) == list(range(count * PER_SHARD))


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_shards_that_do_not_exist_are_named_at_the_start(shards_at: Callable[[str], str], kind: str) -> None:
    address = shards_at(kind) + ("/train" if kind == "parquet" else "")
    with pytest.raises(ValueError, match=rf"shard-002\.{kind} does not exist \(3 of 5 are missing\)"):
        stream(f"{address}/shard-{{000..004}}.{kind}")
    with pytest.raises(ValueError, match=r"none-\*.* does not exist"):
        stream(f"{address}/none-*.{kind}")
    with pytest.raises(ValueError, match="absent does not exist"):
        stream(f"{address}/absent")


def test_a_store_whose_package_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingDependencyError, match="pip install s3fs"):
        shard_files("s3://bucket/a-{000..009}.tar")
    with pytest.raises(ValueError, match="Protocol not known: nowhere"):
        shard_files("nowhere://a.tar")


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    paths = [write_parquet(tmp_path / f"train-{n}.parquet", noise(4)) for n in range(3)]
    paths[1].write_bytes(paths[1].read_bytes()[:-50])
    config = DataConfig("folder", path=str(tmp_path), size=4, stream=True)
    with pytest.raises(ValueError, match=r"train-1\.parquet cannot be read"):
        take(open_stream(config), 6)


def test_parquet_files_that_are_all_damaged_are_named_as_they_are_written(tmp_path: Path) -> None:
    folder = tmp_path / "set [1]"
    for number in range(3):
        write_parquet(folder / f"train-{number}.parquet", noise(4)).write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"no sample of .*set \[1\]/train-0\.parquet and 2 more can be read"):
        stream(folder, on_error="skip")
    with pytest.raises(ValueError, match=r"set \[1\]/train-0\.parquet cannot be read") as raised:
        stream(folder)
    assert str(raised.value).count(str(tmp_path)) == 1
    write_parquet(folder / "train-0.parquet", noise(4))
    with pytest.raises(ValueError, match=r"set \[1\]/train-[12]\.parquet cannot be read to its end"):
        take(stream(folder), 6)


def test_a_first_parquet_file_without_a_footer_is_skipped_on_request(tmp_path: Path) -> None:
    text = datasets.Value("string")
    for shard in range(3):
        images = [np.full((5, 5, 3), 2 * shard + n, dtype=np.uint8) for n in range(2)]
        words = ([str(2 * shard + n) for n in range(2)], text)
        path = write_parquet(tmp_path / f"train-{shard}.parquet", images, whole_numbers([0, 1]), text=words)
        if shard == 0:
            path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"train-0\.parquet.* cannot be read .*--data\.on_error skip"):
        take(stream(tmp_path), 1)
    skips = stream(tmp_path, on_error="skip", shuffle_buffer=1)
    with pytest.warns(UserWarning, match=r"skipped \(1 so far, and the rest of the shard\).*train-0\.parquet"):
        batches = take(skips, 2)
    assert sorted(captions_of(batches)) == [2, 3, 4, 5]
    assert [batch.cond["label"].tolist() for batch in batches if batch.cond] == [[0, 1], [0, 1]]


def test_parquet_files_are_streamed_too(tmp_path: Path) -> None:
    text = datasets.Value("string")
    for shard in range(2):
        rows = range(3 * shard, 3 * shard + 3)
        write_parquet(
            tmp_path / f"train-{shard}.parquet",
            [np.full((5, 5, 3), n, dtype=np.uint8) for n in rows],
            whole_numbers([n % 2 for n in rows]),
            text=([str(n) for n in rows], text),
        )
    found = stream(tmp_path, shuffle_buffer=1)
    batches = take(found, 3)
    assert sorted(captions_of(batches)) == list(range(6))
    for batch in batches:
        assert batch.cond is not None
        assert batch.cond["label"].tolist() == [n % 2 for n in captions_of([batch])]
    parts = [captions_of(take(found, 3, rank=rank, world=2)) for rank in (0, 1)]
    assert sorted(parts[0] + parts[1]) == list(range(6))


def test_bad_streams(tmp_path: Path) -> None:
    write_shards(tmp_path, 1)
    with pytest.raises(ValueError, match=r"needs data\.size"):
        open_stream(DataConfig("folder", path=str(tmp_path)))
    with pytest.raises(ValueError, match=r"on_error must be one of raise, skip"):
        stream(tmp_path, on_error="ignore")
    with pytest.raises(ValueError, match=r"tar shards, which are read with data\.stream"):
        load_images(DataConfig("folder", path=str(tmp_path / "*.tar")))
    write_parquet(tmp_path / "both" / "train.parquet", noise(1))
    write_shards(tmp_path / "both", 1)
    with pytest.raises(ValueError, match="has tar and parquet files"):
        stream(tmp_path / "both")
    with pytest.raises(ValueError, match=r"set data\.stream"):
        stream(tmp_path, on_error="skip", stream=False)
    with pytest.raises(ValueError, match="a stream of the hub needs a network"):
        open_stream(DataConfig("hub:nobody/nothing", size=4))


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"caption": "a"}, ("a",)),
        ({"caption": ["a", "b"]}, ("a", "b")),
        ({"caption": None, "text": "b"}, ("b",)),
        ({"caption": None}, ()),
    ],
)
def test_captions_in_json(tmp_path: Path, record: dict[str, Any], expected: tuple[str, ...]) -> None:
    member = {"png": encoded(noise(1)[0]), "json": json.dumps(record).encode()}
    (found,) = read_tar(str(write_tar(tmp_path / "a.tar", {"x": member})))
    assert not isinstance(found, ShardError)
    assert found.texts == expected


@pytest.mark.parametrize("record", [{"label": "cat"}, {"caption": {"en": "a"}}])
def test_captions_and_classes_of_other_types_are_named(tmp_path: Path, record: dict[str, Any]) -> None:
    member = {"png": encoded(noise(1)[0]), "json": json.dumps(record).encode()}
    (found,) = read_tar(str(write_tar(tmp_path / "a.tar", {"x": member})))
    assert isinstance(found, ShardError)
    assert "x in " in str(found)


def test_a_sample_without_caption_and_class_can_be_skipped(tmp_path: Path) -> None:
    good = {"png": encoded(noise(1)[0]), "txt": b"3"}
    shard = write_tar(tmp_path / "a.tar", {"a": good, "b": {"png": good["png"]}, "c": good})
    with pytest.raises(ValueError, match="has no caption and no class"):
        take(stream(shard), 2)
    with pytest.warns(UserWarning, match="no caption and no class"):
        assert captions_of(take(stream(shard, on_error="skip"), 2)) == [3] * 4


# -- resuming -------------------------------------------------------------------------------------


def test_a_stream_killed_anywhere_and_resumed_yields_each_remaining_sample_once(tmp_path: Path) -> None:
    """Two ranks of two micro-batches: 24 samples, 2 steps an epoch of 3 shards a rank; the threads read ahead."""
    write_shards(tmp_path, 4)
    options = {"batch_size": 4, "world": 2, "gradient_accumulation_steps": 2}
    places = random.Random(0).sample(range(1, 30), 20)
    for rank in range(2):
        whole = captions_of(take(stream(tmp_path, shuffle_buffer=5), 60, rank=rank, **options))
        for epoch in range(0, len(whole), 12):
            assert len(set(whole[epoch : epoch + 12])) == 12
        for start in places:
            killed = stream(tmp_path, shuffle_buffer=5)
            before = captions_of(take(killed, 2 * start, rank=rank, ahead=3, **options))
            resumed = stream(tmp_path, shuffle_buffer=5)
            resumed.load_state_dict(torch_saved(killed.state_dict(), tmp_path))
            after = captions_of(take(resumed, 60 - 2 * start, rank=rank, start=start, **options))
            assert before + after == whole


def torch_saved(state: Any, folder: Path) -> Any:
    torch.save(state, folder / "state.pt")
    return torch.load(folder / "state.pt", weights_only=True)


def test_a_resumed_stream_reads_from_its_place_only(tmp_path: Path) -> None:
    """Of four shards of six samples, it opens the one it was in and those that follow."""
    write_shards(tmp_path, 4)
    killed = stream(tmp_path, shuffle_buffer=2)
    take(killed, 8)  # 16 samples: in the third shard
    resumed, opened = stream(tmp_path, shuffle_buffer=2), []
    shards = {name: lambda name=name: (opened.append(name), resumed.shards[name]())[1] for name in resumed.shards}
    again = replace(resumed, shards=shards)
    again.load_state_dict(killed.state_dict())
    assert captions_of(take(again, 4, start=8)) == captions_of(take(stream(tmp_path, shuffle_buffer=2), 12))[16:]
    assert 2 <= len(opened) <= 3  # with the first of the next epoch


def test_what_is_skipped_is_skipped_again_after_resuming(tmp_path: Path) -> None:
    good = [{"png": encoded(np.full((5, 7, 3), n, np.uint8)), "txt": str(n).encode()} for n in range(8)]
    good[2], good[5] = {"txt": b"2"}, {"png": b"no image", "txt": b"5"}
    write_tar(tmp_path / "a.tar", {str(n): members for n, members in enumerate(good)})
    options = {"on_error": "skip", "shuffle_buffer": 3}
    with pytest.warns(UserWarning, match="skipped"):
        whole = captions_of(take(stream(tmp_path, **options), 9))
    assert sorted(whole[:6]) == [0, 1, 3, 4, 6, 7]
    for start in range(1, 9):
        killed, resumed = stream(tmp_path, **options), stream(tmp_path, **options)
        with pytest.warns(UserWarning, match="skipped"):
            take(killed, start)
        resumed.load_state_dict(killed.state_dict())
        with pytest.warns(UserWarning, match="skipped"):
            found = captions_of(take(resumed, 9 - start, start=start))
        assert found == whole[2 * start :]


def test_on_another_number_of_ranks_a_new_epoch_begins(tmp_path: Path) -> None:
    write_shards(tmp_path, 4)
    two = stream(tmp_path)
    for rank in range(2):
        take(two, 1, batch_size=4, rank=rank, world=2)
    one = stream(tmp_path)
    one.load_state_dict(two.state_dict())
    with pytest.warns(UserWarning, match="new epoch: read by 2 processes .* now by 1 process"):
        assert sorted(captions_of(take(one, 6, batch_size=4, start=1))) == list(range(24))


@pytest.mark.parametrize("change", ["removed", "renamed"])
def test_of_other_shards_a_new_epoch_begins(tmp_path: Path, change: str) -> None:
    shards = write_shards(tmp_path, 6)
    before = stream(tmp_path)
    take(before, 2)
    if change == "removed":
        shards[3].unlink()
    else:
        shards[3].rename(tmp_path / "other.tar")
    after = stream(tmp_path)
    after.load_state_dict(before.state_dict())
    left = [n for n in range(36) if change == "renamed" or n // PER_SHARD != 3]
    with pytest.warns(UserWarning, match=f"new epoch: .* 6 shards .* {len(left) // PER_SHARD} shards"):
        assert sorted(captions_of(take(after, len(left) // 2, start=2))) == left


@pytest.mark.parametrize("kind", ["parquet", "folder"])
def test_tables_and_folders_resume_too(tmp_path: Path, kind: str) -> None:
    for shard in range(2):
        rows = range(5 * shard, 5 * shard + 5)
        images = [np.full((5, 5, 3), n, dtype=np.uint8) for n in rows]
        if kind == "parquet":
            text = ([str(n) for n in rows], datasets.Value("string"))
            write_parquet(tmp_path / f"train-{shard}.parquet", images, text=text)
        else:
            for n, image in zip(rows, images, strict=True):
                save(image, tmp_path / f"{n}.png")
    if kind == "folder":
        lines = [json.dumps({"file_name": f"{n}.png", "text": str(n)}) for n in range(10)]
        (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    whole = captions_of(take(stream(tmp_path), 10))
    assert sorted(whole[:10]) == list(range(10))
    for start in (1, 4, 7):
        killed, resumed = stream(tmp_path), stream(tmp_path)
        take(killed, start)
        resumed.load_state_dict(killed.state_dict())
        assert captions_of(take(resumed, 10 - start, start=start)) == whole[2 * start :]


@pytest.mark.parametrize("shuffle_buffer", [1, 2, 3, 4, 9])
def test_after_damage_a_stream_goes_on_with_each_intact_sample(tmp_path: Path, shuffle_buffer: int) -> None:
    """Once in its epoch, where no block holds intact and damaged samples; else but for a block."""
    paths = write_shards(tmp_path, 4)
    contents = [path.read_bytes() for path in paths]
    for start, damaged in itertools.product((5, 16, 23, 26), range(4)):
        options: dict[str, Any] = {"batch_size": 1, "num_workers": start % 2 * 2}
        killed = stream(tmp_path, shuffle_buffer=shuffle_buffer)
        given = captions_of(take(killed, start, **options))[start // 24 * 24 :]
        kept = damaged % 2 * 3 * 4096  # nothing, or three samples
        paths[damaged].write_bytes(contents[damaged][:kept])
        resumed = stream(tmp_path, shuffle_buffer=shuffle_buffer, on_error="skip")
        resumed.load_state_dict(killed.state_dict())
        with pytest.warns(UserWarning, match=rf"{paths[damaged].name} cannot be read"):
            found = captions_of(take(resumed, 24, start=start, **options))
        epochs = [place[0] for place in resumed.state_dict().values()][-24:]
        rest = [n for n, epoch in zip(found, epochs, strict=True) if epoch == start // 24]
        read = itertools.chain(*(read_tar(str(path)) for path in paths))
        intact = {int(sample.texts[0]) for sample in read if isinstance(sample, Sample)}
        assert len(set(rest)) == len(rest)
        wrong = (intact - set(given)) ^ set(rest)
        exact = shuffle_buffer == 1 or (PER_SHARD % shuffle_buffer == 0 and kept == 0)
        assert len(wrong) <= (0 if exact else shuffle_buffer)
        paths[damaged].write_bytes(contents[damaged])


def test_damage_before_the_place_of_a_resumed_stream_is_an_error_that_names_it(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, 4)
    killed, resumed = stream(tmp_path, shuffle_buffer=1), stream(tmp_path, shuffle_buffer=1)
    last = paths[captions_of(take(killed, 2))[-1] // PER_SHARD]
    last.write_bytes(last.read_bytes()[:4096])
    resumed.load_state_dict(killed.state_dict())
    with pytest.raises(ValueError, match=rf"{last.name} cannot be read .*--data\.on_error skip"):
        take(resumed, 1, start=2)
