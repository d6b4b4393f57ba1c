"""The latent cache: images are encoded once, training draws from their posteriors.

A folder holds ``latents.json``, the ``Manifest``, and shards with mean and log-variance of the
latents of every image and of its mirror image.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from immiscible_diffusion.data.aspect_buckets import BucketedImages
from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.data.captions import Captioned, Captions
from immiscible_diffusion.data.images import draw_flips
from immiscible_diffusion.data.load import DataConfig
from immiscible_diffusion.data.prompts import ClassNamePrompts, ListCaptions, Prompts, Tokenize
from immiscible_diffusion.utils.atomic_files import atomic_path, read_record, remove_unfinished, write_record
from immiscible_diffusion.utils.background import prefetch_iterator
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.checks import PositiveInt, check_fields
from immiscible_diffusion.utils.optional_deps import require_extra
from immiscible_diffusion.utils.random import keyed_generator
from immiscible_diffusion.utils.serialization import from_dict
from immiscible_diffusion.utils.tensor_files import crc32, from_metadata, to_metadata

FILE = "latents.json"
FORMAT = 2
ELSEWHERE = "encode again into another folder"
HASHED_ROWS = 64  # of a data set that is decoded lazily
STORED = ("mean", "logvar")  # of every image
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


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
        there = vars(self)
        others = [(name, value) for name, value in expected.items() if there[name] != value]
        differences = [f"{name} is {there[name]!r} there and {v!r} here" for name, v in others]
        if differences:
            raise ValueError(f"{where} holds other latents: {'; '.join(differences)}; {ELSEWHERE}")


def missing_shards(manifest: Manifest, folder: Path) -> list[int]:
    """Return the shards that are absent, cut short, or of another manifest."""
    with require_extra("train", "reading latents"):
        from safetensors import SafetensorError, safe_open

    def is_complete(shard: int) -> bool:
        try:
            with safe_open(str(manifest.path(folder, shard)), framework="pt") as file:
                return _read_small(file)[1].get("latents") == manifest.fingerprint
        except (SafetensorError, OSError, ValueError):
            return False

    return [shard for shard in range(manifest.shards) if not is_complete(shard)]


def _read_small(file: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all of an open shard but the latents, and the texts about it; ValueError if it is damaged."""
    small = {name: file.get_tensor(name) for name in file.keys() if name not in STORED}  # noqa: SIM118
    return small, from_metadata(file.metadata(), small, "a shard")


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


def describe_transform(config: DataConfig, channels: int | None) -> str:
    """Say how ``config`` resizes and converts images, in words."""
    size = f"shorter side {config.size}, center square" if config.size else "as they are"
    size += f", {config.resize}" if config.size and config.resize != "box" else ""
    size += f", of {config.crop} (top, left, height, width)" if config.crop else ""
    return f"{size}, {'gray' if channels == 1 else 'color'}"


# -- encoding -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EncodingConfig:
    """How to encode."""

    dtype: Literal["float16", "bfloat16"] = "float16"  # of what is stored
    flips: bool = True  # encode mirror images too: a VAE's latent of one is not the mirror image of the latent
    shard_size: PositiveInt = 1024  # images per shard; an interruption loses at most one of each process
    batch_size: PositiveInt = 16  # images in the VAE at a time
    transform: str = ""  # how the images were resized and converted, in words

    def __post_init__(self) -> None:
        check_fields(self)


