"""The record of a folder of latents: hashes of VAE and data, and which shards are complete."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.data.captions import Captioned
from immiscible_diffusion.utils.atomic_files import read_json, write_json
from immiscible_diffusion.utils.optional_deps import require_extra
from immiscible_diffusion.utils.random import keyed_generator

FILE = "latents.json"
FORMAT = 2
HASHED_ROWS = 64  # of a data set that is decoded lazily


@dataclass(frozen=True)
class Manifest:
    """What the latents of a folder are. Equal manifests, equal latents.

    Attributes:
        count: number of images.
        shape: (C, h, w) of a latent.
        dtype: float16 or bfloat16, of mean and log-variance.
        flips: whether mirror images are encoded too.
        shard_size: images per shard.
        vae: hash of the VAE's weights.
        transform: how the images were resized and converted, in words.
        data: hash of the data set.
        scaling: latents are multiplied by it,
        shift: after this was subtracted.
        name: of the data set, for reports.
        note: a caveat of the data set, for reports.
        classes: names of the classes, or None.
        captions: hash of the captions in the shards; None if they hold none.
    """

    count: int
    shape: tuple[int, ...]
    dtype: str
    flips: bool
    shard_size: int
    vae: str
    transform: str
    data: str
    scaling: float
    shift: float
    name: str
    note: str = ""
    classes: tuple[str, ...] | None = None
    captions: str | None = None
    format: int = FORMAT

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.count // self.shard_size)

    @property
    def fingerprint(self) -> str:
        """Hash of all of it, which every shard carries."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def rows(self, shard: int) -> range:
        """The images of a shard."""
        return range(shard * self.shard_size, min(self.count, (shard + 1) * self.shard_size))

    def path(self, folder: Path, shard: int) -> Path:
        """The file of a shard."""
        return folder / f"latents-{shard:05d}-of-{self.shards:05d}.safetensors"

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """The manifest of a folder; ValueError if there is none, or one of another format."""
        file = folder / FILE
        if not file.is_file():
            raise ValueError(
                f"{folder} holds no latents ({FILE} is absent); make some: immiscible encode"
            )
        values = read_json(file)
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ValueError(f"{file} is not of format {FORMAT}; encode again into another folder")
        for name in ("shape", "classes"):
            values[name] = values.get(name) and tuple(values[name])
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"{file} is not what `immiscible encode` writes: {error}") from error

    def write(self, folder: Path) -> None:
        """Write the manifest; ValueError says what differs if the folder has another one.

        Every process may do it, as all write the same.
        """
        if (folder / FILE).is_file():
            Manifest.read(folder).check(folder, dataclasses.asdict(self), "choose another folder")
        else:
            write_json(folder / FILE, dataclasses.asdict(self))

    def check(self, folder: Path, expected: dict[str, Any], advice: str) -> None:
        """Raise ValueError, saying what differs, unless the fields are those ``expected``."""
        differences = [
            f"{name} is {getattr(self, name)!r} there and {value!r} here"
            for name, value in expected.items()
            if getattr(self, name) != value
        ]
        if differences:
            raise ValueError(f"{folder} holds other latents: {'; '.join(differences)}; {advice}")


def is_complete(manifest: Manifest, folder: Path, shard: int) -> bool:
    """Whether a shard is there, not cut short, and of this manifest."""
    with require_extra("train", "reading latents"):
        from safetensors import SafetensorError, safe_open
    try:
        with safe_open(str(manifest.path(folder, shard)), framework="pt") as file:
            return bool((file.metadata() or {}).get("latents") == manifest.fingerprint)
    except (SafetensorError, OSError):
        return False


def missing_shards(manifest: Manifest, folder: Path) -> list[int]:
    """The shards that are still to be written."""
    return [shard for shard in range(manifest.shards) if not is_complete(manifest, folder, shard)]


def vae_digest(vae: torch.nn.Module) -> str:
    """Hash of a VAE's weights: take it before they are cast to half precision."""
    content = hashlib.sha256()
    for name, value in sorted(vae.state_dict().items()):
        content.update(f"{name}/{value.dtype}/{tuple(value.shape)}".encode())
        content.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return content.hexdigest()[:32]


def data_digest(dataset: DataSet) -> str:
    """Hash of a data set that does not depend on where its files are.

    Of images in memory all are hashed. Of images decoded lazily: their number, all labels, and the
    files of 64 of them, chosen by their number. So other data, another order or other labels are
    recognized, but not a few images that were exchanged among many.
    """
    source: Any = dataset.images if isinstance(dataset, Captioned) else dataset
    if not hasattr(source, "rows"):
        digest = getattr(source, "digest", None)
        if digest is None:
            raise ValueError(f"the data set {dataset.name} has no digest, so nothing can be cached")
        return str(digest)[:32]
    content = hashlib.sha256(json.dumps([len(source), list(source.shape)]).encode())
    if source.num_classes is not None:
        content.update(source.labels.numpy().tobytes())
    order = torch.randperm(len(source), generator=keyed_generator(len(source), "digest"))
    for row in order[:HASHED_ROWS].sort().values.tolist():
        for value in source.rows[row].values():
            content.update(_bytes_of(value))
    return content.hexdigest()[:32]


def _bytes_of(cell: Any) -> bytes:
    """An encoded image, or what JSON makes of another cell."""
    if not isinstance(cell, dict):
        return json.dumps(cell, default=str).encode()
    if cell.get("bytes") is not None:
        return bytes(cell["bytes"])
    return Path(cell["path"]).read_bytes() if cell.get("path") else b""
