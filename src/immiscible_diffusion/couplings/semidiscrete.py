"""Semidiscrete optimal transport: every sample of the data set has its share of N(0, I).

With one number ``b_j`` for each of N samples, a noise n belongs to ``argmax_j <n, x_j> + b_j``. There is a ``b`` with
which every sample gets the N-th part of all noise, and this map is then the optimal transport from N(0, I) to the data
set (SD-FM, 2509.25519; AlignFlow, 2510.15038): a linear assignment with every noise there is. It is found once,
before the first step; a batch then looks its noise up, so that any batch size will do.
"""

import itertools
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from immiscible_diffusion.couplings._validation import (
    can_sync,
    check_fitted,
    check_labels,
    check_rows_finite,
    kind_of,
    product,
    rows_of_labels,
    take_condition,
    working_dtype,
)
from immiscible_diffusion.couplings.assignment import LinearAssignment
from immiscible_diffusion.couplings.base import Cond, Coupling, Mask, Noise, Rng, start_noise
from immiscible_diffusion.couplings.moments import AT_A_TIME, Data, Moments, TensorFields, split_labels
from immiscible_diffusion.utils.checks import NonNegativeFloat, NonNegativeInt, PositiveInt, check_fields
from immiscible_diffusion.utils.random import keyed_generator
from immiscible_diffusion.utils.tensor_files import load_tensors, save_tensors

SCORES = 1 << 24  # elements of the largest matrix of noises x samples: 64 MiB
BATCH = 2048  # noises of a step of the fit
START = 0.75  # less than 1 as scores are correlated: on digits and CIFAR-10 the chi-square is least near it
RATE, SOFTNESS = 0.05, 0.02  # of the fit, in units of the samples' root mean square length
IN_CACHE = 128  # noises whose scores are computed at a time on a CPU
EVERY = 200  # steps of the fit, after which it is checked
SECONDS = 30.0  # between states of a fit on the disk
UNFITTED: dict[str, Any] = {"max_steps": 0}  # to try a coupling before there is a plan
NEIGHBORS = 1024  # noises of a table that are assigned to their samples together
Progress = Callable[[int, float], None]


