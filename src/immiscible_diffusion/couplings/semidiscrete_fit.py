"""The fit of a semidiscrete plan: numbers ``b`` with which every sample has its share of N(0, I).

A noise n belongs to ``argmax_j <n, x_j> + b_j`` of samples ``x_j``, whatever data they are of.
"""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.couplings._validation import to_float64
from immiscible_diffusion.couplings.moments import TensorFields, groups
from immiscible_diffusion.utils.random import keyed_generator
from immiscible_diffusion.utils.tensor_files import load_tensors, save_tensors

SCORES = 1 << 24  # elements of the largest matrix of noises x samples: 64 MiB
BATCH = 2048  # noises of a step of the fit
START = 0.75  # less than 1 as scores are correlated: on digits and CIFAR-10 the chi-square is least near it
RATE, SOFTNESS = 0.05, 0.02  # of the fit, in units of the samples' root mean square length
IN_CACHE = 128  # noises whose scores are computed at a time on a CPU
EVERY = 200  # steps of the fit, after which it is checked
SECONDS = 30.0  # between states of a fit on the disk
Progress = Callable[[int, float], None]


def fit_shares(
    samples: Tensor,
    keys: Tensor,
    labels: Tensor | None,
    tolerance: float,
    max_steps: int,
    seed: int,
    progress: Progress | None,
    state: str | os.PathLike[str] | None,
) -> tuple[Tensor, Tensor, float]:
    """``bias``, ``first`` and ``chi_square`` of the plan of ``samples`` ``[N, r]``, equal where ``keys`` ``[N]`` are.

    Averaged stochastic descent on the semidual: ``b -= rate (N p - 1)`` with the shares p of ``BATCH`` noises,
    softened at first, from ``b_j = -3/4 c |x_j|`` with ``N P(n > c) = 1``: with all of c every sample would be as
    likely to have a score above 0. Every ``EVERY`` steps the shares without softness are counted, and the fit stops
    once their chi-square is at most ``tolerance``, by so many noises that its standard deviation
    ``(2 N)^(1/2) / noises`` is at most half of that. As the average is as good as any that sees a noise once (Polyak
    and Juditsky 1992), Adam would take as many.
    """
    bias, first, worst = samples.new_zeros(len(samples)), torch.arange(len(samples), device=samples.device), 0.0
    content = {"samples": samples, "keys": keys} | ({} if labels is None else {"labels": labels})
    head = repr((seed, tolerance, str(samples.device))).encode()
    kept = _FitState(state, TensorFields.hash_content(head, content))
    for label, rows in groups(labels, samples):
        _, inverse, count = keys[rows].unique(return_inverse=True, return_counts=True)
        leader = rows.new_full((len(count),), len(samples)).scatter_reduce(0, inverse, rows, "amin")
        generator = keyed_generator(seed, "semidiscrete", label, device=samples.device)
        part = samples[leader], count / len(rows), generator, tolerance, max_steps
        found, chi_square = _fit(*part, progress, kept, label)
        bias[rows], first[rows], worst = found[inverse], leader[inverse], max(worst, chi_square)
    if state:
        Path(state).unlink(missing_ok=True)
    return bias, first, worst


class _FitState:
    """Where a fit of the content ``key`` is, label by label: in memory, and now and then in the file ``path``."""

    def __init__(self, path: str | os.PathLike[str] | None, key: str) -> None:
        self.path, self.key, self.saved = Path(path) if path else None, key, time.monotonic()
        self.tensors: dict[str, Tensor] = {}
        if self.path and self.path.exists():
            tensors, about = load_tensors(self.path)
            self.tensors = tensors if about.get("key") == key else {}

    def of(self, label: int) -> dict[str, Tensor]:
        """The tensors last kept of ``label``, or none."""
        start = f"{label}/"
        return {name.removeprefix(start): x for name, x in self.tensors.items() if name.startswith(start)}

    def keep(self, label: int, **tensors: Tensor) -> None:
        """Take the tensors of ``label``."""
        self.tensors |= {f"{label}/{name}": value for name, value in tensors.items()}
        if self.path and time.monotonic() - self.saved >= SECONDS:
            save_tensors(self.path, self.tensors, {"key": self.key})
            self.saved = time.monotonic()


