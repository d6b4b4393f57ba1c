"""Data sets, the batches they yield, and their order."""

from immiscible_diffusion.data.batch import Batch, Cond, DataSet
from immiscible_diffusion.data.demonstrations import load_demonstrations
from immiscible_diffusion.data.images import ImageSet, LazyImageSet
from immiscible_diffusion.data.normalise import MinMax
from immiscible_diffusion.data.order import DataOrder, batches, check_split
from immiscible_diffusion.data.recorded import DemonstrationConfig, load_windows
from immiscible_diffusion.data.sources import DataConfig, load_images
from immiscible_diffusion.data.streamed import load_streamed
from immiscible_diffusion.data.trajectories import Episodes, Windows

__all__ = [
    "Batch",
    "Cond",
    "DataConfig",
    "DataOrder",
    "DataSet",
    "DemonstrationConfig",
    "Episodes",
    "ImageSet",
    "LazyImageSet",
    "MinMax",
    "Windows",
    "batches",
    "check_split",
    "load_data",
    "load_demonstrations",
    "load_images",
    "load_windows",
]


def load_data(config: DataConfig | DemonstrationConfig) -> DataSet:
    """The data to train on that ``config`` names; ValueError says what is missing."""
    if isinstance(config, DemonstrationConfig):
        return load_windows(config)[0]
    return load_streamed(config) if config.stream else load_images(config)
