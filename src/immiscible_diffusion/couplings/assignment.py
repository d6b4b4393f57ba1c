"""Linear assignment of a batch of noise to a batch of data.

*Immiscible Diffusion* (arXiv 2406.12303, Algorithm 1); conditions after C2OT (arXiv 2503.10636).
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from immiscible_diffusion.couplings import costs
from immiscible_diffusion.couplings._validation import (
    check_data,
    check_rows_finite,
    has_values,
    kind_of,
    valid_positions,
)
from immiscible_diffusion.couplings.base import Cond, Coupling, Mask, Noise, Rng
from immiscible_diffusion.couplings.distributed import finish_across_ranks, pair_across_ranks, ranks_in_use
from immiscible_diffusion.utils.optional_deps import require_extra

MISMATCH_RATE = 0.05


@dataclass(frozen=True)
class LinearAssignment(Coupling):
    """One-to-one pairing of a batch of data with a batch of noise at least total cost.

    The noises are those drawn, in another order, so their distribution stays N(0, I) exactly. A batch of one sample is
    legal, pairs nothing and warns. Solved on the CPU by scipy: hide its time with ``PairedLoader``.

    Args:
        cost: ``"inner"``: the squared distance, by inner products alone (one matrix product, no ``[B, B, D]``);
            ``"norm"``: the distance not squared, as the paper's code has it (slower to solve, for parity); ``"l1"``:
            the sum of absolute differences (the paper's ablation).
        solver: ``"exact"``; or ``"greedy"``: the closest pair, then the closest of the rest, and so on: a stable
            matching (no sample and noise are closer than both are to their partners; Multisample Flow Matching, arXiv
            2304.14772), solved where the data are.
        negate: return minus the assigned noise: a control whose pairs are equally dependent but distant (the paper's
            ablation without optimal transport).
        pool: batches paired as one by ``PairedLoader`` or ``pair_pool``; a plain call warns.
        oversample: noises drawn for every sample, all but one unused. More than 1 changes the noise distribution as
            KNN does: shorter noises are picked.
        cond_key: the condition that noise must not cross: the noise of row j carries the condition of row j. Without
            it noise comes to depend on the condition, and in sampling it does not.
        cond_cost: ``"hard"``: noise moves between equal conditions only; ``"soft"``: other conditions cost extra, 1
            for other labels, 1 - cosine for other vectors, times a weight.
        mismatch_rate: sets that weight: of the pairs with different conditions, this share still costs less than the
            sample's own draw (1/2 would do so at weight 0).
        across_ranks: one assignment over all processes of ``torch.distributed``; all must call. A rank may have no
            rows; a fault of one is a ValueError on all. ``"node"``: one over the processes of each machine, which
            moves no rows between machines.
        max_size: split larger problems at random into parts of at most this many samples.
        standardize: measure distances from data of mean 0 and variance 1 in every coordinate over what is paired, so
            that all coordinates of an action count alike (Immiscible Diffusion Policy, arXiv 2610.09369, with
            ``cost="norm"``).
    """

    cost: Literal["inner", "norm", "l1"] = "inner"
    solver: Literal["exact", "greedy"] = "exact"
    negate: bool = False
    pool: int = 1
    oversample: int = 1
    cond_key: str | None = None
    cond_cost: Literal["hard", "soft"] = "hard"
    mismatch_rate: float = MISMATCH_RATE
    across_ranks: bool | Literal["node"] = False
    max_size: int | None = None
    standardize: bool = False

    name = "assignment"

    def __post_init__(self) -> None:
        if self.cost not in costs.COSTS:
            raise ValueError(f"cost must be one of {', '.join(costs.COSTS)}, got {self.cost!r}")
        if self.solver not in ("exact", "greedy"):
            raise ValueError(f"solver must be exact or greedy, got {self.solver!r}")
        if self.cond_cost not in ("hard", "soft"):
            raise ValueError(f"cond_cost must be hard or soft, got {self.cond_cost!r}")
        for name in ("pool", "oversample"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")
        if self.oversample > 1 and self.cost != "inner":
            raise ValueError(f"oversample > 1 needs cost='inner', got {self.cost!r}")
        if self.across_ranks not in (True, False, "node"):
            raise ValueError(f"across_ranks must be true, false or node, got {self.across_ranks!r}")
        rate, most = self.mismatch_rate, self.max_size
        if not 0 < rate < 0.5:
            raise ValueError(f"mismatch_rate must be above 0 and below 1/2, got {rate}")
        if self.cond_key is None and (self.cond_cost, rate) != ("hard", MISMATCH_RATE):
            raise ValueError("cond_cost and mismatch_rate need a cond_key, such as 'label'")
        if most is not None and (not isinstance(most, int) or most < 2):
            raise ValueError(f"max_size must be at least 2, got {most!r}; give a whole number")

    @property
    def preserves_marginal(self) -> bool:
        """Whether no noise is left over."""
        return self.oversample == 1

    def preserves_conditional(self, key: str) -> bool:
        """Whether noise never crosses ``cond[key]``."""
        return self.preserves_marginal and self.cond_key == key and self.cond_cost == "hard"

    @property
    def pool_size(self) -> int:
        """``pool``."""
        return self.pool

    def unpooled(self) -> Coupling:
        """This with ``pool=1``, as it is called on complete pools."""
        return replace(self, pool=1)

    def within_process(self) -> Coupling:
        """This with ``pool=1`` and without other ranks."""
        return replace(self, pool=1, across_ranks=False)

    def finish_ranks(self, generator: Callable[[int], torch.Generator]) -> None:
        """Take part without rows until the other ranks have ended."""
        if self.across_ranks and ranks_in_use():
            finish_across_ranks(self, generator)

    def check(self, data: Tensor, mask: Mask) -> Mask:
        """As everywhere, but across ranks where the others hear of a fault: in ``check_pair``."""
        return mask if self.across_ranks and ranks_in_use() else super().check(data, mask)

    def choose(self, data: Tensor, noise: Noise, cond: Cond, mask: Mask, generator: Rng) -> Tensor:
        """Noise ``[oversample B, *shape]``, drawn or the caller's, assigned to ``data``.

        Row j B + i of an oversample was drawn for sample i. ``generator`` also serves ``max_size``; across ranks that
        of rank 0 does.
        """
        if self.across_ranks and ranks_in_use():
            return pair_across_ranks(self, data, noise, cond, mask, generator)
        noise = self.draw(data, generator) if noise is None else noise
        return self.pair_here(data, noise, cond, mask, generator)

    def draw(self, data: Tensor, generator: Rng) -> Tensor:
        """The noise ``[oversample B, *shape]`` that a call starts from."""
        rows = (self.oversample * len(data), *data.shape[1:])
        return torch.randn(rows, dtype=data.dtype, device=data.device, generator=generator)

    def pair_here(self, data: Tensor, noise: Tensor, cond: Cond, mask: Mask, generator: Rng) -> Tensor:
        """``noise`` assigned within this process, whatever ``across_ranks`` says."""
        index = self.assign(data, noise, cond=cond, mask=mask, generator=generator)
        paired = noise.to(data).index_select(0, index)
        return -paired if self.negate else paired

    @torch.no_grad()
    def assign(
        self, data: Tensor, noise: Tensor, *, cond: Cond = None, mask: Mask = None, generator: Rng = None
    ) -> Tensor:
        """Which noise each sample gets, ``[B]`` int64: sample i gets ``noise[index[i]]``.

        A permutation, unless noise is oversampled.
        """
        if not has_values(data):
            raise ValueError("LinearAssignment needs the values of the data, and meta or fake ones have none; use KNN")
        valid, condition = self.check_pair(data, noise, cond, mask)
        if len(data) == 1 and self.oversample == 1:
            warnings.warn("LinearAssignment pairs nothing in a batch of one sample; KNN(k) does", stacklevel=7)
        if self.pool > 1:
            warnings.warn(f"pool={self.pool} joins batches in PairedLoader or pair_pool, not in a call", stacklevel=7)
        index = torch.arange(len(data), device=data.device)
        points = costs.standardized(data, valid) if self.standardize else data
        soft = condition is not None and self.cond_cost == "soft"
        problems = self._problems(data, condition, generator)
        for rows in problems:
            x, candidates, own, columns = points, noise, valid, None
            if len(problems) > 1:  # one problem is all rows in their order, not to be copied
                columns = torch.cat([rows + j * len(data) for j in range(self.oversample)])
                x, candidates = points.index_select(0, rows), noise.index_select(0, columns)
                own = None if valid is None else valid[rows]
            if len(candidates) <= 1:
                continue
            squared = self.oversample > 1 or soft or self.solver == "greedy"
            cost = costs.assignment_cost(self.cost, x, candidates, own, squared)
            cost = cost if self.solver == "greedy" else _on_host(cost)
            check_rows_finite(cost)
            if condition is not None and soft:
                cost = costs.add_condition_cost(cost.cpu(), condition[rows].cpu(), self.mismatch_rate)
            if self.solver == "greedy":
                if self.cost == "inner":  # of two samples that want a noise the closer one gets it
                    whole = x if own is None else x.masked_fill(~own, 0)
                    cost += whole.to(cost).flatten(1).square().sum(dim=1, keepdim=True) / 2
                column = greedy_columns(cost).to(data.device)
            else:
                column = exact_columns(cost).to(data.device)
            if columns is None:
                return column
            index[rows] = columns[column]
        return index

    def check_pair(self, data: Tensor, noise: Tensor, cond: Cond, mask: Mask) -> tuple[Mask, Tensor | None]:
        """The mask in the shape of ``data`` (None if all are valid) and ``cond[cond_key]``; ValueError if bad."""
        check_data(data, may_be_empty=bool(self.across_ranks))
        expected = (self.oversample * len(data), *data.shape[1:])
        floating = isinstance(noise, Tensor) and noise.is_floating_point()
        if not floating or noise.shape != expected:
            like = "like data" if self.oversample == 1 else f"with oversample={self.oversample}"
            raise ValueError(f"noise must be {expected} {like}, got {kind_of(noise)}")
        valid = valid_positions(mask, data)
        if valid is not None and bool(valid.all()):
            valid = None  # ranks leave such a mask out, and rounding must not differ
        check_rows_finite(data if valid is None else data.masked_fill(~valid, 0))
        check_rows_finite(noise, what="noise")
        if self.cond_key is None or (len(data) == 0 and not cond):
            return valid, None
        return valid, costs.checked_condition(cond, self.cond_key, len(data)).to(data.device)

    def _problems(self, data: Tensor, condition: Tensor | None, generator: Rng) -> list[Tensor]:
        """Rows that are assigned together: of equal condition, and not too many."""
        groups = [torch.arange(len(data), device=data.device)]
        if condition is not None and self.cond_cost == "hard":
            groups = costs.groups_of(condition)
        parts: list[Tensor] = []
        for rows in groups:
            if self.max_size is not None and len(rows) > self.max_size:
                order = torch.randperm(len(rows), device=rows.device, generator=generator)
                parts += rows[order].tensor_split(-(-len(rows) // self.max_size))
            else:
                parts.append(rows)
        return parts


def exact_columns(cost: Tensor) -> Tensor:
    """The column ``[B]`` of each row of ``cost`` ``[B, N]``, all different, at the least total cost."""
    with require_extra("", "linear assignment"):
        from scipy.optimize import linear_sum_assignment  # keeps the package's import light

    return torch.as_tensor(linear_sum_assignment(cost.cpu().numpy())[1])


def greedy_columns(cost: Tensor) -> Tensor:
    """The column ``[B]`` of each row of ``cost`` ``[B, N]``: the cheapest pair is taken, and again from the rest.

    Pairs that are each other's cheapest are taken at once, in some log B rounds.
    """
    cost, rows = cost.clone(), torch.arange(len(cost), device=cost.device)
    column = torch.empty_like(rows)
    while len(rows):
        left = cost[rows]
        best = left.argmin(dim=1)
        mutual = left.argmin(dim=0)[best] == torch.arange(len(rows), device=rows.device)
        column[rows[mutual]] = best[mutual]
        cost[:, best[mutual]] = torch.inf
        rows = rows[~mutual]
    return column


def _on_host(cost: Tensor) -> Tensor:
    """``cost`` on the CPU, where it is solved.

    From CUDA through pinned memory, which is faster and holds up no stream; the thread sleeps meanwhile.
    """
    if not cost.is_cuda:
        return cost.cpu()
    host = torch.empty(cost.shape, dtype=cost.dtype, pin_memory=True).copy_(cost, non_blocking=True)
    copied = torch.cuda.Event(blocking=True)
    copied.record(torch.cuda.current_stream(cost.device))
    copied.synchronize()
    return host
