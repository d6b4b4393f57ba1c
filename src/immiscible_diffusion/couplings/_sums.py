"""Power sums of noise, from which its law is taken."""

from typing import Any

import torch
from torch import Tensor

LEAST_VARIANCE = 1e-6


class NoiseSums:
    """Power sums of the noise along the basis, over all and label by label."""

    def __init__(self, basis: Tensor, shape: tuple[int, ...]) -> None:
        self.basis, self.shape = basis, shape
        r = len(basis)
        self.count, self.square = 0, 0.0
        self.powers = torch.zeros(4, r, dtype=torch.float64)
        self.products = torch.zeros(1, r, r, dtype=torch.float64)
        self.totals, self.counts = torch.zeros(1, r, dtype=torch.float64), torch.zeros(1)
        self.labeled = False

    def add(self, noise: Tensor, labels: Tensor | None) -> None:
        """Take up noise ``[B, *shape]``, of labels ``[B]``."""
        rows = noise.flatten(1)
        inside = (rows.to(torch.float32) @ self.basis.T.float()).double()
        self.square += float(rows.double().square().sum() - inside.square().sum())
        self.count += len(rows)
        self.powers += torch.stack([(inside**power).sum(dim=0) for power in (1, 2, 3, 4)])
        self.labeled = self.labeled or labels is not None
        labels = torch.zeros(len(rows), dtype=torch.int64) if labels is None else labels.cpu()
        if (more := int(labels.max()) + 1 - len(self.counts)) > 0:
            self._grow(more)
        for label in labels.unique():
            mine = inside[labels == label]
            self.products[label] += mine.T @ mine
            self.totals[label] += mine.sum(dim=0)
            self.counts[label] += len(mine)

    def _grow(self, more: int) -> None:
        for name in ("products", "totals", "counts"):
            sums: Tensor = getattr(self, name)
            setattr(self, name, torch.cat([sums, sums.new_zeros(more, *sums.shape[1:])]))

    def fields(self) -> dict[str, Any]:
        """The fields of ``NoiseDistribution``; ValueError if there were too few noises for a covariance."""
        r, dim = self.basis.shape
        if self.count < 2 * r:
            raise ValueError(
                f"{self.count} noises are too few to measure a covariance along {r} directions; "
                f"give at least {2 * r}, or moments with fewer directions"
            )
        mean = self.powers[0] / self.count
        covariance = self.products.sum(dim=0) / self.count - torch.outer(mean, mean)
        outside = self.square / (self.count * (dim - r)) if dim > r else 1.0
        return {
            "mean": mean.float(),
            "covariance": covariance.float(),
            "scale": max(outside, LEAST_VARIANCE) ** 0.5,
            "kurtosis": self._kurtosis(mean).float(),
            "count": self.count,
        } | (self._by_label(mean) if self.labeled else {})

    def _kurtosis(self, mean: Tensor) -> Tensor:
        one, two, three, four = self.powers / self.count
        variance = (two - one**2).clamp_min(LEAST_VARIANCE)
        central = four - 4 * mean * three + 6 * mean**2 * two - 3 * mean**4
        return central / variance**2 - 3

    def _by_label(self, mean: Tensor) -> dict[str, Tensor]:
        """Covariance of a label: r more noises of the pooled one within labels are mixed in.

        Means of labels are drawn to that of all by as much as few noises scatter them (empirical
        Bayes): with few of each label they would else be more sampling noise than shift.
        """
        r, counts = len(self.basis), self.counts.double()[:, None]
        means = torch.where(counts > 0, self.totals / counts.clamp_min(1), mean)
        outer = means[:, :, None] * means[:, None, :]
        scatter = self.products - counts[:, :, None] * outer
        within = scatter.sum(dim=0) / self.count
        covariance = (scatter + r * within) / (counts[:, :, None] + r)
        seen = counts[:, 0] > 0
        free = max(1, self.count - int(seen.sum()))  # degrees of freedom within labels
        # Variance of a label's mean, [L, r].
        error = within.diagonal() * (self.count / free) / counts.clamp_min(1)
        between = ((means - mean).square() - error)[seen].mean(dim=0).clamp_min(0)
        share = between / (between + error).clamp_min(1e-30)
        means = mean + share * (means - mean)
        return {"label_mean": means.float(), "label_covariance": covariance.float()}
