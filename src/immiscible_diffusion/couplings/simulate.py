"""What assignment does to noise, simulated on isotropic Gaussian data in place of the real ones.

Assignment has no closed form. It sees data and noise through their inner products and lengths
only, so a batch of B in any dimension is drawn as B + 1 numbers a row, with the same law.
"""

import dataclasses
import math
import warnings
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.couplings.base import draw, pair
from immiscible_diffusion.couplings.theory import Expected

LARGEST_BATCH = 2048
MOST_NUMBERS = 1 << 22  # in a batch that has to be drawn whole


def simulated(coupling: Any, dim: int, rms: float, rows: int, *, seed: int = 0) -> Expected:
    """Expectations of a ``LinearAssignment`` on N(0, rms^2 I) data, with standard errors.

    Args:
        coupling: a ``LinearAssignment``, as ``single`` leaves it.
        dim: numbers in a sample.
        rms: root mean square of the data.
        rows: data that are assigned together.
        seed: of the draws.

    Raises:
        ValueError: it would take long.
    """
    if rows > LARGEST_BATCH:
        raise ValueError(f"{rows} data assigned together take too long; at most {LARGEST_BATCH}")
    generator = torch.Generator().manual_seed(seed)
    repeats = max(2, min(512, 2 * LARGEST_BATCH // rows))
    figures = torch.stack([_once(coupling, dim, rms, rows, generator) for _ in range(repeats)])
    pull, moment, reduction = figures.mean(dim=0).tolist()
    errors = (figures.std(dim=0) / math.sqrt(repeats)).tolist()
    moment = 1.0 if getattr(coupling, "preserves_marginal", False) else moment
    return Expected(pull, moment, moment - pull**2 / dim, reduction, errors[0], errors[2])


def single(coupling: Any) -> Any:
    """The assignment ``coupling`` as one process calls it on a whole pool.

    Raises:
        ValueError: it pairs by conditions, of which nothing is known.
    """
    if getattr(coupling, "cond_key", None) is not None:
        raise ValueError(f"cond_key={coupling.cond_key!r} pairs by conditions of the data")
    single = {"pool": 1, "across_ranks": False}
    return dataclasses.replace(
        coupling, **{name: value for name, value in single.items() if hasattr(coupling, name)}
    )


def _once(coupling: Any, dim: int, rms: float, rows: int, generator: torch.Generator) -> Tensor:
    """``[3]``: pull, second moment a dimension, distance reduction of one batch."""
    turned = coupling.cost in ("inner", "norm") and getattr(coupling, "oversample", 1) == 1
    make = _reduced if turned and dim > rows + 1 else _whole
    data, noise = make(dim, rows, generator)
    data = rms * data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of batches of one sample
        if getattr(coupling, "oversample", 1) == 1:
            chosen = pair(coupling, data, noise, generator=generator)
        else:
            chosen = draw(coupling, data, generator=generator)
    along = (chosen * data).sum(dim=1) / data.norm(dim=1).clamp_min(1e-30)
    near, any_one = ((n - data).norm(dim=1).mean() for n in (chosen, noise))
    return torch.stack([along.mean(), chosen.square().sum() / (rows * dim), 1 - near / any_one])


def _reduced(dim: int, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Gaussian data and noise turned so that the data span the first ``rows`` axes.

    Data: the triangular factor of a Wishart matrix (Bartlett). Noise: its part within their span,
    and the length of the rest.
    """
    data = torch.randn(rows, rows + 1, dtype=torch.float64, generator=generator).tril(-1)
    noise = torch.randn(rows, rows + 1, dtype=torch.float64, generator=generator)
    data[:, :rows] += _chi(dim - torch.arange(rows), generator).diag()
    noise[:, rows] = _chi(torch.full((rows,), dim - rows), generator)
    return data, noise


def _whole(dim: int, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    if rows * dim > MOST_NUMBERS:
        raise ValueError(
            f"with this cost {rows} data of {dim} numbers have to be drawn whole; at most "
            f"{MOST_NUMBERS} numbers"
        )
    data = torch.randn(rows, dim, dtype=torch.float64, generator=generator)
    return data, torch.randn(rows, dim, dtype=torch.float64, generator=generator)


def _chi(degrees: Tensor, generator: torch.Generator) -> Tensor:
    return (2 * torch._standard_gamma(degrees.double() / 2, generator=generator)).sqrt()
