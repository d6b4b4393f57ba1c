"""Analysis within groups of equal labels or similar continuous conditions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.analysis.posterior import GaussianKernel
from immiscible_diffusion.utils.batch import Cond
from immiscible_diffusion.utils.random import keyed_generator

LARGEST_CONDITION = 4096  # numbers
SCOTT_ROWS = 2000  # samples that the dimension of a condition is estimated from


@dataclass(frozen=True, eq=False)
class Condition:
    """A condition that the model is given."""

    text: str  # in words
    labels: Tensor | None = None  # ``[N]``: only samples of the same label count
    weights: GaussianKernel | None = None  # samples of a similar condition count more, or None


def conditions(cond: Cond | None, names: Sequence[str], bandwidth: float | None = None) -> list[Condition]:
    """All of ``names`` together, as a model would be given them.

    Whole numbers ``[N]`` must be equal. Other conditions count by a Gaussian kernel on their
    numbers, each divided by its standard deviation: first at ``bandwidth``, by default Scott's rule
    for the condition's effective dimension (``scott``), then at half and double of it.

    Raises:
        ValueError: a name that is not in ``cond``, or a condition that cannot be used.
    """
    if not names:
        return []
    cond = cond or {}
    if unknown := [name for name in names if name not in cond]:
        raise ValueError(f"no condition '{unknown[0]}'; there are: {', '.join(cond) or 'none'}")
    equal = [name for name in names if is_label(cond[name])]
    similar = [name for name in names if name not in equal]
    labels = together([cond[name] for name in equal]) if equal else None
    by_label = " and ".join("the label" if name == "label" else f"'{name}'" for name in equal)
    if not similar:
        return [Condition(by_label, labels)]
    features = torch.cat([standardized(name, cond[name]) for name in similar], dim=1)
    default = "the default" if bandwidth is None else "as asked for"
    result = []
    for factor, rule in ((1.0, default), (0.5, "half of it"), (2.0, "double")):
        width = float(f"{(bandwidth or scott(features)) * factor:.4g}")
        kernel = f"Gaussian kernel, bandwidth {width:g} standard deviations, {rule}"
        by_kernel = f"{' and '.join(repr(name) for name in similar)} ({kernel})"
        text = " and ".join(part for part in (by_label, by_kernel) if part)
        result.append(Condition(text, labels, GaussianKernel(features, width)))
    return result


def is_label(values: Tensor) -> bool:
    """Whether a condition is a label: whole numbers ``[N]``."""
    return values.ndim == 1 and not values.is_floating_point()


def together(labels: Sequence[Tensor]) -> Tensor:
    """``[N]``: one label for every combination of ``labels``, each ``[N]``."""
    if len(labels) == 1:
        return labels[0].long()
    return torch.stack(list(labels), dim=1).long().unique(dim=0, return_inverse=True)[1]


def standardized(name: str, values: Tensor) -> Tensor:
    """``[N, d]`` float64: a condition in standard deviations, without its constant numbers."""
    flat = values.reshape(len(values), -1).double()
    if not bool(flat.isfinite().all()):
        raise ValueError(f"the condition '{name}' is not finite")
    if flat.shape[1] > LARGEST_CONDITION:
        raise ValueError(
            f"the condition '{name}' has {flat.shape[1]:,} numbers; a kernel takes at most "
            f"{LARGEST_CONDITION:,}: pool it first (a mean over tokens, say)"
        )
    deviation, mean = torch.std_mean(flat, dim=0, correction=0)
    varies = deviation > 1e-9 * flat.abs().amax(dim=0).clamp_min(1e-30)
    if not bool(varies.any()):
        raise ValueError(f"the condition '{name}' is the same for all samples: leave it out")
    return (flat[:, varies] - mean[varies]) / deviation[varies]


def scott(features: Tensor) -> float:
    """Bandwidth for ``features`` ``[N, d]`` of mean 0: ``s N^(-1/(p + 4))``.

    Scott's rule, with the participation ratio ``p = (tr C)^2 / tr C^2`` of the covariance for the
    dimension, and ``s = sqrt(tr C / p)`` for the standard deviation along each: an embedding of 768
    numbers that vary in 20 directions counts as 20.
    """
    count = len(features)
    rows = torch.randperm(count, generator=keyed_generator("scott"))[:SCOTT_ROWS]
    some = features[rows.to(features.device)]
    gram = some @ some.T if len(some) < some.shape[1] else some.T @ some
    trace, square = float(some.square().sum()), float(gram.square().sum())
    ratio = trace**2 / square
    spread = math.sqrt(trace / len(some) / ratio)
    return spread * count ** (-1 / (ratio + 4))
