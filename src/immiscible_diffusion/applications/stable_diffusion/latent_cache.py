"""The latent cache, which ``latent_encoding`` writes: training draws from the posteriors of images.

A folder holds ``latents.json``, the ``Manifest``, and shards with mean and log-variance of the
latents of every image and of its mirror image.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.data.base import DataSet, forward
from immiscible_diffusion.data.captions import Captioned, Captions
from immiscible_diffusion.data.images import draw_flips
from immiscible_diffusion.data.load import DataConfig
from immiscible_diffusion.data.prompts import ListCaptions, Tokenize
from immiscible_diffusion.utils.atomic_files import read_record, write_record
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.optional_deps import require_extra
from immiscible_diffusion.utils.serialization import from_dict
from immiscible_diffusion.utils.tensor_files import crc32, from_metadata

FILE = "latents.json"
FORMAT = 2
ELSEWHERE = "encode again into another folder"
STORED = ("mean", "logvar")  # of every image


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
        """Return the images of a shard."""
        return range(shard * self.shard_size, min(self.count, (shard + 1) * self.shard_size))

    def path(self, folder: Path, shard: int) -> Path:
        """Return the file of a shard."""
        return folder / f"latents-{shard:05d}-of-{self.shards:05d}.safetensors"

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read the manifest of a folder; ValueError if there is none, or of another format."""
        file = folder / FILE
        if not file.is_file():
            raise ValueError(f"{folder} holds no latents ({FILE} is absent); make some: immiscible encode")
        try:
            manifest: Manifest = from_dict(cls, read_record(file), str(file))
        except ValueError as error:
            raise ValueError(f"{file} is not of format {FORMAT} ({error}); {ELSEWHERE}") from error
        manifest.check(file, {"format": FORMAT})
        return manifest

    def write(self, folder: Path) -> None:
        """Write the manifest (every process may); ValueError if the folder has another one."""
        values = dataclasses.asdict(self)
        if (folder / FILE).is_file():
            Manifest.read(folder).check(folder, values)
        else:
            write_record(folder / FILE, values)

    def check(self, where: Path, expected: dict[str, Any]) -> None:
        """Raise ValueError, saying what differs, unless the fields are those ``expected``."""
        differences = [
            f"{name} is {getattr(self, name)!r} there and {value!r} here"
            for name, value in expected.items()
            if getattr(self, name) != value
        ]
        if differences:
            raise ValueError(f"{where} holds other latents: {'; '.join(differences)}; {ELSEWHERE}")


def missing_shards(manifest: Manifest, folder: Path) -> list[int]:
    """Return the shards that are absent, cut short, or of another manifest."""
    return [shard for shard in range(manifest.shards) if _open_shard(manifest, folder, shard) is None]


def _open_shard(manifest: Manifest, folder: Path, shard: int) -> tuple[Any, dict[str, Tensor], dict[str, str]] | None:
    """Return an open shard, all of it but the latents, and the texts about it; None if it is missing."""
    with require_extra("train", "reading latents"):
        from safetensors import SafetensorError, safe_open
    try:
        file = safe_open(str(manifest.path(folder, shard)), framework="pt")
        small = {name: file.get_tensor(name) for name in file.keys() if name not in STORED}  # noqa: SIM118
        about = from_metadata(file.metadata(), small, "a shard")
    except (SafetensorError, OSError, ValueError):
        return None
    return (file, small, about) if about.get("latents") == manifest.fingerprint else None


def vae_digest(vae: torch.nn.Module) -> str:
    """Hash of a VAE's weights: take it before they are cast to half precision."""
    content = hashlib.sha256()
    for name, value in sorted(vae.state_dict().items()):
        content.update(f"{name}/{value.dtype}/{tuple(value.shape)}".encode())
        content.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return content.hexdigest()[:32]


def describe_transform(config: DataConfig, channels: int | None) -> str:
    """Say how ``config`` resizes and converts images, in words."""
    size = f"shorter side {config.size}, center square" if config.size else "as they are"
    size += f", {config.resize}" if config.size and config.resize != "box" else ""
    size += f", of {config.crop} (top, left, height, width)" if config.crop else ""
    return f"{size}, {'gray' if channels == 1 else 'color'}"


