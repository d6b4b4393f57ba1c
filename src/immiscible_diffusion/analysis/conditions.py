"""What everything is given: equal labels, or a nearby continuous condition."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.analysis.posterior import GaussianKernel
from immiscible_diffusion.utils.batch import Cond
from immiscible_diffusion.utils.random import keyed_generator

LARGEST_CONDITION = 4096  # numbers
SAMPLED = 2000  # data that the dimension of a condition is judged by


@dataclass(frozen=True, eq=False)
class Given:
    """A condition that everything is given.

    Attributes:
        text: for people to read.
        labels: ``[N]``: data of the same label alone may be meant.
        weights: data of a nearby condition count more, or None.
    """

    text: str
    labels: Tensor | None = None
    weights: GaussianKernel | None = None


def conditions(
    cond: Cond | None, names: Sequence[str], bandwidth: float | None = None
) -> list[Given]:
    """All of ``names`` together, as a model would be given them.

    Whole numbers ``[N]`` must be equal. Other conditions count by a Gaussian kernel on their
    numbers, each divided by its standard deviation: first at the bandwidth that is given, or at
    Scott's rule for the condition's effective dimension (``scott``), then at half and double of it.

    Raises:
        ValueError: a name that is not in ``cond``, or a condition that cannot be used.
    """
    if not names:
        return []
    cond = cond or {}
    if unknown := [name for name in names if name not in cond]:
        raise ValueError(f"no condition '{unknown[0]}'; there are: {', '.join(cond) or 'none'}")
    equal = [name for name in names if is_label(cond[name])]
    near = [name for name in names if name not in equal]
    labels = together([cond[name] for name in equal]) if equal else None
    said = " and ".join("the label" if name == "label" else f"'{name}'" for name in equal)
    if not near:
        return [Given(said, labels)]
    features = torch.cat([standardized(name, cond[name]) for name in near], dim=1)
    usual = bandwidth or scott(features)
    what = " and ".join(f"'{name}'" for name in near)
    found = []
    for factor, rule in (
        (1.0, "the default" if bandwidth is None else "as asked for"),
        (0.5, "half of it"),
        (2.0, "double"),
    ):
        width = float(f"{usual * factor:.4g}")
        near_text = f"{what} (Gaussian kernel, bandwidth {width:g} standard deviations, {rule})"
        text = " and ".join(part for part in (said, near_text) if part)
        found.append(Given(text, labels, GaussianKernel(features, width)))
    return found


def is_label(values: Tensor) -> bool:
    """Whether a condition is a label: whole numbers ``[N]``."""
    return values.ndim == 1 and not values.is_floating_point()


def together(labels: Sequence[Tensor]) -> Tensor:
    """``[N]``: one label for every combination of ``labels``, each ``[N]``."""
    if len(labels) == 1:
        return labels[0].long()
    rows = torch.stack([label.long() for label in labels], dim=1)
    combined: Tensor = torch.unique(rows, dim=0, return_inverse=True)[1]
    return combined


def standardized(name: str, values: Tensor) -> Tensor:
    """``[N, d]`` float64: numbers of a condition in standard deviations, constant ones left out."""
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
        raise ValueError(f"the condition '{name}' is the same for all data: it says nothing")
    return (flat[:, varies] - mean[varies]) / deviation[varies]


def scott(features: Tensor) -> float:
    """Bandwidth for ``features`` ``[N, d]`` of mean 0: ``s N^(-1/(p + 4))``.

    Scott's rule, with the participation ratio ``p = (tr C)^2 / tr C^2`` of the covariance for the
    dimension, and ``s = sqrt(tr C / p)`` for the standard deviation along each: an embedding of 768
    numbers that vary in 20 directions counts as 20.
    """
    count = len(features)
    rows = torch.randperm(count, generator=keyed_generator("scott"))[:SAMPLED]
    some = features[rows.to(features.device)]
    gram = some @ some.T if len(some) < some.shape[1] else some.T @ some
    trace, square = float(some.square().sum()), float(gram.square().sum())
    ratio = trace**2 / square
    spread = math.sqrt(trace / len(some) / ratio)
    return spread * count ** (-1 / (ratio + 4))


def summary(couplings: Sequence[dict[str, Any]]) -> str:
    """What the page leads with where something is given; empty otherwise."""
    measured = [entry["given"] for entry in couplings if entry["given"]]
    if not measured or any(one["candidates"]["value"] is None for one in measured[0]):
        return ""
    usual, *others = measured[0]
    nats = [_nats(each) for each in others]
    at_others = f" ({min(nats):.2f} to {max(nats):.2f} at the other bandwidths)" if nats else ""
    whole = math.log(max(1, usual["images"]))
    mixed = (
        f"Given {usual['given']}, a sample is mixed with others by at most log "
        f"{usual['candidates']['value']:,.4g} = {_nats(usual):.2f} nats{at_others}, against log "
        f"{usual['images']:,} = {whole:.2f} without the condition"
    )
    bounds = [
        f"{entry['name']} {min(entry['removable'], _nats(usual)):.2f}"
        for entry in couplings
        if entry["removable"]
    ]
    if _nats(usual) < 0.05:
        return f"{mixed}: next to nothing is left for pairing to unmix."
    if not bounds:
        return f"{mixed}."
    unbounded = [
        entry["name"]
        for entry in couplings
        if not entry["removable"] and entry["name"].removeprefix("shuffled:") != "independent"
    ]
    none = f"; no such bound for {', '.join(unbounded)}" if unbounded else ""
    return f"{mixed}; KNN removes at most (log k - 1 + 1/k nats): {', '.join(bounds)}{none}."


def _nats(entry: dict[str, Any]) -> float:
    return math.log(max(1.0, entry["candidates"]["value"]))
