"""What an analysis measures, and how well."""

from dataclasses import dataclass, field
from typing import Annotated

from immiscible_diffusion.analysis.miscibility import LEVELS, check_levels
from immiscible_diffusion.analysis.sample_pairs import BATCH_SIZE
from immiscible_diffusion.diffusion.paths import FlowMatchingPath, Path
from immiscible_diffusion.utils.checks import NonNegativeInt, PositiveFloat, PositiveInt, check_fields


@dataclass(frozen=True)
class AnalysisConfig:
    """What is measured, and how well: errors fall as the root of ``probes`` and ``pairs``."""

    path: Path = field(default_factory=FlowMatchingPath)  # how data and noise are mixed
    levels: tuple[Annotated[float, "> 0 and <= 1"], ...] = LEVELS  # times above 0 and at most 1
    probes: Annotated[int, ">= 2"] = 300  # noisy points at every level
    pairs: Annotated[int, ">= 2"] = 2000  # of sample and noise, that the noise is measured on
    # Of the kernel on continuous conditions, in their standard deviations; by default Scott's rule.
    # Half and double of it are measured too.
    bandwidth: PositiveFloat | None = None
    thumbnails: NonNegativeInt = 4  # samples whose noisy points are written as PNG files
    batch_size: PositiveInt = BATCH_SIZE  # couplings are called on batches of this many samples
    seed: NonNegativeInt = 0  # of everything drawn
    gaussian_fit: bool = False  # also the papers' Gaussian fit of the noise: 50,000 D^2 operations

    def __post_init__(self) -> None:
        check_fields(self)
        if len(set(self.levels)) < len(self.levels):
            raise ValueError(f"levels must be distinct, got {self.levels}")
        check_levels(self.levels, self.path)