@dataclass(frozen=True, eq=False)
class LatentSet(DataSet):
    """Latents ``(mean + std * noise - shift) * scaling``, as the VAE would sample them."""

    manifest: Manifest  # what they are
    shards: Sequence[Any]  # the files, mapped into memory
    flip: bool  # take mirror images at random when training
    checksums: Mapping[str, Tensor]  # ``[N, sides]`` of every latent; none of older files
    labels: Tensor | None = None
    captions: ListCaptions | None = None  # of the images, if they had any

    name = forward("manifest.name")
    note = forward("manifest.note")
    shape = forward("manifest.shape")
    class_names = forward("manifest.classes")
    digest = forward("manifest.fingerprint")
    is_encoded = True  # a codec passes these data on as they are

    @classmethod
    def open(cls, folder: Path, *, flip: bool = False, **expected: str | None) -> "LatentSet":
        """Open what ``encode`` wrote to ``folder``; ValueError says what is missing or differs.

        ``expected`` are fields that the manifest must have, such as ``vae`` (``vae_digest``),
        ``data`` (``data_digest``) and ``transform``; what either does not say is not checked.
        """
        manifest = Manifest.read(folder)
        manifest.check(folder, {k: value for k, value in expected.items() if value is not None and vars(manifest)[k]})
        opened = [_open_shard(manifest, folder, shard) for shard in range(manifest.shards)]
        complete = [shard for shard in opened if shard is not None]
        if missing := len(opened) - len(complete):
            raise ValueError(
                f"{folder}: {missing} of {manifest.shards} shards are missing or broken, such "
                f"as {manifest.path(folder, opened.index(None)).name}; run the same `immiscible encode` "
                f"again, which makes these only"
            )
        if flip and not manifest.flips:
            raise ValueError(f"{folder} holds no mirror images; encode with flips, or set no flip")
        shards, small, about = zip(*complete, strict=True)
        joined = {name: torch.cat([tensors[name] for tensors in small]) for name in small[0]}
        labels, captions = joined.pop("label", None), None
        if manifest.captions:
            captions = ListCaptions([words for texts in about for words in json.loads(texts["captions"])])
        return cls(manifest, shards, flip, joined, labels, captions)

    def __len__(self) -> int:
        return self.manifest.count

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """Return latents ``[B, C, h, w]``: means, or sampled and mirrored by ``generator``."""
        flips = draw_flips(len(indices), self.flip, generator)
        mean, logvar = self.posterior(indices, flips)
        if generator is not None:
            noise = torch.randn(mean.shape, generator=generator)
            mean = mean + (0.5 * logvar.clamp(-30, 20)).exp() * noise
        labels = None if self.labels is None else {"label": self.labels[indices]}
        return Batch((mean - self.manifest.shift) * self.manifest.scaling, labels)

    def posterior(self, indices: Tensor, flips: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance ``[B, C, h, w]`` float32; of mirror images where ``flips``."""
        sides = [0] * len(indices) if flips is None else flips.long().tolist()

        def read(name: str) -> Tensor:
            known, cells = self.checksums.get(f"{name}_crc32"), []
            for index, side in zip(indices.tolist(), sides, strict=True):
                shard, row = divmod(index, self.manifest.shard_size)
                cells.append(self.shards[shard].get_slice(name)[row, side])
                if known is not None and crc32(cells[-1]) != int(known[index, side]):
                    file = self.manifest.path(Path(), shard)
                    raise ValueError(f"{file} is damaged; remove it, and run the same `immiscible encode` again")
            return torch.stack(cells).float()

        return read("mean"), read("logvar")


def load_latents(
    folder: Path,
    captions: Captions | None = None,
    tokenize: Tokenize | None = None,
    *,
    flip: bool = False,
    vae: str | None = None,
    transform: str | None = None,
) -> Captioned:
    """Open the latents of ``folder`` with their captions, else the names of their classes.

    ValueError as of ``LatentSet.open``, or if there are neither captions nor names.
    """
    latents = LatentSet.open(folder, flip=flip, vae=vae, transform=transform)
    if latents.captions is not None:
        return Captioned(latents, latents.captions, tokenize)
    return Captioned(latents, (captions or Captions()).of_classes(latents, None), tokenize)
