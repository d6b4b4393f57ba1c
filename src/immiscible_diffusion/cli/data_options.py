"""Which data, as ``analyze`` and ``probe`` ask it: a name, a folder, or the user's own arrays."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from immiscible_diffusion.data.in_memory import Whole, is_arrays, load_arrays, load_whole, mirror
from immiscible_diffusion.data.load import SOURCES, DataConfig

LABEL = "label"
FOLDER = "folder"  # what training names a folder of images; here it is the folder's own name
NAMES = tuple(name for name in SOURCES if name != FOLDER)


@dataclass(frozen=True)
class DataOptions:
    """Which data.

    Args:
        data: a data set (digits, fashion_mnist, cifar10, hub:ID), a folder of images or of parquet
            files, or a file of your own arrays [N, ...]: .npy, .npz or .safetensors (images,
            latents, video, windows of actions).
        place: where a named data set lies: a folder or a parquet file.
        split: of a named data set or folder, train or test.
        array: which array of a file are the data; not needed for one array, or one named data.
        cond: a condition, repeated for each: an array of the file, [N, ...] (whole numbers or words
            [N] are labels), or label for images with labels.
        mask: an array of the file, true where data are valid; of as many dimensions as the data.
        images: so many data, chosen at random by the seed; all by default.
        size: of images: resize the shorter side to this and cut out the center square.
        channels: of images: 1 = gray, 3 = color; as they are by default.
        flip: training mirrors images: the mirror image of every sample is a sample too.
    """

    data: str = ""
    place: Annotated[str | None, tyro.conf.arg(name="path")] = None
    split: str = "train"
    array: str | None = None
    cond: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    mask: str | None = None
    images: int | None = None
    size: int | None = None
    channels: int | None = None
    flip: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False

    def load(self, seed: int = 0) -> Whole:
        """The data; ``cond`` are those asked for, or the labels where data have them.

        Raises:
            ValueError: what is wrong, in one line.
        """
        if not self.data:
            raise ValueError(
                f"which data? --data NAME ({', '.join(NAMES)}, hub:ID), --data FOLDER, or "
                f"--data FILE.npy, .npz or .safetensors"
            )
        if len(set(self.cond)) < len(self.cond):
            raise ValueError(f"a condition is given twice: {', '.join(self.cond)}")
        return self._arrays(seed) if is_arrays(self.data) else self._images(seed)

    def _arrays(self, seed: int) -> Whole:
        given = {"path": self.place, "size": self.size, "channels": self.channels}
        if meant := [name for name, value in given.items() if value is not None]:
            raise ValueError(f"--{meant[0]} is for images, and {self.data} is a file of arrays")
        whole = load_arrays(
            self.data,
            data=self.array,
            cond=self.cond,
            mask=self.mask,
            limit=self.images,
            seed=seed,
        )
        return mirror(whole) if self.flip else whole

    def _images(self, seed: int) -> Whole:
        given = {"array": self.array, "mask": self.mask}
        if meant := [name for name, value in given.items() if value is not None]:
            raise ValueError(
                f"--{meant[0]} is for a file of arrays (.npy, .npz, .safetensors), and "
                f"'{self.data}' is a data set or folder of images"
            )
        if unknown := [name for name in self.cond if name != LABEL]:
            raise ValueError(f"images have the condition '{LABEL}' only, got '{unknown[0]}'")
        whole = load_whole(self.config, self.images, seed=seed)
        if LABEL in self.cond and not whole.batch.cond:
            raise ValueError(f"--cond {LABEL}: {whole.name} has no labels")
        return whole if self._is_named else dataclasses.replace(whole, name=self._folder)

    @property
    def _is_named(self) -> bool:
        placed = self.data == FOLDER and self.place is not None
        return self.data in NAMES or placed or self.data.startswith("hub:")

    @property
    def _folder(self) -> str:
        return Path(self.data).resolve().name

    @property
    def config(self) -> DataConfig:
        """The images as training would name them."""
        name, path = self.data, self.place
        if not self._is_named:
            if path is not None:
                raise ValueError(f"--path is for a named data set, and '{name}' is none")
            if not Path(name).exists():
                known = ", ".join(NAMES)
                raise ValueError(
                    f"there is no data set, folder or file '{name}'; known: {known}, hub:ID"
                )
            name, path = FOLDER, name
        return DataConfig(
            name=name,
            path=path,
            split=self.split,
            size=self.size,
            channels=self.channels,
            flip=self.flip,
        )
