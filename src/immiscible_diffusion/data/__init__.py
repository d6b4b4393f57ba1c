"""Data sets, the batches they yield, and their order."""

from immiscible_diffusion.data.batch import Batch, Cond, DataSet
from immiscible_diffusion.data.demonstrations import load_demonstrations
from immiscible_diffusion.data.images import ImageSet, LazyImageSet
from immiscible_diffusion.data.normalise import MinMax
from immiscible_diffusion.data.order import DataOrder, batches, check_split
from immiscible_diffusion.data.sources import DataConfig, load_images
from immiscible_diffusion.data.trajectories import Episodes, Windows

__all__ = [
    "Batch",
    "Cond",
    "DataConfig",
    "DataOrder",
    "DataSet",
    "Episodes",
    "ImageSet",
    "LazyImageSet",
    "MinMax",
    "Windows",
    "batches",
    "check_split",
    "load_demonstrations",
    "load_images",
]
