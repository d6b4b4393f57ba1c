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
from immiscible_diffusion.metrics.features import EXTRACTORS, extractor_from_name
from immiscible_diffusion.metrics.features.base import FeatureExtractor, PixelFeatures, extract
from immiscible_diffusion.metrics.features.classifier import ClassifierFeatures
from immiscible_diffusion.metrics.features.pretrained import (
    NetworkFeatures,
    dinov2_features,
    efficientnet_features,
    inception_features,
)
from immiscible_diffusion.metrics.fid import FeatureStatistics, frechet_distance
from immiscible_diffusion.metrics.kid import KernelDistance, kernel_distance
from immiscible_diffusion.metrics.noise_floor import SPLITS, Floor, floor_of, halves
from immiscible_diffusion.metrics.prdc import (
    Manifold,
    coverage,
    density,
    memorization,
    precision,
    recall,
)
from immiscible_diffusion.metrics.reference_cache import (
    cache_folder,
    load_statistics,
    save_statistics,
)

__all__ = [
    "EXTRACTORS",
    "METRICS",
    "SPLITS",
    "ClassifierFeatures",
    "FeatureExtractor",
    "FeatureStatistics",
    "Floor",
    "KernelDistance",
    "Manifold",
    "NetworkFeatures",
    "PixelFeatures",
    "Reference",
    "SampleMetrics",
    "cache_folder",
    "check_metrics",
    "coverage",
    "density",
    "dinov2_features",
    "efficientnet_features",
    "extract",
    "extractor_from_name",
    "floor_of",
    "frechet_distance",
    "halves",
    "inception_features",
    "kernel_distance",
    "load_statistics",
    "make_reference",
    "measure",
    "memorization",
    "precision",
    "recall",
    "save_statistics",
    "stream_statistics",
]