@dataclass(frozen=True, eq=False)
class SemidiscretePlan(TensorFields):
    """Which noise belongs to which sample of a data set.

    Only the component of a noise along ``directions`` matters, the leading ones of the data: what is across them is
    left to chance. With labels there is a plan for each label, so that the noise given a label is N(0, I) as well.

    Attributes:
        mean: ``[*shape]`` of the data.
        directions: ``[r, D]`` orthonormal.
        samples: ``[N, r]``: the data less ``mean`` along the directions.
        bias: ``[N]``: ``b``; equal samples have it in common.
        first: ``[N]`` int64: the first sample (of the same label) that is equal, which has their share.
        chi_square: ``N sum_j p_j^2 - 1`` for shares ``p_j`` of the noise, 0 if all are 1 / N; of several
            labels the largest; inf where nothing was counted (``max_steps=0``).
        labels: ``[N]`` int64 of a plan within each label, or None.
    """

    mean: Tensor
    directions: Tensor
    samples: Tensor
    bias: Tensor
    first: Tensor
    chi_square: float
    labels: Tensor | None = None

    description = "a semidiscrete plan"
    parsers: ClassVar = {"chi_square": float}

    @classmethod
    def fit(
        cls,
        data: Data,
        moments: Moments,
        *,
        rank: int | None = None,
        tolerance: float = 0.02,
        max_steps: int = 4000,
        seed: int = 0,
        progress: Progress | None = None,
        device: torch.device | str | None = None,
        state: str | os.PathLike[str] | None = None,
    ) -> "SemidiscretePlan":
        """Find ``b`` for ``data`` in the order of their index: a tensor ``[N, *shape]``, or batches.

        Averaged stochastic descent on the semidual: ``b -= rate (N p - 1)`` with the shares p of ``BATCH`` noises,
        softened at first, from ``b_j = -3/4 c |x_j|`` with ``N P(n > c) = 1``: with all of c every sample would be
        as likely to have a score above 0. Every ``EVERY`` steps the shares without softness are counted, and the fit
        stops once their chi-square is at most ``tolerance``, by so many noises that its standard deviation
        ``(2 N)^(1/2) / noises`` is at most half of that. It takes some ``N / tolerance`` noises, each a product with
        ``[N, r]``; as the average is as good as any that sees a noise once (Polyak and Juditsky 1992), Adam would
        take as many.

        Args:
            data: with their mirror images, if training mirrors; a batch may come as ``(data, labels)``, for a plan
                within each label.
            moments: of the data, with directions.
            rank: how many of the directions; all by default.
            tolerance: see above; > 0. Tables, which are balanced, gain little below the default; ``sample_of`` has
                shares so equal.
            max_steps: where it stops otherwise, with a warning. With 0 the start is kept: enough for tables that
                ``sweeps`` refine, and for ``Quantile``.
            seed: of the noise.
            progress: called with the steps done and the chi-square.
            device: where to work; that of the data by default.
            state: a file that has the fit of these data at its last check (at most one in ``SECONDS``), from which
                one that was killed resumes; it is removed at the end.

        Raises:
            ValueError: fewer than 2 samples, values not finite, another shape than that of the moments, bad labels, a
                number out of its range.
        """
        if not isinstance(moments, Moments) or moments.directions is None:
            raise ValueError("a semidiscrete plan needs Moments.fit with directions")
        known = len(moments.directions)
        if rank is not None and not (isinstance(rank, int) and 1 <= rank <= known):
            raise ValueError(f"rank must be 1 to {known}, the known directions, got {rank!r}")
        check_max_steps(max_steps)
        if not tolerance > 0:
            raise ValueError(f"tolerance must be > 0, got {tolerance}")
        directions, parts, labels, keys = moments.directions[:rank], [], [], []
        for batch, label in map(split_labels, [data] if isinstance(data, Tensor) else data):
            check_fitted("the moments were", moments.mean.shape, batch.shape[1:], "fit them on these data")
            parts.append(along(batch, moments.mean, directions))
            labels.append(label)
            keys.append(content_keys(batch))
        if sum(map(len, parts)) < 2:
            raise ValueError(f"a semidiscrete plan needs at least 2 samples, got {sum(map(len, parts))}")
        if len(with_labels := [label for label in labels if label is not None]) not in (0, len(labels)):
            raise ValueError("some batches came with labels, some without; give all labels or none")
        samples, key = torch.cat(parts).to(device), torch.cat(keys).to(device)
        check_rows_finite(samples.cpu())
        label = torch.cat(with_labels).long().to(samples.device) if with_labels else None
        bias, first = samples.new_zeros(len(samples)), torch.arange(len(samples), device=samples.device)
        content = {"samples": samples, "keys": key} | ({} if label is None else {"labels": label})
        kept = _FitState(state, cls.hash_content(repr((seed, tolerance, str(samples.device))).encode(), content))
        worst = 0.0
        for name, rows in groups(label, samples):
            _, inverse, count = key[rows].unique(return_inverse=True, return_counts=True)
            leader = rows.new_full((len(count),), len(samples)).scatter_reduce(0, inverse, rows, "amin")
            generator = keyed_generator(seed, "semidiscrete", name, device=samples.device)
            weight = count / len(rows)
            part = samples[leader], weight, generator, tolerance, max_steps
            found, chi_square = _fit(*part, progress, kept, name)
            bias[rows], first[rows], worst = found[inverse], leader[inverse], max(worst, chi_square)
        kept.remove()
        if worst > tolerance and max_steps:
            warnings.warn(
                f"the shares of the samples differ by a chi-square of {worst:.2g} after {max_steps} steps, more than "
                f"{tolerance:g}; tables of noise are balanced all the same, at the cost of some of its pull",
                stacklevel=2,
            )
        return cls(moments.mean.to(samples), directions.to(samples), samples, bias, first, worst, label)

    @property
    def digest(self) -> str:
        """Short hash of the content: 16 hex digits."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return self.hash_content(repr(self.chi_square).encode(), self.tensors)

    @cached_property
    def length(self) -> float:
        """Root mean square length of the samples along the directions."""
        return float(self.samples.square().sum(dim=1).mean().sqrt())

    def sample_of(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Index ``[B]`` of the sample that each of ``noise`` ``[B, *shape]`` belongs to, among those of its label.

        Noise from N(0, I) gives every sample equally often (of equal samples always the first).
        """
        check_fitted("the plan was", self.mean.shape, noise.shape[1:], "give noise of the shape of the data")
        return self.owner_of(along(noise, torch.zeros_like(self.mean), self.directions), labels).to(noise.device)

    def owner_of(self, rows: Tensor, labels: Tensor | None = None) -> Tensor:
        """The same of noise that is known along the directions, ``[B, r]``; on the plan's device."""
        check_rows_finite(rows, "noise")
        device = self.samples.device
        rows = rows.to(device)
        if (labels is None) != (self.labels is None):
            raise ValueError(f"this plan was fitted {'with' if labels is None else 'without'} labels; give the same")
        if labels is not None:
            check_labels(labels, len(rows))
            labels = labels.to(device)
        index = torch.full((len(rows),), -1, device=device)
        for name, members in groups(self.labels, self.samples):
            mine = torch.arange(len(rows), device=device) if labels is None else (labels == name).nonzero()[:, 0]
            distinct = members[self.first[members] == members]
            index[mine] = distinct[owners(rows[mine], self.samples[distinct], self.bias[distinct])]
        if bool((unknown := index < 0).any()):
            raise ValueError(f"the plan has no samples of label {int(labels[unknown][0])}")  # type: ignore[index]
        return index

    def table(self, noises: int, seed: int, number: int, sweeps: int = 0) -> Tensor:
        """``[N, noises, r]`` float16: noise along the directions for every sample, table ``number`` of ``seed``.

        ``N noises`` are drawn from N(0, I) and each belongs to its sample; of those with more than ``noises`` some are
        handed on to samples with fewer, where they score best. So the table as a whole is N(0, I). Each of ``sweeps``
        then solves assignments of ``NEIGHBORS`` noises, to samples side by side in a random direction.
        """
        result = self.samples.new_empty(len(self.samples), noises, self.samples.shape[1], dtype=torch.float16)
        for name, members in groups(self.labels, self.samples):
            members = members[self.first[members].argsort(stable=True)]  # equal samples side by side
            distinct, count = self.first[members].unique_consecutive(return_counts=True)
            generator = keyed_generator(seed, number, "table", name, device=members.device)
            drawn = torch.randn(
                len(members) * noises, self.samples.shape[1], device=members.device, generator=generator
            )
            plan = self.samples[distinct], self.bias[distinct]
            owner = balanced(owners(drawn, *plan), count * noises, drawn, *plan)
            own, mine = drawn[owner.argsort(stable=True)], self.samples[members]
            for _ in range(sweeps):
                axis = torch.randn(own.shape[1], device=own.device, generator=generator)
                place = torch.mv(mine, axis, out=axis.new_empty(len(mine)))  # with out=: see ``product``
                order = place.argsort(stable=True).repeat_interleave(noises) * noises
                order += torch.arange(noises, device=own.device).repeat(len(members))
                for rows in order.tensor_split(-(-len(own) // NEIGHBORS)):
                    own[rows] = LinearAssignment().pair(mine[rows // noises], own[rows])
            result[members] = own.view(len(members), noises, -1).half()
        return result

    def __repr__(self) -> str:
        shape = f"shape={tuple(self.mean.shape)}, rank={len(self.directions)}"
        return f"SemidiscretePlan({shape}, count={len(self.samples)}, digest={self.digest})"


@dataclass(frozen=True)
class Semidiscrete(Coupling):
    """Noise from the sample's own share of N(0, I), for batches of any size (2509.25519, 2510.15038).

    Each sample has ``noises`` noises along the plan's directions in a table, one of which is taken at random; across
    the directions noise is fresh. Over the data set the noise is N(0, I) whatever the batch; with a plan by label
    given a label too. Every ``refresh`` training steps there is a new table, a function of ``seed`` and step alone.

    Args:
        plan: of the data set, ``SemidiscretePlan.fit``.
        noises: of each sample in a table; N times noises times rank float16 are held, of the last two tables.
        refresh: steps after which a new table is drawn.
        sweeps: of exact assignment over each table; 8 bring one of a plan that was fitted with ``max_steps=0`` (a
            bijection of the whole set with ``noises=1``) within 1 % of the best pull on CIFAR-10, within 3 % on data
            of six dimensions; a fitted one needs none.
        seed: of the tables.
        cond_key: "label" if the plan is to be one within each label, or None.
        index_key: the condition with the index ``[B]`` of each sample in the data that the plan was fitted to.
        tolerance: how far a sample may be from that of its index, in root mean square lengths of the data; farther (of
            another set, augmented otherwise) is an error, on the CPU. More for latents that are sampled each time.
        number: of the table; ``at_step`` sets it.
    """

    plan: SemidiscretePlan
    noises: PositiveInt = 16
    refresh: PositiveInt = 1000
    sweeps: NonNegativeInt = 0
    seed: int = 0
    cond_key: Literal["label"] | None = None
    index_key: str = "index"
    tolerance: NonNegativeFloat = 0.01
    number: int = field(default=0, repr=False)

    name = "semidiscrete"
    preserves_marginal = True
    takes_mask = False  # its directions are of complete samples

    def __post_init__(self) -> None:
        check_fields(self)
        check_plan(self.plan, self.cond_key)

    def preserves_conditional(self, key: str) -> bool:
        """Given the label, if the plan is one within each label."""
        return key == self.cond_key

    def at_step(self, step: int) -> Coupling:
        """This with the table of the step."""
        number = step // self.refresh
        return self if number == self.number else replace(self, number=number)

    def choose(self, data: Tensor, noise: Noise, cond: Cond, mask: Mask, generator: Rng) -> Tensor:
        """``n + sum_v (z_v - <n, v>) v`` for noise n ``[B, *shape]`` and z of the table.

        ValueError for an index that is not one of the plan; NaN where plan and data are both on an accelerator.
        """
        plan = self.plan
        check_fitted("the plan was", plan.mean.shape, data.shape[1:], "fit it on data of this shape")
        index = self._index(data, cond)
        fresh = start_noise(data, noise, generator)
        table = _table(plan, plan.samples.device, self.noises, self.seed, self.number, self.sweeps)
        turn = torch.randint(self.noises, index.shape, device=data.device, generator=generator)
        chosen = rows_of_labels(table.flatten(0, 1), index * self.noises + turn.to(index.device))
        return with_parts(fresh, chosen.to(data.device), plan.directions)

    def _index(self, data: Tensor, cond: Cond) -> Tensor:
        """The checked index ``[B]``, where the plan is."""
        plan = self.plan
        index = take_condition(cond, self.index_key, "semidiscrete pairing, which looks noise up by sample,")
        whole = isinstance(index, Tensor) and not index.is_floating_point() and index.dtype != torch.bool
        if not whole or index.shape != data.shape[:1]:
            raise ValueError(
                f'cond["{self.index_key}"] must be a tensor of whole numbers [{len(data)}], got {kind_of(index)}'
            )
        index, readable = index.to(plan.samples.device).long(), can_sync(data)
        if readable or can_sync(index):
            low, high = int(index.min()), int(index.max())
            if low < 0 or high >= len(plan.samples):
                raise ValueError(f"index runs from {low} to {high}; the plan has samples 0 to {len(plan.samples) - 1}")
        if not readable:
            return index
        labels = (cond or {}).get("label")
        if plan.labels is not None and isinstance(labels, Tensor) and labels.shape == index.shape:
            wrong = labels.to(index.device) != plan.labels[index]
            if bool(wrong.any()):
                row = int(wrong.nonzero()[0, 0])
                raise ValueError(
                    f"data row {row} has label {labels[row].item()}, and sample {int(index[row])} of the plan "
                    f"{int(plan.labels[index[row]])}; give the labels that it was fitted with"
                )
        rows = along(data, plan.mean, plan.directions)
        check_rows_finite(rows)
        away = torch.linalg.vector_norm(rows - plan.samples[index].to(data.device), dim=1)
        if not bool((away <= self.tolerance * plan.length).all()):
            row = int(away.argmax())
            raise ValueError(
                f"data row {row} is not sample {int(index[row])} of the plan: it is "
                f"{float(away[row]) / max(plan.length, 1e-30):.3g} away, in root mean square lengths of the data. The "
                f"plan is of other data (or of these in another order than that of the index), or the sample was "
                f"augmented in a way that it does not know: fit it on the augmented data, each with an index of its "
                f"own, or raise tolerance"
            )
        return index


@dataclass(frozen=True)
class NoiseFirst:
    """Samples for the noise, the other way round: a ``batch_sampler`` for ``torch.utils.data.DataLoader``.

    Batch number ``step`` has the noise ``noise(step)``, which is N(0, I) in all dimensions, given a label of the plan
    too, and the indices of the samples that it belongs to. There is no table, and a step costs a product with
    ``[N, r]``. Samples come equally often in the long run, not once an epoch (of equal ones the first). There is no
    end, and a step depends on ``seed`` and ``rank`` alone, so that training resumes from ``start``.

    Args:
        plan: of the data set, ``SemidiscretePlan.fit``; on whose device the noise is.
        batch_size: of this rank.
        seed: of noise and labels.
        rank: each has its own.
        start: the first step.
    """

    plan: SemidiscretePlan
    batch_size: PositiveInt
    seed: int = 0
    rank: NonNegativeInt = 0
    start: NonNegativeInt = 0

    def __post_init__(self) -> None:
        check_fields(self)
        check_plan(self.plan, None if getattr(self.plan, "labels", None) is None else "label")

    def noise(self, step: int) -> Tensor:
        """``[batch_size, *shape]``: that of batch ``step``."""
        shape, device = (self.batch_size, *self.plan.mean.shape), self.plan.mean.device
        return torch.randn(shape, device=device, generator=self._generator("noise", step))

    def indices(self, step: int) -> Tensor:
        """``[batch_size]`` int64: the samples of batch ``step``."""
        labels = self.plan.labels
        if labels is not None:
            generator = self._generator("label", step)
            labels = labels[torch.randint(len(labels), (self.batch_size,), device=labels.device, generator=generator)]
        return self.plan.sample_of(self.noise(step), labels)

    def __iter__(self) -> Iterator[list[int]]:
        for step in itertools.count(self.start):
            yield self.indices(step).tolist()

    def _generator(self, name: str, step: int) -> torch.Generator:
        return keyed_generator(self.seed, step, self.rank, f"{name} first", device=self.plan.mean.device)


@lru_cache(maxsize=2)
def _table(plan: SemidiscretePlan, device: torch.device, noises: int, seed: int, number: int, sweeps: int) -> Tensor:
    """That of the plan, kept; on another ``device`` an equal plan draws other noise."""
    with torch.inference_mode(False), torch.no_grad():
        return plan.table(noises, seed, number, sweeps)


def check_plan(plan: Any, cond_key: str | None) -> None:
    """Raise ValueError unless ``plan`` is one, within labels if there is a ``cond_key`` and without if not."""
    if not isinstance(plan, SemidiscretePlan):
        raise ValueError(f"plan must be SemidiscretePlan.fit(data, moments), got {type(plan).__name__}")
    if (cond_key is None) != (plan.labels is None):
        fitted = "without labels" if plan.labels is None else "within labels"
        raise ValueError(
            f"cond_key is {cond_key!r}, and the plan was fitted {fitted}; they must agree: within labels it is "
            f"SemidiscretePlan.fit([(data, labels)], moments)"
        )


def check_max_steps(value: Any) -> None:
    """Raise ValueError unless ``value`` is a number of steps."""
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"max_steps must be a whole number >= 0, got {value!r}")


def along(data: Tensor, mean: Tensor, directions: Tensor) -> Tensor:
    """``[B, r]`` float32: ``data`` ``[B, *shape]`` less ``mean``, along the directions."""
    rows = (data.float() - mean.to(data.device)).flatten(1)
    return product(rows, directions.to(rows).T)


def with_parts(noise: Tensor, parts: Tensor, directions: Tensor) -> Tensor:
    """``noise`` ``[B, *shape]`` with ``parts`` ``[B, r]`` along ``directions`` ``[r, D]`` instead of its own."""
    dtype = working_dtype(noise.dtype)
    rows, axes = noise.flatten(1).to(dtype), directions.to(noise.device, dtype)
    moved = torch.addmm(rows, parts.to(rows) - product(rows, axes.T), axes, out=torch.empty_like(rows))
    return torch.empty_like(noise).copy_(moved.view(noise.shape))


def content_keys(data: Tensor) -> Tensor:
    """``[B]`` int64, equal for equal rows of ``data``.

    For two others by a chance of some 2^-62; of values of few binary digits more, of 1 and -1 alone 2^-33.
    """
    generator = keyed_generator("content", device=data.device)
    factors = torch.randint(2**62, (data.shape[1:].numel(),), device=data.device, generator=generator)
    parts = (part.float() + 0.0 for part in data.detach().flatten(1).split(AT_A_TIME))  # -0 becomes 0
    return torch.cat([(part.contiguous().view(torch.int32).long() * factors).sum(dim=1) for part in parts])


def groups(labels: Tensor | None, samples: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Every label with the indices of its ``samples``, on their device; without labels one group of all."""
    if labels is None:
        yield 0, torch.arange(len(samples), device=samples.device)
    else:
        yield from ((int(label), (labels == label).nonzero()[:, 0]) for label in labels.unique())


def plan_of(data: Tensor, labels: Tensor | None, moments: Moments, within: bool, **options: Any) -> SemidiscretePlan:
    """The plan of ``data``, or one within each of ``labels``; ``options`` are those of ``SemidiscretePlan.fit``."""
    if not within:
        return SemidiscretePlan.fit(data, moments, **options)
    if labels is None:
        raise ValueError("cond_key=label needs data with labels")
    return SemidiscretePlan.fit([(data, labels)], moments, **options)


def scores(noise: Tensor, samples: Tensor, bias: Tensor) -> Tensor:
    """``<n, x_j> + b_j`` ``[B, N]``."""
    return torch.addmm(bias, noise, samples.T, out=noise.new_empty(len(noise), len(bias)))  # see ``product``


def owners(noise: Tensor, samples: Tensor, bias: Tensor) -> Tensor:
    """``[B]``: for each noise the sample with the highest score."""
    return torch.cat([scores(part, samples, bias).argmax(dim=1) for part in noise.split(_rows(len(samples)))])


def _rows(samples: int) -> int:
    return max(1, SCORES // samples)


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

    def remove(self) -> None:
        """Remove the file."""
        if self.path:
            self.path.unlink(missing_ok=True)


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

    quantile = torch.special.ndtri(weight.double().clamp_max(0.5)).float()
    bias = START * quantile * torch.linalg.vector_norm(samples, dim=1)
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