def encode(
    dataset: DataSet,
    vae: Any,
    folder: Path,
    config: EncodingConfig | None = None,
    *,
    vae_hash: str | None = None,
    rank: int = 0,
    world: int = 1,
    on_progress: Callable[[int], None] | None = None,
) -> Manifest:
    """Write the latents of ``dataset`` to ``folder``; complete shards are left as they are.

    A shard is written under a temporary name first, so an incomplete one never counts; run the same
    again after an interruption. With ``world`` processes each writes every world-th shard.

    Args:
        dataset: the images; those of a ``Captioned`` keep their captions.
        vae: diffusers' ``AutoencoderKL``, on its device, in the precision to encode with.
        folder: for the shards and ``latents.json``.
        config: options.
        vae_hash: ``vae_digest`` of the weights before they were cast; by default of ``vae``.
        rank: of this process among ``world``.
        world: number of processes.
        on_progress: called with the number of images that this process has done.

    Raises:
        ValueError: the folder holds other latents (says what differs), images of several shapes,
            or not of the VAE's channels, or the VAE's output is not finite.
    """
    with require_extra("train", "writing latents"):
        from safetensors.torch import save_file
    config, images, captions = config or EncodingConfig(), dataset, None
    if isinstance(dataset, Captioned):
        images = dataset.images
        if not isinstance(dataset.prompts, ClassNamePrompts):  # which are made from the labels
            captions = dataset.prompts
    if isinstance(images, BucketedImages):
        raise ValueError(
            "images in aspect-ratio buckets have latents of several shapes; train from the images, "
            "or encode them at one size"
        )
    channels = int(vae.config.in_channels)
    if images.shape[0] != channels:
        raise ValueError(
            f"the VAE takes {channels} channels and the images have {images.shape[0]}; set data.channels {channels}"
        )
    stored: dict[str, Any] = {k: v for k, v in vars(config).items() if k != "batch_size"}
    manifest = Manifest(
        **stored,
        count=len(images),
        shape=tuple(posterior(vae, images.batch(torch.arange(1)).data)[0].shape[1:]),
        vae=vae_hash or vae_digest(vae),
        data=data_digest(images),
        scaling=float(vae.config.scaling_factor),
        shift=float(getattr(vae.config, "shift_factor", None) or 0.0),
        name=dataset.name,
        note=dataset.note,
        classes=dataset.class_names,
        captions=None if captions is None else _digest(captions, len(images)),
    )
    folder.mkdir(parents=True, exist_ok=True)
    manifest.write(folder)
    done, own = 0, range(rank, manifest.shards, world)
    remove_unfinished(folder, {manifest.path(folder, shard).name for shard in own})
    missing = missing_shards(manifest, folder)
    for shard in own:
        rows = manifest.rows(shard)
        if shard in missing:
            metadata = {"latents": manifest.fingerprint}
            if captions is not None:
                texts = [list(captions.choices(row)) for row in rows]
                metadata["captions"] = json.dumps(texts, ensure_ascii=False)
            tensors = _encode_rows(images, rows, vae, config)
            size = sum(values.nbytes for values in tensors.values())
            with atomic_path(manifest.path(folder, shard), size) as temporary:
                small = {name: values for name, values in tensors.items() if name not in STORED}
                save_file(tensors, temporary, to_metadata(small, metadata))
        done += len(rows)
        if on_progress is not None:
            on_progress(done)
    return manifest


def _digest(captions: Prompts, count: int) -> str:
    content = hashlib.sha256()
    for row in range(count):
        content.update(json.dumps(list(captions.choices(row))).encode())
    return content.hexdigest()[:32]


