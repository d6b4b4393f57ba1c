"""Data sets, the batches they yield, and their order."""

from immiscible_diffusion.data.batch import Batch, Cond, DataSet
from immiscible_diffusion.data.images import ImageSet, LazyImageSet
from immiscible_diffusion.data.order import DataOrder, batches, check_split
from immiscible_diffusion.data.sources import DataConfig, load_images

__all__ = [
    "Batch",
    "Cond",
    "DataConfig",
    "DataOrder",
    "DataSet",
    "ImageSet",
    "LazyImageSet",
    "batches",
    "check_split",
    "load_images",
]
