"""How much nearer a coupling brings noise to its sample: the papers' distance reduction."""

from collections.abc import Callable

import torch
from scipy.optimize import brentq
from torch import Tensor

from immiscible_diffusion.analysis.estimates import Mean, mean_of
from immiscible_diffusion.analysis.noise_density import take
from immiscible_diffusion.couplings import KNN, Coupling, LinearAssignment
from immiscible_diffusion.couplings.theory import knn_expectation
from immiscible_diffusion.utils.batch import Batch, Cond
from immiscible_diffusion.utils.random import keyed_generator

QUANTILES = 33  # of the lengths of the data, in the closed form
LEAST_BATCHES = 4
Curve = Callable[[float], float]
"""Distance reduction by the scale of the data."""
SCALES = [0.05 * 1.06**i for i in range(88)]  # 0.05 ... 8


@torch.no_grad()
def distance_reduction(
    data: Tensor,
    coupling: Coupling,
    *,
    batch_size: int = 256,
    count: int = 4096,
    cond: Cond | None = None,
    seed: int = 0,
) -> Mean:
    """``1 - mean |n - x| / mean |g - x|``, n the paired noise and g independent noise.

    Where the coupling can ``pair``, g is the very noise that pairing starts from, so that most of
    the chance is the same in both. A mean over batches of ``data`` ``[N, *shape]``, about ``count``
    samples in all; ValueError for a batch larger than the data.
    """
    if not 1 <= batch_size <= len(data):
        raise ValueError(f"batch_size must be from 1 to the {len(data)} data, got {batch_size}")
    every, reductions = Batch(data, cond), []
    for number in range(max(LEAST_BATCHES, -(-count // batch_size))):
        order = torch.randperm(len(data), generator=keyed_generator(seed, number, "rows"))
        batch = take(every, order[:batch_size])
        x, device = batch.data, batch.data.device
        generator = keyed_generator(seed, number, "free", device=device)
        before = torch.randn(x.shape, dtype=x.dtype, device=device, generator=generator)
        generator = keyed_generator(seed, number, "noise", device=device)
        if getattr(coupling, "takes_noise", False):  # not of every user's coupling
            after = coupling.pair(x, before, cond=batch.cond, generator=generator)
        else:
            after = coupling(x, cond=batch.cond, generator=generator)
        near, far = ((n - x).flatten(1).norm(dim=1).double().mean() for n in (after, before))
        reductions.append((1 - near / far).cpu())
    return mean_of(torch.stack(reductions))


def expected_reduction(data: Tensor, coupling: Coupling) -> float | None:
    """The same in closed form: for KNN without a center; None for others.

    A mean over quantiles of the lengths of the data, which is all that KNN sees of them.
    """
    if not isinstance(coupling, KNN) or coupling.center is not None:
        return None
    rms = data.flatten(1).double().square().mean(dim=1).sqrt()
    middles = (torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES
    total = weights = 0.0
    for size in torch.quantile(rms.cpu(), middles).tolist():
        weight = (1 + size**2) ** 0.5  # the mean distance, but for a factor
        dim = data[0].numel()
        total += weight * knn_expectation(coupling.k, dim, size).distance_reduction
        weights += weight
    return total / weights


def assignment_reduction_by_scale(data: Tensor, batch_size: int, batches: int = 8) -> Curve:
    """Reduction by assignment as a function of the data's scale, from pairs assigned once.

    Assignment by inner products gives the same pairs at every scale.
    """
    generator, products = torch.Generator().manual_seed(0), []
    for _ in range(batches):
        batch = data[torch.randperm(len(data), generator=generator)[:batch_size]]
        before = torch.randn(batch.shape, generator=generator)
        after = LinearAssignment().pair(batch, before, generator=generator)
        x, g, n = (each.flatten(1).double() for each in (batch, before, after))
        products.append(torch.stack([x * x, x * g, g * g, x * n, n * n]).sum(dim=2))
    xx, xg, gg, xn, nn = torch.cat(products, dim=1)

    def reduction(scale: float) -> float:
        before = (scale**2 * xx - 2 * scale * xg + gg).sqrt().mean()
        after = (scale**2 * xx - 2 * scale * xn + nn).sqrt().mean()
        return float(1 - after / before)

    return reduction


def scales_with_reduction(reduction: Curve, value: float) -> tuple[list[float], float]:
    """Scales in 0.05 ... 8 at which ``reduction`` is ``value``; and the one where it is nearest."""
    excess = [reduction(scale) - value for scale in SCALES]
    crossings = [
        brentq(lambda scale: reduction(scale) - value, SCALES[i], SCALES[i + 1])
        for i in range(len(SCALES) - 1)
        if (excess[i] < 0) != (excess[i + 1] < 0)
    ]
    return crossings, SCALES[min(range(len(SCALES)), key=lambda i: abs(excess[i]))]
