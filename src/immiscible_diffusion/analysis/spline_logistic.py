"""Logistic regression on smooth functions of a few features."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

KNOTS = (0.002, 0.02, 0.15, 0.4, 0.6, 0.85, 0.98, 0.998)  # quantiles of both samples together
RIDGE = 1.0  # pseudo-observations: curves shrink where there are few
STEPS = 50


@dataclass(frozen=True)
class Additive:
    """A constant plus a natural cubic spline of every feature.

    Attributes:
        constant: the value with no curve.
        knots: ``[F, K]`` ascending.
        low: ``[F]`` least value seen in the sample; below, the curve is constant.
        high: ``[F]`` largest.
        coefficients: ``[F, K - 1]`` of the basis functions.
    """

    constant: float
    knots: Tensor
    low: Tensor
    high: Tensor
    coefficients: Tensor

    @classmethod
    def none(cls, features: int) -> "Additive":
        """Zero everywhere."""
        knots = torch.linspace(0, 1, len(KNOTS)).double().expand(features, -1)
        zero = torch.zeros(features).double()
        return cls(0.0, knots, zero, zero, torch.zeros(features, len(KNOTS) - 1).double())

    @classmethod
    def fit(cls, ones: Tensor, zeros: Tensor) -> "Additive":
        """The log ratio of the densities of rows ``[n, F]`` of ``ones`` and of ``zeros``.

        The two must be equally many: the logit of which sample a row is of.
        """
        both = torch.cat([ones, zeros]).double()
        knots = torch.quantile(both, torch.tensor(KNOTS).double(), dim=0).T.contiguous()
        low, high = both.amin(dim=0), both.amax(dim=0)
        moves = knots[:, -1] - knots[:, 0] > 1e-9 * knots.abs().amax(dim=1)
        columns = [
            torch.stack(list(_basis(value, own)), dim=1) * bool(moving)
            for value, own, moving in zip(both.T, knots, moves, strict=True)
        ]
        design = torch.cat(columns, dim=1)
        center, size = design.mean(dim=0), design.std(dim=0)
        size = torch.where(size > 1e-12, size, torch.inf)
        wanted = torch.cat([torch.ones(len(ones)), torch.zeros(len(zeros))]).double()
        found = _logistic((design - center) / size, wanted)
        coefficients = found[1:] / size
        constant = float(found[0] - center @ coefficients)
        return cls(constant, knots, low, high, coefficients.view(len(knots), -1))

    def __call__(self, features: list[Tensor]) -> Tensor:
        """The sum of the curves at ``features``, which broadcast."""
        total: Tensor | float = self.constant
        parts = zip(features, self.knots, self.low, self.high, self.coefficients, strict=True)
        for value, knots, low, high, coefficients in parts:
            if not bool(coefficients.any()):
                continue
            value = value.clamp(float(low), float(high))
            curve = torch.zeros_like(value)
            for function, coefficient in zip(_basis(value, knots), coefficients, strict=True):
                curve.add_(function, alpha=float(coefficient))
            total = total + curve
        return torch.as_tensor(total)


def _basis(value: Tensor, knots: Tensor) -> Iterator[Tensor]:
    """Natural cubic splines but for the constant (Hastie et al., eq. 5.4), one by one."""
    start, width = knots[0], (knots[-1] - knots[0]).clamp_min(1e-300)
    value, knots = (value - start) / width, (knots - start) / width
    yield value
    last = (value - 1).clamp_min(0) ** 3

    def bend(knot: Tensor) -> Tensor:
        return ((value - knot).clamp_min(0) ** 3 - last) / (1 - knot).clamp_min(1e-9)

    reference = bend(knots[-2])
    for knot in knots[:-2]:
        yield bend(knot) - reference


def _logistic(design: Tensor, wanted: Tensor) -> Tensor:
    """Ridge-penalised maximum likelihood by Newton's method; the constant comes first."""
    rows = torch.cat([torch.ones(len(design), 1).double(), design], dim=1)
    penalty = torch.full((rows.shape[1],), RIDGE).double()
    penalty[0] = 0

    def loss(at: Tensor) -> float:
        logit = rows @ at
        fit = torch.nn.functional.softplus(logit) - wanted * logit
        return float(fit.sum() + (penalty * at.square()).sum() / 2)

    found = torch.zeros(rows.shape[1]).double()
    least = loss(found)
    for _ in range(STEPS):
        chance = torch.sigmoid(rows @ found)
        slope = rows.T @ (chance - wanted) + penalty * found
        curvature = (rows.T * (chance * (1 - chance))) @ rows + torch.diag(penalty + 1e-9)
        step = torch.linalg.solve(curvature, slope)
        size = 1.0
        while size > 1e-6 and loss(found - size * step) > least:
            size /= 2
        found = found - size * step if size > 1e-6 else found
        before, least = least, loss(found)
        if before - least < 1e-9 * abs(least):
            break
    return found
