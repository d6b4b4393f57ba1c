"""The floor of a Frechet distance: how far real data are from real data."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from immiscible_diffusion.metrics.fid import FeatureStatistics, frechet_distance
from immiscible_diffusion.utils.random import keyed_generator

SPLITS = 10


@dataclass(frozen=True)
class Floor:
    """Frechet distance between random disjoint halves of the real set.

    The distance of M features to N of the same distribution is about proportional to ``1 / M +
    1 / N``, so ``at`` scales the floor to M samples against N real data. Differences smaller than
    its spread mean little.
    """

    mean: float  # over the random splits
    low: float  # the smallest
    high: float  # the largest
    size: int  # features in each half
    # the numbers of samples and of real data that it was scaled to; None = ``size`` each
    counts: tuple[int, int] | None = field(default=None, metadata={"optional": True})

    def at(self, samples: int, real: int) -> "Floor":
        """The score of ``samples`` from the data's own distribution against ``real`` data."""
        if self.counts is not None:
            raise ValueError(f"the floor was scaled to {self.counts} already")
        scale = (1 / samples + 1 / real) / (2 / self.size)
        values = (scale * self.mean, scale * self.low, scale * self.high)
        return Floor(*values, self.size, (samples, real))

    @property
    def note(self) -> str:
        """The floor in words, for reports."""
        if self.counts is not None:
            return (
                f"{self.counts[0]:,} samples of the data's own distribution would be about "
                f"{self.mean:.3g} from {self.counts[1]:,} real data ({self.low:.3g} to "
                f"{self.high:.3g} over {SPLITS} splits in halves of {self.size:,}, scaled to them)"
            )
        return (
            f"two random halves of the real set ({self.size} each) are {self.mean:.3g} apart "
            f"({self.low:.3g} to {self.high:.3g} over {SPLITS} splits)"
        )


def floor_of(real: Tensor, size: int, seed: int) -> Floor | None:
    """Distance between random disjoint sets of ``size`` of the features [N, F], over 10 splits.

    None if ``size`` is below F + 1. The splits share features, so low and high are the spread over
    splits of one set, a little less than that over new sets.
    """
    if size < real.shape[1] + 1:
        return None
    pairs = (map(FeatureStatistics.of, halves(real, size, seed, split)) for split in range(SPLITS))
    values = [frechet_distance(*pair) for pair in pairs]
    return Floor(sum(values) / len(values), min(values), max(values), size)


def halves(real: Tensor, size: int, seed: int, split: int) -> tuple[Tensor, Tensor]:
    """Two random disjoint sets [size, F] of the features [N, F]."""
    generator = keyed_generator(seed, "floor", split)
    order = torch.randperm(len(real), generator=generator)
    return real[order[:size]], real[order[size : 2 * size]]
