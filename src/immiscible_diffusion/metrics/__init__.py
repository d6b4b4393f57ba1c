"""How good samples are: Frechet and kernel distances, nearest neighbors, and features."""

from immiscible_diffusion.metrics.evaluate import (
    METRICS,
    Reference,
    SampleMetrics,
    check_metrics,
    make_reference,
    measure,
    stream_statistics,
)
from immiscible_diffusion.metrics.features import extractor_from_name
from immiscible_diffusion.metrics.features.base import FeatureExtractor, PixelFeatures, extract
from immiscible_diffusion.metrics.fid import FeatureStatistics, Floor, floor_of, frechet_distance, halves, square_root
from immiscible_diffusion.metrics.reference_cache import cache_folder

__all__ = [
    "METRICS",
    "FeatureExtractor",
    "FeatureStatistics",
    "Floor",
    "PixelFeatures",
    "Reference",
    "SampleMetrics",
    "cache_folder",
    "check_metrics",
    "extract",
    "extractor_from_name",
    "floor_of",
    "frechet_distance",
    "halves",
    "make_reference",
    "measure",
    "square_root",
    "stream_statistics",
]
