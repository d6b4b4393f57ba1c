"""One training of a probe. Its randomness is keyed: couplings share order, times and weights."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from immiscible_diffusion.couplings import Coupling
from immiscible_diffusion.data import KeyedSampler
from immiscible_diffusion.diffusion.losses import RegressionLoss
from immiscible_diffusion.diffusion.paths import FlowMatchingPath
from immiscible_diffusion.diffusion.samplers import sample_euler
from immiscible_diffusion.experiments.pilot.network import Network
from immiscible_diffusion.experiments.pilot.prepared import Prepared
from immiscible_diffusion.training.ema import EMA, EMAConfig
from immiscible_diffusion.training.optim import make_optimizer
from immiscible_diffusion.utils.random import RandomStreams

PATH, LOSS = FlowMatchingPath(), RegressionLoss()
AT_ONCE = 512  # samples
AfterStep = Callable[[int, Callable[[], nn.Module]], None]
"""Called after every step with the number of steps done and what gives the averaged model."""


def train(
    prepared: Prepared,
    rows: Tensor,
    coupling: Coupling,
    network: Network,
    *,
    seed: int,
    steps: int,
    device: torch.device,
    after_step: AfterStep,
) -> None:
    """Fit the network to the data in ``rows`` for ``steps`` steps.

    Raises:
        ValueError: the loss is not a number.
    """
    model = network.build(prepared.shape, prepared.told(prepared.batch), seed).to(device)
    average = EMA(EMAConfig(0.995, warmup=True), model)
    optimizer, warmup = make_optimizer(network.optimizer, model)
    order = KeyedSampler(len(rows), min(network.batch_size, len(rows)), seed)
    for step in range(steps):
        rng = RandomStreams(seed, step, device=device)
        batch = prepared.take(rows[order.indices(step)]).to(device)
        noise = coupling(batch.data, cond=batch.cond, mask=batch.mask, generator=rng.noise)
        if batch.mask is not None:
            noise = noise * batch.mask
        t = PATH.sample_time(len(batch), generator=rng.time)
        loss = LOSS(model, PATH, batch.data, noise, t, prepared.told(batch)).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), network.optimizer.max_grad_norm)
        optimizer.step()
        warmup.step()
        average.update(model)
        after_step(step + 1, lambda: average.model)
    if not bool(loss.isfinite()):
        raise ValueError("the loss is not a number; check the data, or --normalize")


@torch.no_grad()
def sample(
    model: nn.Module,
    start: Tensor,
    told: dict[str, Tensor] | None,
    budget: int,
    *,
    device: torch.device,
) -> Tensor:
    """Data ``[n, *shape]`` from ``start``, in ``budget`` Euler steps, on the CPU."""
    made = []
    for rows in torch.arange(len(start)).split(AT_ONCE):
        cond = told and {name: value[rows].to(device) for name, value in told.items()}
        velocity = PATH.velocity(model, cond)
        made.append(sample_euler(velocity, start[rows].to(device), steps=budget).data.cpu())
    return torch.cat(made)
