"""What a folder of latents says of itself, and which of its shards are whole."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from immiscible_diffusion.applications.stable_diffusion.latent_cache.shards import read_header
from immiscible_diffusion.utils.atomic_files import read_json, write_json

FILE = "latents.json"
FORMAT = 2


@dataclass(frozen=True)
class Manifest:
    """What the latents of a folder are of. Equal manifests, equal latents.

    Attributes:
        count: pictures.
        shape: (C, h, w) of the latent of one.
        dtype: float16 or bfloat16, of mean and log-variance.
        flips: whether mirror images are encoded too.
        shard_size: pictures in a shard.
        vae: hash of its weights.
        transform: what was done to the pictures, in words.
        data: hash of the data set.
        scaling: what latents are multiplied by.
        shift: what is taken from latents before.
        name: of the data set, for reports.
        note: what every figure made on it must say.
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
        """Hash of all of it; every shard carries it."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def rows(self, shard: int) -> range:
        """The pictures of a shard."""
        return range(shard * self.shard_size, min(self.count, (shard + 1) * self.shard_size))

    def path(self, folder: Path, shard: int) -> Path:
        """The file of a shard."""
        return folder / f"latents-{shard:05d}-of-{self.shards:05d}.safetensors"

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """The manifest of a folder; ValueError if there is none, or it is of another format."""
        file = folder / FILE
        if not file.is_file():
            raise ValueError(
                f"{folder} holds no latents ({FILE} is absent); make some: immiscible encode"
            )
        values = read_json(file)
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ValueError(f"{file} is not of format {FORMAT}; encode anew into another folder")
        for name in ("shape", "classes"):
            values[name] = values.get(name) and tuple(values[name])
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"{file} is not what `immiscible encode` writes: {error}") from error

    def claim(self, folder: Path) -> None:
        """Write the manifest; ValueError says what differs where another is there.

        Every process may do it, as all write the same.
        """
        if (folder / FILE).is_file():
            there = Manifest.read(folder)
            check_same(
                folder, dataclasses.asdict(there), dataclasses.asdict(self), "choose another folder"
            )
            return
        write_json(folder / FILE, dataclasses.asdict(self))


def check_same(
    folder: Path, there: dict[str, object], wanted: dict[str, object], advice: str
) -> None:
    """Raise ValueError unless the latents of ``folder`` are what is wanted; says what differs."""
    differ = [
        f"{name} is {there[name]!r} there and {value!r} here"
        for name, value in wanted.items()
        if there[name] != value
    ]
    if differ:
        raise ValueError(f"{folder} holds other latents: {'; '.join(differ)}; {advice}")


def is_whole(manifest: Manifest, folder: Path, shard: int) -> bool:
    """Whether a shard is there, complete, and of this manifest."""
    file = manifest.path(folder, shard)
    if not file.is_file():
        return False
    try:
        header = read_header(file)
    except ValueError:
        return False
    return header.metadata.get("latents") == manifest.fingerprint and header.rows == len(
        manifest.rows(shard)
    )


def missing_shards(manifest: Manifest, folder: Path) -> list[int]:
    """The shards that are still to be made."""
    return [shard for shard in range(manifest.shards) if not is_whole(manifest, folder, shard)]