@torch.no_grad()
def posterior(vae: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance ``[B, C, h, w]`` of the latents of images in [-1, 1]."""
    weight = next(vae.parameters())
    distribution = vae.encode(images.to(weight.device, weight.dtype)).latent_dist
    return distribution.mean, distribution.logvar


def _encode_rows(images: DataSet, rows: range, vae: Any, config: EncodingConfig) -> dict[str, Tensor]:
    """``mean`` and ``logvar`` ``[rows, 1 or 2, C, h, w]``, and ``label``."""
    batches = (images.batch(part) for part in torch.tensor(rows).split(config.batch_size))
    parts: dict[str, list[Tensor]] = {"mean": [], "logvar": []}
    for batch in prefetch_iterator(batches, 2, name="images", finish=False):
        sides = [batch.data, batch.data.flip(-1)] if config.flips else [batch.data]
        means, logvars = zip(*(posterior(vae, side) for side in sides), strict=True)
        for name, values in (("mean", means), ("logvar", logvars)):
            part = torch.stack(values, dim=1).to("cpu", DTYPES[config.dtype])
            if not bool(part.isfinite().all()):
                precision = str(next(vae.parameters()).dtype).removeprefix("torch.")
                raise ValueError(
                    f"the VAE in {precision} gives latents that are not finite in {config.dtype}; "
                    f"encode in float32 and store bfloat16 (SDXL's first VAE overflows in float16)"
                )
            parts[name].append(part)
        if batch.cond and "label" in batch.cond:
            parts.setdefault("label", []).append(batch.cond["label"])
    tensors = {name: torch.cat(values) for name, values in parts.items()}
    # Training reads single latents, hence a checksum for each.
    return tensors | {
        f"{name}_crc32": torch.tensor([[crc32(side) for side in row] for row in tensors[name]]) for name in STORED
    }


# -- reading --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LatentSet(DataSet):
    """Latents ``(mean + std * noise - shift) * scaling``, as the VAE would sample them."""

    manifest: Manifest  # what they are
    shards: Sequence[Any]  # the files, mapped into memory
    flip: bool  # take mirror images at random when training
    checksums: Mapping[str, Tensor]  # ``[N, sides]`` of every latent; none of older files
    name: str
    shape: tuple[int, ...]  # (C, h, w) of a latent
    captions: ListCaptions | None = None  # of the images, if they had any
    note: str = ""
    class_names: tuple[str, ...] | None = None
    labels: Tensor | None = None
    num_classes: int | None = None
    digest: str | None = None
    is_encoded: bool = True  # a codec passes these data on as they are

    @classmethod
    def open(cls, folder: Path, *, flip: bool = False, **expected: str | None) -> "LatentSet":
        """Open what ``encode`` wrote to ``folder``; ValueError says what is missing or differs.

        ``expected`` are fields that the manifest must have, such as ``vae`` (``vae_digest``),
        ``data`` (``data_digest``) and ``transform``; None is not checked.
        """
        manifest = Manifest.read(folder)
        manifest.check(folder, {k: value for k, value in expected.items() if value is not None})
        if missing := missing_shards(manifest, folder):
            raise ValueError(
                f"{folder}: {len(missing)} of {manifest.shards} shards are missing or broken, such "
                f"as {manifest.path(folder, missing[0]).name}; run the same `immiscible encode` "
                f"again, which makes these only"
            )
        if flip and not manifest.flips:
            raise ValueError(f"{folder} holds no mirror images; encode with flips, or set no flip")
        from safetensors import safe_open

        paths = [manifest.path(folder, shard) for shard in range(manifest.shards)]
        shards = [safe_open(str(path), framework="pt") for path in paths]
        small = [_read_small(shard) for shard in shards]
        joined = {name: torch.cat([tensors[name] for tensors, _ in small]) for name in small[0][0]}
        labels, captions, num_classes = joined.pop("label", None), None, None
        if labels is not None:
            num_classes = len(manifest.classes or ()) or int(labels.max()) + 1
        if manifest.captions:
            parts = [json.loads(about["captions"]) for _, about in small]
            captions = ListCaptions([texts for part in parts for texts in part])
        return cls(
            manifest,
            shards,
            flip,
            joined,
            name=manifest.name,
            shape=manifest.shape,
            captions=captions,
            note=manifest.note,
            class_names=manifest.classes,
            labels=labels,
            num_classes=num_classes,
            digest=manifest.fingerprint,
        )

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
        places = [divmod(index, self.manifest.shard_size) for index in indices.tolist()]

        def read(name: str) -> Tensor:
            cells = [
                self.shards[shard].get_slice(name)[row, side] for (shard, row), side in zip(places, sides, strict=True)
            ]
            if (known := self.checksums.get(f"{name}_crc32")) is not None:
                for index, side, cell in zip(indices.tolist(), sides, cells, strict=True):
                    if crc32(cell) != int(known[index, side]):
                        shard = self.manifest.path(Path(), index // self.manifest.shard_size)
                        raise ValueError(f"{shard} is damaged; remove it, and run the same `immiscible encode` again")
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
    if not Manifest.read(folder).transform:  # written in Python, without one
        transform = None
    latents = LatentSet.open(folder, flip=flip, vae=vae, transform=transform)
    if latents.captions is not None:
        return Captioned(latents, latents.captions, tokenize)
    return Captioned(latents, (captions or Captions()).of_classes(latents, None), tokenize)
