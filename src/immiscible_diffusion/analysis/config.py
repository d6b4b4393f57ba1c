"""What an analysis measures, and how well."""

from dataclasses import dataclass, field

from immiscible_diffusion.analysis.miscibility import LEVELS, check_levels
from immiscible_diffusion.analysis.sample_pairs import BATCH_SIZE
from immiscible_diffusion.diffusion.paths import FlowMatchingPath, Path


@dataclass(frozen=True)
class AnalysisConfig:
    """What is measured, and how well: errors fall as the root of ``probes`` and ``pairs``."""

    path: Path = field(default_factory=FlowMatchingPath)  # how data and noise are mixed
    levels: tuple[float, ...] = LEVELS  # times above 0 and at most 1
    probes: int = 300  # noisy points at every level
    pairs: int = 2000  # of sample and noise, that the noise is measured on
    # Of the kernel on continuous conditions, in their standard deviations; by default Scott's rule.
    # Half and double of it are measured too.
    bandwidth: float | None = None
    thumbnails: int = 4  # samples whose noisy points are written as PNG files
    batch_size: int = BATCH_SIZE  # couplings are called on batches of this many samples
    seed: int = 0  # of everything drawn
    gaussian_fit: bool = False  # also the papers' Gaussian fit of the noise: 50,000 D^2 operations

    def __post_init__(self) -> None:
        for name, least in (("probes", 2), ("pairs", 2), ("thumbnails", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.bandwidth is not None and not self.bandwidth > 0:
            raise ValueError(f"bandwidth must be above 0, got {self.bandwidth}")
        if len(set(self.levels)) < len(self.levels):
            raise ValueError(f"levels must be distinct, got {self.levels}")
        check_levels(self.levels, self.path)
