"""Data sets, the batches they yield, and their order."""

from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.data.images import ImageSet, LazyImageSet
from immiscible_diffusion.data.load import DataConfig, load_images
from immiscible_diffusion.data.sampler import KeyedSampler, batches, check_split
from immiscible_diffusion.data.scaling import DataScaling

__all__ = [
    "DataConfig",
    "DataScaling",
    "DataSet",
    "ImageSet",
    "KeyedSampler",
    "LazyImageSet",
    "batches",
    "check_split",
    "load_images",
]
