"""How much nearer a coupling brings noise to its sample: the papers' distance reduction."""

import torch
from torch import Tensor

from immiscible_diffusion.analysis.estimates import Mean, mean_of
from immiscible_diffusion.analysis.noise_density import take
from immiscible_diffusion.couplings import KNN, Coupling, draw, pair
from immiscible_diffusion.couplings.theory import knn_expectation
from immiscible_diffusion.utils.batch import Batch, Cond
from immiscible_diffusion.utils.random import keyed_generator

QUANTILES = 33  # of the lengths of the data, in the closed form
LEAST_BATCHES = 4


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

    Where the coupling can ``pair``, g is the very noise that pairing started from, so that most of
    the chance is the same in both. A mean over batches of different data, as training draws them.

    Args:
        data: ``[N, *shape]``.
        coupling: is called on batches of ``batch_size``.
        batch_size: at most ``N``.
        count: data in all, about; four batches at least.
        cond: conditions for the coupling, each ``[N, ...]``.
        seed: of rows and noise.

    Raises:
        ValueError: a batch larger than the data.
    """
    if not 1 <= batch_size <= len(data):
        raise ValueError(f"batch_size must be from 1 to the {len(data)} data, got {batch_size}")
    images, found = Batch(data, cond), []
    for number in range(max(LEAST_BATCHES, -(-count // batch_size))):
        order = torch.randperm(len(data), generator=keyed_generator(seed, number, "rows"))
        found.append(_of_batch(take(images, order[:batch_size]), coupling, seed, number))
    return mean_of(torch.stack(found))


def _of_batch(batch: Batch, coupling: Coupling, seed: int, number: int) -> Tensor:
    data, device = batch.data, batch.data.device
    free = keyed_generator(seed, number, "free", device=device)
    before = torch.randn(data.shape, dtype=data.dtype, device=device, generator=free)
    generator = keyed_generator(seed, number, "noise", device=device)
    if hasattr(coupling, "pair"):
        after = pair(coupling, data, before, cond=batch.cond, generator=generator)
    else:
        after = draw(coupling, data, cond=batch.cond, generator=generator)
    near, any_one = ((n - data).flatten(1).norm(dim=1).double().mean() for n in (after, before))
    return (1 - near / any_one).cpu()


def expected_reduction(data: Tensor, coupling: Coupling) -> float | None:
    """The same in closed form: for KNN without a center; None for others.

    A mean over quantiles of the lengths of the data, which is all that KNN sees of them.
    """
    if not isinstance(coupling, KNN) or coupling.center is not None:
        return None
    dim = data[0].numel()
    rms = data.flatten(1).double().square().mean(dim=1).sqrt()
    middles = (torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES
    sizes = torch.quantile(rms.cpu(), middles).tolist()
    shares = [knn_expectation(coupling.k, dim, size).distance_reduction for size in sizes]
    weights = [(1 + size**2) ** 0.5 for size in sizes]  # the mean distance, but for a factor
    weighted = sum(weight * share for weight, share in zip(weights, shares, strict=True))
    return weighted / sum(weights)
