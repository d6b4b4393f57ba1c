"""Does the closed-form reduction of the irreducible loss predict the measured speed-up?

    OMP_NUM_THREADS=1 python -m reproduce.prediction --fashion FOLDER --cifar FOLDER \
        --out OUT --set digits          # one process a data set; then without --set: the tables

Stated before anything was run:

- Main predictor: ``1 - mean over t of the irreducible loss with the coupling / the same without``
  (flow matching, t = 0.05, 0.15 ... 0.95; closed form, for assignment the estimate).
- Main outcomes: log(steps without / steps with pairing) to the same Frechet distance at 5 and at 20
  Euler steps from N(0, I), mean over 3 seeds.
- Data sets: digits, digits 0 to 4, Fashion-MNIST 8 x 8, CIFAR-10 in gray 8 x 8, 64 Gaussians in 16
  dimensions. Couplings: KNN k = 2, 4, 16, 64, the last two centered, calibrated k = 16 and 64,
  assignment, Gaussian transport eps = 4, and two shuffled controls, of which the prediction is the
  part of the changed noise distribution alone.
- It holds if the correlation over all points that are no controls has a bootstrap interval (data
  sets drawn with replacement, then couplings) above 0 for both main outcomes, and its sign is the
  same when any one data set is left out. Everything else in the tables is exploratory.

All couplings and seeds of a data set train at once, as one stack of small networks with the same
data order, times and initial weights for every coupling of a seed. Each is preconditioned by its own
pairs, and times are logit-normal, as in digits-flow; a first run without either had baselines far
above the floor.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from immiscible_diffusion.analysis.miscibility import miscibility
from immiscible_diffusion.analysis.noise_statistics import measure_noise
from immiscible_diffusion.couplings import Coupling, NoiseDistribution, parse_coupling
from immiscible_diffusion.couplings.moments import Moments
from immiscible_diffusion.data import DataConfig, load_images
from immiscible_diffusion.diffusion.paths import FlowMatchingPath, Mixture, Preconditioned
from immiscible_diffusion.diffusion.paths.preconditioning import scales
from immiscible_diffusion.metrics.fid import FeatureStatistics, frechet_distance
from immiscible_diffusion.models.mlp import time_features
from immiscible_diffusion.utils.random import RandomStreams, keyed_generator

COUPLINGS = (
    "independent",
    *(f"knn:k={k}" for k in (2, 4, 16, 64)),
    *(f"knn:k={k},center=mean" for k in (16, 64)),
    *(f"calibrated:knn:k={k}" for k in (16, 64)),
    *("assignment", "gaussian_ot:eps=4"),
    *("shuffled:knn:k=16", "shuffled:assignment"),
)
SETS = ("digits", "digits-0-4", "fashion", "cifar-gray", "gaussians")
LEVELS = tuple((2 * i + 1) / 20 for i in range(10))
SEEDS, BATCH, STEPS, WIDTH, LR = (0, 1, 2), 128, 1200, 96, 2e-3
PATH = FlowMatchingPath(time="logit_normal")
EVALUATED = (60, 120, 200, 320, 500, 800, 1200)
SAMPLING_STEPS, SAMPLES, DATA = (5, 20), 1000, 2000


def load(name: str, fashion: str | None, cifar: str | None) -> Tensor:
    """Data ``[N, *shape]`` of about unit size."""
    if name == "gaussians":
        generator = keyed_generator("gaussians")
        centers = torch.randn(64, 16, generator=generator)
        which = torch.randint(64, (DATA,), generator=generator)
        return centers[which] + 0.1 * torch.randn(DATA, 16, generator=generator)
    if name.startswith("digits"):
        batch = load_images(DataConfig("digits")).batch(torch.arange(1797))
        assert batch.cond is not None
        return batch.data if name == "digits" else batch.data[batch.cond["label"] < 5]
    config = {
        "fashion": DataConfig("fashion_mnist", path=fashion, size=8, max_samples=DATA),
        "cifar-gray": DataConfig("cifar10", path=cifar, size=8, channels=1, max_samples=DATA),
    }[name]
    return load_images(config).batch(torch.arange(DATA)).data


class Stack(nn.Module):
    """``count`` residual networks on ``[count, B, D]``, each with weights of its own."""

    def __init__(self, seeds: list[int], dim: int, statistics: list[Tensor]) -> None:
        super().__init__()
        self.statistics = statistics  # of ``Preconditioned``, ``[count, 1, 1 or D]`` each
        sizes = [(dim, WIDTH), (64, WIDTH), *[(WIDTH, WIDTH)] * 4, (WIDTH, dim)]
        self.weights = nn.ParameterList()
        for number, (fan, out) in enumerate(sizes):
            each = [torch.randn(fan + 1, out, generator=keyed_generator("weights", seed, number)) for seed in seeds]
            gain = 0.0 if number == len(sizes) - 1 else fan**-0.5
            self.weights.append(nn.Parameter(gain * torch.stack(each)))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The velocity at ``x`` ``[M, B, D]``, ``t`` ``[M, B]``: ``Preconditioned`` on the straight path."""
        mean, noise_mean, s2, v, c = self.statistics
        time = t[..., None]
        one = torch.ones_like(time)
        deviation, c_skip, c_out = scales(Mixture(1 - time, time), -one, one, s2, v, c)
        centered = x - torch.lerp(mean, noise_mean, time)
        return noise_mean - mean + c_skip * centered + c_out * self.network(centered / deviation, t)

    def network(self, x: Tensor, t: Tensor) -> Tensor:
        """What is left to the weights."""
        embed, time, *blocks, last = self.weights
        context = _affine(time_features(1000 * t.flatten(), 64).view(*t.shape, 64), time)
        hidden = _affine(x, embed)
        for first, second in zip(blocks[::2], blocks[1::2], strict=True):
            inside = nn.functional.layer_norm(hidden, hidden.shape[-1:]) + context
            hidden = hidden + _affine(nn.functional.silu(_affine(inside, first)), second)
        return _affine(nn.functional.layer_norm(hidden, hidden.shape[-1:]), last)


