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
ELSEWHERE = "encode again into another folder"
HASHED_ROWS = 64  # of a data set that is decoded lazily


@dataclass(frozen=True)
class Manifest:
    """What the latents of a folder are. Equal manifests, equal latents."""

    count: int  # number of images
    shape: tuple[int, ...]  # (C, h, w) of a latent
    dtype: str  # float16 or bfloat16, of mean and log-variance
    flips: bool  # whether mirror images are encoded too
    shard_size: int  # images per shard
    vae: str  # hash of the VAE's weights
    transform: str  # how the images were resized and converted, in words
    data: str  # hash of the data set
    scaling: float  # latents are multiplied by it,
    shift: float  # after this was subtracted
    name: str  # of the data set, for reports
    note: str = ""  # a caveat of the data set, for reports
    classes: tuple[str, ...] | None = None  # names of the classes
    captions: str | None = None  # hash of the captions in the shards; None if they hold none
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
        """Read the manifest of a folder; ValueError if there is none, or of another format."""
        file = folder / FILE
        if not file.is_file():
            raise ValueError(
                f"{folder} holds no latents ({FILE} is absent); make some: immiscible encode"
            )
        try:
            values = read_json(file)
            lists = {name: values[name] and tuple(values[name]) for name in ("shape", "classes")}
            manifest = cls(**{**values, **lists})
        except (TypeError, KeyError) as error:
            raise ValueError(f"{file} is not of format {FORMAT} ({error}); {ELSEWHERE}") from error
        if manifest.format != FORMAT:
            raise ValueError(f"{file} is not of format {FORMAT}; {ELSEWHERE}")
        return manifest

    def write(self, folder: Path) -> None:
        """Write the manifest; ValueError says what differs if the folder has another one.

        Every process may do it, as all write the same.
        """
        values = dataclasses.asdict(self)
        if (folder / FILE).is_file():
            Manifest.read(folder).check(folder, values)
        else:
            write_json(folder / FILE, values)

    def check(self, folder: Path, expected: dict[str, Any]) -> None:
        """Raise ValueError, saying what differs, unless the fields are those ``expected``."""
        there = vars(self)
        differences = [
            f"{name} is {there[name]!r} there and {value!r} here"
            for name, value in expected.items()
            if there[name] != value
        ]
        if differences:
            raise ValueError(f"{folder} holds other latents: {'; '.join(differences)}; {ELSEWHERE}")


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
    """Return the shards that are still to be written."""
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
        if source.digest is None:
            raise ValueError(f"the data set {dataset.name} has no digest, so nothing can be cached")
        return str(source.digest)[:32]
    content = hashlib.sha256(json.dumps([len(source), list(source.shape)]).encode())
    if source.num_classes is not None:
        content.update(source.labels.numpy().tobytes())
    order = torch.randperm(len(source), generator=keyed_generator(len(source), "digest"))
    for row in order[:HASHED_ROWS].sort().values.tolist():
        for cell in source.rows[row].values():
            if not isinstance(cell, dict):  # no image
                content.update(json.dumps(cell, default=str).encode())
            elif cell.get("bytes") is not None:
                content.update(cell["bytes"])
            elif cell.get("path"):
                content.update(Path(cell["path"]).read_bytes())
    return content.hexdigest()[:32]
