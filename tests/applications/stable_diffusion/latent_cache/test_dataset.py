"""Cached latents have the distribution of the VAE, and survive interruption."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fixtures.tiny_vae import make_images
from immiscible_diffusion.applications.stable_diffusion.latent_cache import (
    LatentSet,
    Manifest,
    describe_transform,
    load_latents,
    missing_shards,
    vae_digest,
)
from immiscible_diffusion.applications.stable_diffusion.latent_encoding import (
    EncodingConfig,
    data_digest,
    encode,
    posterior,
)
from immiscible_diffusion.data import DataConfig, ImageSet
from immiscible_diffusion.data.captions import Captioned, Captions
from immiscible_diffusion.data.prompts import ListCaptions

pytest.importorskip("safetensors")

SMALL = EncodingConfig(shard_size=4, batch_size=3)


def state(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_means_are_those_of_the_vae(images: ImageSet, vae: Any, folder: Path) -> None:
    encode(images, vae, folder, SMALL)
    latents = LatentSet.open(folder)
    rows = torch.tensor([10, 0, 7, 3, 3])
    mean, _ = posterior(vae, images.batch(rows).data)
    batch = latents.batch(rows)
    torch.testing.assert_close(batch.data, (mean - 0.1) * 0.7, rtol=2e-3, atol=2e-3)
    assert batch.cond is not None
    assert torch.equal(batch.cond["label"], images.labels[rows])
    assert latents.shape == tuple(mean.shape[1:])
    assert (len(latents), latents.num_classes) == (11, 3)


def test_sampled_latents_have_the_distribution_of_the_vae(images: ImageSet, vae: Any, folder: Path) -> None:
    encode(images, vae, folder, SMALL)
    latents = LatentSet.open(folder)
    rows = torch.full((4000,), 5)
    mean, log = posterior(vae, images.batch(rows[:1]).data)
    drawn = latents.batch(rows, torch.Generator().manual_seed(0)).data / 0.7 + 0.1
    z = (drawn - mean) / (0.5 * log).exp()
    # 32 numbers of 4,000 draws: standard errors 0.016 of the mean, 0.022 of the variance.
    assert float(z.mean(0).abs().max()) < 0.075
    assert float((z.var(0) - 1).abs().max()) < 0.1
    again = latents.batch(rows, torch.Generator().manual_seed(0)).data / 0.7 + 0.1
    assert torch.equal(drawn, again)


def test_mirror_images_are_encoded_not_mirrored_latents(images: ImageSet, vae: Any, folder: Path) -> None:
    encode(images, vae, folder, SMALL)
    latents = LatentSet.open(folder, flip=True)
    rows, both = torch.tensor([2, 9]), torch.tensor([True, False])
    mean, _ = latents.posterior(rows, both)
    data = images.batch(rows).data
    negate, plain = posterior(vae, data.flip(-1))[0], posterior(vae, data)[0]
    torch.testing.assert_close(mean[0], negate[0], rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(mean[1], plain[1], rtol=2e-3, atol=2e-3)
    assert float((plain[0].flip(-1) - negate[0]).abs().max()) > 0.01
    encode(images, vae, folder / "x", dataclasses.replace(SMALL, flips=False))
    with pytest.raises(ValueError, match="holds no mirror images"):
        LatentSet.open(folder / "x", flip=True)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_other_readers_can_read_the_shards(images: ImageSet, vae: Any, folder: Path, dtype: Any) -> None:
    from safetensors import safe_open

    manifest = encode(images, vae, folder, dataclasses.replace(SMALL, dtype=dtype))
    latents = LatentSet.open(folder)
    with safe_open(str(manifest.path(folder, 1)), framework="pt") as file:
        mean, log = file.get_tensor("mean"), file.get_tensor("logvar")
    assert str(mean.dtype) == f"torch.{dtype}"
    assert mean.shape == (4, 2, *manifest.shape)
    found = latents.posterior(torch.arange(4, 8), torch.ones(4).bool())
    assert torch.equal(found[0], mean[:, 1].float())
    assert torch.equal(found[1], log[:, 1].float())


class Killed(BaseException):
    """Stands for SIGKILL: nobody handles it."""


def test_an_interrupted_encode_continues_to_the_same_files(
    images: ImageSet, vae: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    encode(images, vae, whole, SMALL)

    def kill(done: int) -> None:
        raise Killed

    with pytest.raises(Killed):
        encode(images, vae, cut, SMALL, on_progress=kill)
    shards = [file.name for file in cut.glob("*.safetensors")]
    assert len(shards) == 1
    with pytest.raises(ValueError, match="2 of 3 shards are missing or broken"):
        LatentSet.open(cut)
    # What a process killed while writing leaves: a temporary file, or at worst a short one.
    half = (whole / "latents-00001-of-00003.safetensors").read_bytes()[:-7]
    (cut / "latents-00001-of-00003.safetensors").write_bytes(half)
    (cut / ".latents-00002-of-00003.safetensors.0123456789ab.tmp").write_bytes(half)
    kept = (cut / shards[0]).stat().st_mtime_ns
    progress: list[int] = []
    encode(images, vae, cut, SMALL, on_progress=progress.append)
    assert progress == [4, 8, 11]
    assert (cut / shards[0]).stat().st_mtime_ns == kept
    assert state(cut) == state(whole)


def test_two_processes_make_what_one_makes(images: ImageSet, vae: Any, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    encode(images, vae, one, SMALL)
    manifest = encode(images, vae, two, SMALL, rank=1, world=2)
    assert missing_shards(manifest, two) == [0, 2]
    encode(images, vae, two, SMALL, rank=0, world=2)
    assert state(one) == state(two)


def test_a_mismatch_reports_what_differs(images: ImageSet, vae: Any, other_vae: Any, folder: Path) -> None:
    encode(images, vae, folder, SMALL)
    with pytest.raises(ValueError, match=rf"vae is '{vae_digest(vae)}' there and"):
        encode(images, other_vae, folder, SMALL)
    with pytest.raises(ValueError, match="data is '"):
        encode(make_images(11, seed=1), vae, folder, SMALL)
    with pytest.raises(ValueError, match="flips is True there and False here"):
        encode(images, vae, folder, dataclasses.replace(SMALL, flips=False))
    other = dataclasses.replace(SMALL, transform="squeezed")
    with pytest.raises(ValueError, match=r"transform is .* there and 'squeezed' here"):
        encode(images, vae, folder, other)
    with pytest.raises(ValueError, match=r"vae is .*; encode again"):
        LatentSet.open(folder, vae=vae_digest(other_vae))
    LatentSet.open(folder, vae=vae_digest(vae), data=data_digest(images))


def test_shards_of_others_and_truncated_ones_are_missing(images: ImageSet, vae: Any, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    manifest = encode(images, vae, ours, SMALL)
    encode(make_images(11, seed=1), vae, theirs, SMALL)
    manifest.path(ours, 0).write_bytes(manifest.path(theirs, 0).read_bytes())
    manifest.path(ours, 1).write_bytes(b"")
    manifest.path(ours, 2).write_bytes(b"\xff" * 100)
    assert missing_shards(manifest, ours) == [0, 1, 2]
    with pytest.raises(ValueError, match=r"latents-00000-of-00003\.safetensors"):
        LatentSet.open(ours)


def test_folders_that_hold_no_latents(folder: Path) -> None:
    with pytest.raises(ValueError, match="holds no latents"):
        LatentSet.open(folder)
    folder.mkdir()
    (folder / "latents.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match="not of format 2"):
        Manifest.read(folder)


def test_class_names_and_captions_come_along(images: ImageSet, vae: Any, tmp_path: Path) -> None:
    encode(images, vae, tmp_path / "named", SMALL)
    rows = torch.arange(11)
    assert images.labels is not None
    named = load_latents(tmp_path / "named", Captions(template="a {label}"))
    assert named.texts(rows) == [["a ant", "a bee", "a cat"][label] for label in images.labels]
    assert named.is_encoded
    texts = [[f"é {row}", "other"] for row in range(11)]
    encode(Captioned(images, ListCaptions(texts)), vae, tmp_path / "said", SMALL)
    said = load_latents(tmp_path / "said", tokenize=lambda t: torch.zeros(len(t), 5).long())
    assert said.texts(rows) == [f"é {row}" for row in range(11)]
    batch = said.batch(rows[:3], torch.Generator().manual_seed(0))
    assert batch.cond is not None
    assert batch.cond["tokens"].shape == (3, 5)
    assert set(batch.cond) == {"label", "tokens"}


def test_numbers_that_are_not_finite_are_refused(vae: Any, folder: Path) -> None:
    class Broken:
        config = vae.config

        def __getattr__(self, name: str) -> Any:
            return getattr(vae, name)

        def encode(self, images: torch.Tensor) -> Any:
            out = vae.encode(images)
            out.latent_dist.mean = out.latent_dist.mean * 1e9  # beyond float16
            return out

    with pytest.raises(ValueError, match=r"not finite in float16; encode in float32"):
        encode(make_images(2), Broken(), folder, SMALL)


def test_a_flipped_bit_of_a_latent_or_a_label_is_found(images: ImageSet, vae: Any, folder: Path) -> None:
    encode(images, vae, folder, SMALL)
    file = sorted(folder.glob("*.safetensors"))[1]
    whole, found = file.read_bytes(), 0
    head = 8 + int.from_bytes(whole[:8], "little")
    for at in range(head, len(whole), 7):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ValueError, match=r"is damaged; remove it|shards are missing or broken"):
            read_all(folder)
        found += 1
    assert found > 50


def read_all(folder: Path) -> None:
    data = LatentSet.open(folder)
    for flip in (False, True):
        data.posterior(torch.arange(len(data)), torch.full((len(data),), flip))


def test_gray_images_are_refused(vae: Any, folder: Path) -> None:
    gray = ImageSet(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "gray")
    with pytest.raises(ValueError, match=r"takes 3 channels and the images have 1; set data\.ch"):
        encode(gray, vae, folder, SMALL)
    with pytest.raises(ValueError, match="dtype must be one of float16, bfloat16"):
        EncodingConfig(dtype="float32")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shard_size must be >= 1"):
        EncodingConfig(shard_size=0)


def test_other_captions_are_other_latents(images: ImageSet, vae: Any, folder: Path) -> None:
    said = [[f"a {row}"] for row in range(len(images))]
    manifest = encode(Captioned(images, ListCaptions(said)), vae, folder, SMALL)
    assert manifest.captions == hashlib.sha256("".join(map(json.dumps, said)).encode()).hexdigest()[:32]
    said[3] = ["something else"]
    with pytest.raises(ValueError, match="holds other latents: captions is"):
        encode(Captioned(images, ListCaptions(said)), vae, folder, SMALL)


def test_latents_of_another_size_are_refused(images: ImageSet, vae: Any, folder: Path) -> None:
    how = dataclasses.replace(SMALL, transform=describe_transform(DataConfig("folder", size=8), 3))
    encode(images, vae, folder, how)
    load_latents(folder, transform=how.transform)
    with pytest.raises(ValueError, match=r"shorter side 8, .* there and 'shorter side 16, "):
        load_latents(folder, transform=describe_transform(DataConfig("folder", size=16), 3))
