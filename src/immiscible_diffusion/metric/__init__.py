"""How good samples are: Frechet and kernel distances, nearest neighbours, and features."""

from immiscible_diffusion.metric.features import (
    EXTRACTORS,
    ClassifierFeatures,
    FeatureExtractor,
    PixelFeatures,
    extract,
    extractor_from_name,
)
from immiscible_diffusion.metric.frechet import FeatureStatistics, frechet_distance
from immiscible_diffusion.metric.kernel import KernelDistance, kernel_distance
from immiscible_diffusion.metric.neighbours import (
    Manifold,
    coverage,
    density,
    memorisation,
    precision,
    recall,
)
from immiscible_diffusion.metric.quality import (
    METRICS,
    Floor,
    Quality,
    Reference,
    make_reference,
    measure,
)

__all__ = [
    "EXTRACTORS",
    "METRICS",
    "ClassifierFeatures",
    "FeatureExtractor",
    "FeatureStatistics",
    "Floor",
    "KernelDistance",
    "Manifold",
    "PixelFeatures",
    "Quality",
    "Reference",
    "coverage",
    "density",
    "extract",
    "extractor_from_name",
    "frechet_distance",
    "kernel_distance",
    "make_reference",
    "measure",
    "memorisation",
    "precision",
    "recall",
]