def _affine(x: Tensor, weight: Tensor) -> Tensor:
    return torch.baddbmm(weight[:, -1:], x, weight[:, :-1])


def train(data: Tensor, couplings: list[Coupling], steps: int) -> Iterator[tuple[int, Stack]]:
    """Averaged networks, coupling by coupling and seed by seed, at the steps to evaluate at."""
    flat = data.flatten(1)
    seeds = [seed for _ in couplings for seed in SEEDS]
    known = pair_statistics(data, couplings)
    model, average = (Stack(seeds, flat.shape[1], known) for _ in range(2))
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, foreach=True)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1.0, (step + 1) / 100)
        x, t, noise = draw(data, couplings, step)
        target, point = noise - x, torch.lerp(x, noise, t[..., None])
        loss = (model(point, t) - target).square().mean(dim=(1, 2)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay = (1 + step) / (10 + step)
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        if step + 1 in EVALUATED or step + 1 == steps:
            yield step + 1, average


def pair_statistics(data: Tensor, couplings: list[Coupling]) -> list[Tensor]:
    """What ``Preconditioned`` measures of each coupling's pairs, for every seed."""
    found = []
    for coupling in couplings:
        model, generator = Preconditioned(nn.Identity(), PATH), keyed_generator("pairs")
        order = [torch.randperm(len(data), generator=generator) for _ in range(-(-10_000 // len(data)))]
        batches = [data[rows] for epoch in order for rows in epoch.split(BATCH)]
        model.fit((batch.flatten(1), coupling(batch, generator=generator).flatten(1)) for batch in batches)
        found += [[value.reshape(1, -1) for value in model.buffers()]] * len(SEEDS)
    return [torch.stack(values) for values in zip(*found, strict=True)]


def draw(data: Tensor, couplings: list[Coupling], step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Data, times, noise of a step ``[M, B, ...]``; data and times are those of the seed."""
    xs, ts, noises = [], [], []
    for seed in SEEDS:
        streams = RandomStreams(seed, step)
        rows = torch.randint(len(data), (BATCH,), generator=streams.augment)
        batch = data[rows]
        xs.append(batch.flatten(1))
        ts.append(PATH.sample_time(BATCH, generator=streams.time))
        noises.append([c(batch, generator=streams.noise).flatten(1) for c in couplings])
    noise = torch.stack([noises[s][c] for c in range(len(couplings)) for s in range(len(SEEDS))])
    return torch.stack(xs * len(couplings)), torch.stack(ts * len(couplings)), noise


@torch.no_grad()
def sample(model: Stack, start: Tensor, sampling_steps: int) -> Tensor:
    """Euler from ``start`` ``[M, S, D]``."""
    x = start
    for number in range(sampling_steps):
        t = torch.full(x.shape[:2], 1 - number / sampling_steps)
        x = x - model(x, t) / sampling_steps
    return x


def starts(distributions: list[NoiseDistribution], dim: int) -> dict[str, Tensor]:
    """Noise to start from, ``[M, S, D]``: N(0, I), and as each coupling's own noise."""
    normal = [torch.randn(SAMPLES, dim, generator=keyed_generator("start", s)) for s in SEEDS]
    matched = [each.color(noise.view(-1, *each.shape)).flatten(1) for each in distributions for noise in normal]
    return {"normal": torch.stack(normal * len(distributions)), "matched": torch.stack(matched)}


def frechet_distances(
    data: Tensor, couplings: list[Coupling], distributions: list[NoiseDistribution], steps: int
) -> list:
    """Frechet distances by step, start, sampling_steps, coupling and seed."""
    flat = data.flatten(1)
    real, found = FeatureStatistics.of(flat), []
    begin = starts(distributions, flat.shape[1])
    for step, model in train(data, couplings, steps):
        for start, noise in begin.items():
            for sampling_steps in SAMPLING_STEPS:
                samples = sample(model, noise, sampling_steps)
                values = [frechet_distance(FeatureStatistics.of(x), real) for x in samples]
                found += [
                    {"step": step, "start": start, "sampling_steps": sampling_steps,
                     "coupling": i // len(SEEDS), "seed": SEEDS[i % len(SEEDS)], "frechet": value}
                    for i, value in enumerate(values)
                ]  # fmt: skip
        sys.stderr.write(f"step {step}\n")
    return found


def predictors(data: Tensor, coupling: Coupling, probes: int) -> dict[str, float]:
    """What is known before training."""
    mixed = miscibility(data, coupling, levels=(*LEVELS, 0.98), probes=probes, batch_size=BATCH)
    losses = [level.irreducible.value for level in mixed.levels[:-1]]
    noise = measure_noise(data, coupling, pairs=2 * probes, batch_size=BATCH)
    return {
        "loss": float(np.mean(losses)),
        "noisy": float(np.mean(losses[-2:])),
        "effective": mixed.levels[-1].effective.value,
        "information": noise.information.value,
        "kl": noise.kl.value,
    }


def one_set(name: str, options: argparse.Namespace) -> dict:
    """Everything about one data set."""
    data = load(name, options.fashion, options.cifar)
    data = data[: options.data] if options.data else data
    moments = Moments.fit(data, directions=min(32, data[0].numel(), len(data) // 4))

    def distribution(coupling: Coupling) -> NoiseDistribution:
        order = [torch.randperm(len(data), generator=keyed_generator("law", e)) for e in range(20)]
        batches = [data[rows] for epoch in order for rows in epoch.split(BATCH)]
        return NoiseDistribution.measure(coupling, batches, moments, generator=keyed_generator("law"))

    couplings = [parse_coupling(c, moments, distribution) for c in COUPLINGS]
    known = []
    for spelling, coupling in zip(COUPLINGS, couplings, strict=True):
        known.append(predictors(data, coupling, options.probes))
        sys.stderr.write(f"{name} {spelling}: {known[-1]}\n")
    distributions = [distribution(coupling) for coupling in couplings]
    quality = frechet_distances(data, couplings, distributions, options.steps)
    return {"set": name, "data": len(data), "known": known, "quality": quality}


def main(arguments: list[str] | None = None) -> int:
    """Measure a data set, or write the tables of those measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", choices=SETS)
    parser.add_argument("--fashion")
    parser.add_argument("--cifar")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--probes", type=int, default=300)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--data", type=int)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.set:
        found = one_set(options.set, options)
        (options.out / f"{options.set}.json").write_text(json.dumps(found))
        return 0
    from reproduce.prediction.tables import write_tables

    return write_tables(options.out, options.figure)


if __name__ == "__main__":
    sys.exit(main())
