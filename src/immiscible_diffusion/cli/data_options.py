"""Which data, as ``analyze`` and ``pilot`` ask it: a name, a folder, or the user's own arrays."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from immiscible_diffusion.cli.options import Switch
from immiscible_diffusion.data.array_files import is_array_file
from immiscible_diffusion.data.in_memory import InMemoryData, add_mirror_images, load_arrays, load_in_memory
from immiscible_diffusion.data.load import SOURCES, DataConfig
from immiscible_diffusion.data.shard_files import SHARDS
from immiscible_diffusion.utils.checks import ImageSize, PositiveInt

LABEL = "label"
FOLDER = "folder"  # what training names a folder of images; here it is the folder's own name
NAMES = tuple(name for name in SOURCES if name != FOLDER)


@dataclass(frozen=True)
class DataOptions:
    """Which data.

    Args:
        data: a data set (digits, fashion_mnist, cifar10, hub:ID), a folder of images or of parquet files, or a file of
            your own arrays [N, ...]: .npy, .npz or .safetensors (images, latents, video, windows of actions).
        place: where a named data set lies: a folder or a parquet file.
        split: split of a named data set or folder, train or test.
        array: the array of a file that holds the data; not needed if there is one, or one is named data.
        cond: a condition, repeated for each: an array of the file, [N, ...] (whole numbers or words [N] are labels),
            or label for images with labels.
        mask: an array of the file, true where data are valid; of as many dimensions as the data.
        max_images: so many samples, chosen at random by the seed; all by default.
        size: resize the shorter side of images to this and cut out the center square.
        channels: channels of images: 1 = gray, 3 = color; as they are by default.
        flip: training mirrors images: the mirror image of every sample is a sample too.
    """

    data: str = ""
    place: Annotated[str | None, tyro.conf.arg(name="path")] = None
    split: str = "train"
    array: str | None = None
    cond: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    mask: str | None = None
    max_images: PositiveInt | None = None
    size: ImageSize | None = None
    channels: Literal[1, 3] | None = None
    flip: Switch = False

    def load(self, seed: int = 0) -> InMemoryData:
        """Return the data with the conditions asked for, or the labels where images have them."""
        name, path = self.data, self.place
        if not name:
            raise ValueError(
                f"which data? --data NAME ({', '.join(NAMES)}, hub:ID), --data FOLDER, or "
                f"--data FILE.npy, .npz or .safetensors"
            )
        if len(set(self.cond)) < len(self.cond):
            raise ValueError(f"a condition is given twice: {', '.join(self.cond)}")
        if is_array_file(name):
            self._refuse("is for images, and {!r} is a file of arrays", "size", "channels", "path")
            whole = load_arrays(
                name, data=self.array, cond=self.cond, mask=self.mask, max_samples=self.max_images, seed=seed
            )
            return add_mirror_images(whole) if self.flip else whole
        kinds = "is for a file of arrays (.npy, .npz, .safetensors), and {!r} is a set of images"
        self._refuse(kinds, "array", "mask")
        if unknown := [cond for cond in self.cond if cond != LABEL]:
            raise ValueError(f"images have the condition '{LABEL}' only, got '{unknown[0]}'")
        is_folder = not (name in NAMES or name.startswith("hub:") or (name == FOLDER and path))
        if is_folder:
            self._refuse("is for a named data set, and {!r} is none", "path")
            if not Path(name).exists():
                raise ValueError(f"there is no data set, folder or file '{name}'; known: {', '.join(NAMES)}, hub:ID")
            if Path(name).is_file() and not name.endswith(SHARDS):
                raise ValueError(f"'{name}' is no folder, nor a file .npy, .npz, .safetensors or .parquet")
            name, path = FOLDER, name
        config = DataConfig(name, path, self.split, size=self.size, channels=self.channels, flip=self.flip)
        whole = load_in_memory(config, self.max_images, seed=seed)
        if LABEL in self.cond and not whole.batch.cond:
            raise ValueError(f"--cond {LABEL}: {whole.name} has no labels")
        folder = Path(self.data).resolve().name
        return dataclasses.replace(whole, name=folder) if is_folder else whole

    def _refuse(self, reason: str, *options: str) -> None:
        """Raise ValueError for the first of ``options`` that is set."""
        for option in options:
            if getattr(self, "place" if option == "path" else option) is not None:
                raise ValueError(f"--{option} {reason.format(self.data)}")