def _fit(
    samples: Tensor,
    weight: Tensor,
    generator: torch.Generator,
    tolerance: float,
    max_steps: int,
    progress: Progress | None,
    kept: _FitState,
    label: int,
) -> tuple[Tensor, float]:
    """``b`` ``[N]`` for distinct ``samples`` ``[N, r]`` that are to have the shares ``weight``, and the chi-square."""
    count, rank = samples.shape
    if count == 1:
        return samples.new_zeros(1), 0.0
    scale = samples.square().sum(dim=1).mean().sqrt()

    def shares(bias: Tensor, number: int, softness: float) -> Tensor:
        total = torch.zeros_like(bias)
        sharpness = 1 / (softness * scale) if softness else 1.0
        plan = samples * sharpness, bias * sharpness
        for size in [_rows(count)] * (number // _rows(count)) + [number % _rows(count)]:
            noise = torch.randn(size, rank, device=samples.device, generator=generator)
            for part in noise.split(IN_CACHE if noise.device.type == "cpu" else _rows(count)):
                score = scores(part, *plan)
                if softness:
                    total += score.softmax(dim=1).sum(dim=0)
                else:
                    total += score.argmax(dim=1).bincount(minlength=count)
        return total

    def check(bias: Tensor, most: int) -> tuple[float, bool]:
        """The chi-square, unbiased, and whether it is at most ``tolerance``, of ``most`` noises if that is close."""
        number, noises = torch.zeros_like(bias), 0
        part = int(min(1 << 17, max(1 << 14, (2 * count) ** 0.5 / (0.5 * tolerance))))
        while True:
            number, noises = number + shares(bias, part, 0.0), noises + part
            chi_square = float((number * (number - 1) / weight).sum() / (noises * (noises - 1)) - 1)
            deviation = (2 * count) ** 0.5 / noises
            known = deviation <= 0.5 * tolerance
            if known or noises >= most or chi_square - 2 * deviation > tolerance:
                return chi_square, known and chi_square <= tolerance

    quantile = torch.special.ndtri(to_float64(weight).clamp_max(0.5)).float()
    bias = START * quantile.to(samples) * torch.linalg.vector_norm(samples, dim=1)
    start, average, chi_square, done = 0, bias.clone(), math.inf, False
    if last := kept.of(label):
        bias, average = last["bias"].to(bias), last["average"].to(bias)
        generator.set_state(last["generator"])
        start, chi_square, done = int(last["step"]), float(last["chi_square"]), bool(last["done"])
    for step in range(start, 0 if done else max_steps):
        excess = shares(bias, BATCH, SOFTNESS / (1 + step / 200) ** 0.5) / (BATCH * weight) - 1
        bias = bias - RATE / (1 + step / 50) ** 0.5 * scale * excess.clamp(-3, 3)
        average.lerp_(bias, 2 / (step + 2))
        if (step + 1) % EVERY == 0 or step + 1 == max_steps:
            chi_square, done = check(average, BATCH * (step + 1))
            if progress is not None:
                progress(step + 1, chi_square)
            numbers = {"step": step + 1, "chi_square": chi_square, "done": done}
            now = {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
            kept.keep(label, bias=bias, average=average, generator=generator.get_state(), **now)
            if done:
                break
    return average, max(chi_square, 0.0)


def check_max_steps(value: Any) -> None:
    """Raise ValueError unless ``value`` is a number of steps."""
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"max_steps must be a whole number >= 0, got {value!r}")


def scores(noise: Tensor, samples: Tensor, bias: Tensor) -> Tensor:
    """``<n, x_j> + b_j`` ``[B, N]``."""
    return torch.addmm(bias, noise, samples.T, out=noise.new_empty(len(noise), len(bias)))  # see ``product``


def owners(noise: Tensor, samples: Tensor, bias: Tensor) -> Tensor:
    """``[B]``: for each noise the sample with the highest score."""
    return torch.cat([scores(part, samples, bias).argmax(dim=1) for part in noise.split(_rows(len(samples)))])


def _rows(samples: int) -> int:
    return max(1, SCORES // samples)


def balanced(owner: Tensor, capacity: Tensor, noise: Tensor, samples: Tensor, bias: Tensor) -> Tensor:
    """``owner`` ``[M]``, changed where need be so that every sample has ``capacity`` ``[N]`` noises.

    Noises that a sample has too many of go to samples that lack some, the highest scores first.
    """
    owner = owner.clone()
    surplus = ranked(owner) >= capacity[owner]
    while bool(surplus.any()):
        lacking = capacity - owner[~surplus].bincount(minlength=len(capacity))
        free, moved = lacking.nonzero()[:, 0], surplus.nonzero()[:, 0]
        best = [scores(noise[part], samples[free], bias[free]).max(dim=1) for part in moved.split(_rows(len(free)))]
        value, choice = (torch.cat([part[i] for part in best]) for i in range(2))
        order = value.argsort(descending=True)
        accepted = order[ranked(choice[order]) < lacking[free[choice[order]]]]
        owner[moved[accepted]] = free[choice[accepted]]
        surplus[moved[accepted]] = False
    return owner


def ranked(values: Tensor) -> Tensor:
    """Of each of ``values`` ``[M]`` (whole numbers) how many equal ones come before it."""
    order, count = values.argsort(stable=True), values.bincount()
    place = torch.empty_like(order)
    place[order] = torch.arange(len(values), device=values.device) - (count.cumsum(0) - count)[values[order]]
    return place
