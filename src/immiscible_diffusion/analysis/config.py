"""What an analysis measures, and how well."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from immiscible_diffusion.analysis.miscibility import LEVELS
from immiscible_diffusion.analysis.noisy_points import check_levels
from immiscible_diffusion.analysis.sample_pairs import BATCH_SIZE
from immiscible_diffusion.diffusion.paths import FlowMatchingPath, Path


@dataclass(frozen=True)
class Settings:
    """What is measured, and how well: errors fall as the root of ``probes`` and ``pairs``.

    Args:
        path: how data and noise are mixed.
        levels: times above 0 and at most 1.
        probes: noisy points at every level.
        pairs: of sample and noise, that the law of the noise is measured on.
        bandwidth: of the kernel on continuous conditions, in their standard deviations; Scott's
            rule where not given. Half and double of it are measured too.
        show: data of which pictures are written.
        batch_size: couplings are called on batches of this many data.
        seed: of everything drawn.
        gaussian_fit: also the papers' Gaussian fit of the noise: 50,000 D^2 operations.
    """

    path: Path = field(default_factory=FlowMatchingPath)
    levels: tuple[float, ...] = LEVELS
    probes: int = 300
    pairs: int = 2000
    bandwidth: float | None = None
    show: int = 4
    batch_size: int = BATCH_SIZE
    seed: int = 0
    gaussian_fit: bool = False

    def __post_init__(self) -> None:
        for name, least in (("probes", 2), ("pairs", 2), ("show", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.bandwidth is not None and not self.bandwidth > 0:
            raise ValueError(f"bandwidth must be above 0, got {self.bandwidth}")
        if len(set(self.levels)) < len(self.levels):
            raise ValueError(f"a level is given twice: {self.levels}")
        check_levels(self.levels, self.path)

    def to_json(self) -> dict[str, Any]:
        """What may not change within an analysis."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del found["gaussian_fit"]  # may be added
        return found | {"path": path_json(self.path), "levels": list(self.levels)}


def path_json(path: Path) -> dict[str, Any]:
    """A path's kind and fields."""
    fields = dataclasses.asdict(path) if dataclasses.is_dataclass(path) else {"is": str(path)}
    return {"kind": type(path).__name__} | fields
