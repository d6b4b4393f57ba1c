"""One assignment over all processes, or over those of a machine: rows go to the first, which solves, and come back.

What ranks bring is announced as objects and sent as tensors: pickled, 1,024 x 3,072 floats of two processes take 105
ms there and back (gloo, 2 cores), as tensors 20 ms.
"""

import itertools
import os
import socket
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from immiscible_diffusion.couplings._validation import check_data, working_dtype
from immiscible_diffusion.couplings.base import Cond, Mask, Noise, Rng

COMPARED = 16  # numbers of two ranks' noise, to tell whether they were seeded alike
# What user input can raise before or in the solve: the other ranks, which would wait, hear of it.
FAULTS = (ValueError, TypeError, RuntimeError, MemoryError, ImportError)
# Kept no longer than the default group: a group that outlives it aborts the process at its end.
_groups: WeakKeyDictionary[Any, dict[bool | str, Any]] = WeakKeyDictionary()
Form = list[tuple[torch.Size, torch.dtype]]  # of the tensors that one rank sends


def ranks_in_use() -> bool:
    """Whether there are other processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def pairing_group(across: bool | str) -> Any:
    """The gloo group that pairs together, all ranks or those of this ``"node"``; all call it first at the same place.

    A group of its own, since pairing runs in a thread beside the training's collectives.
    """
    groups = _groups.setdefault(dist.group.WORLD, {})
    if across not in groups and across == "node":
        nodes: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(nodes, os.environ.get("GROUP_RANK", socket.gethostname()))  # torchrun's, else by host
        ranks = [[rank for rank, other in enumerate(nodes) if other == node] for node in dict.fromkeys(nodes)]
        groups[across] = dist.new_subgroups_by_enumeration(ranks, backend="gloo")[0]
    elif across not in groups:
        groups[across] = dist.new_group(backend="gloo")
    return groups[across]


def ranks_together(across: bool | str) -> int:
    """How many processes pair together with this one, itself included."""
    return dist.get_world_size(pairing_group(across)) if across and ranks_in_use() else 1


def pair_across_ranks(coupling: Any, data: Tensor, noise: Noise, cond: Cond, mask: Mask, generator: Rng) -> Tensor:
    """``coupling.pair_here`` on the rows of all ranks of the group, in their order; this rank's noise.

    Ranks may have any number of rows, also none; ``noise`` that is None is drawn here. Rows of one shape are assigned
    together. ValueError on all ranks if the input of one does not fit, or the group's rank 0 could not solve; ranks
    are numbered within the group.
    """
    group = pairing_group(coupling.across_ranks)
    try:
        check_data(data, may_be_empty=True)
        noise = coupling.draw(data, generator) if noise is None else noise
        rows = _rows(coupling, data, noise, *coupling.check_pair(data, noise, cond, mask))
    except FAULTS:
        fail_across_ranks(group)
        raise
    forms = _announce([(tensor.shape, tensor.dtype) for tensor in rows], group)
    return _take_part(coupling, rows, forms, generator, group).to(data)


def finish_across_ranks(coupling: Any, generator: Callable[[int], torch.Generator]) -> None:
    """Take part without rows until all ranks have come to the end of their batches; ValueError if one failed.

    ``generator(n)`` serves the n-th round of the others, for which rank 0 solves.
    """
    group = pairing_group(coupling.across_ranks)
    for number in itertools.count():
        forms = _announce([], group)
        if not any(forms):
            return
        _take_part(coupling, [], forms, generator(number), group)


def fail_across_ranks(group: Any) -> None:
    """Let the other ranks, who wait for this one's rows, know that there will be none."""
    dist.all_gather_object([None] * dist.get_world_size(group), None, group=group)


def _announce(form: Form, group: Any) -> list[Form]:
    """What every rank is going to send: empty of one that has ended; ValueError if one failed."""
    forms: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(forms, form, group=group)
    if None in forms:
        raise ValueError(f"rank {forms.index(None)} could not pair its batch; see its own error")
    return forms


def _take_part(coupling: Any, rows: list[Tensor], forms: list[Form], generator: Rng, group: Any) -> Tensor:
    """Send ``rows`` to rank 0, or as rank 0 pair those of all; this rank's noise, on the CPU."""
    rank = dist.get_rank(group)
    if rank != 0:
        for tensor in rows:
            _send(tensor, 0, group)
        _agree(True, group)
        return _receive(*forms[rank][0], 0, group) if rows else torch.zeros(0)
    everyone = {
        other: rows if other == 0 else [_receive(*form, other, group) for form in forms[other]]
        for other in range(len(forms))
        if forms[other]
    }
    try:
        noises = _pair_rows(coupling, everyone, generator)
    except FAULTS:
        _agree(False, group)
        raise
    _agree(True, group)
    for other, noise in noises.items():
        if other != 0:
            _send(noise, other, group)
    return noises.get(0, torch.zeros(0))


def _send(tensor: Tensor, rank: int, group: Any) -> None:
    if tensor.numel():  # as bytes, since gloo does not know every dtype
        dist.send(tensor.flatten().view(torch.uint8), dst=dist.get_global_rank(group, rank), group=group)


def _receive(shape: torch.Size, dtype: torch.dtype, rank: int, group: Any) -> Tensor:
    tensor = torch.empty(shape, dtype=dtype)
    if tensor.numel():
        dist.recv(tensor.flatten().view(torch.uint8), src=dist.get_global_rank(group, rank), group=group)
    return tensor


def _agree(success: bool, group: Any) -> None:
    """Let all ranks know whether rank 0 could pair; ValueError on the others if it could not."""
    flag = torch.tensor([int(success)])
    dist.broadcast(flag, src=dist.get_global_rank(group, 0), group=group)
    if not int(flag) and dist.get_rank(group) != 0:
        raise ValueError("rank 0 could not pair the batches of all ranks; see its own error")


def _rows(coupling: Any, data: Tensor, noise: Tensor, valid: Mask, condition: Tensor | None) -> list[Tensor]:
    """Data, noise ``[oversample, B, *shape]``, mask, and the condition if any; on the CPU."""
    dtype = working_dtype(data.dtype)
    noise = noise.to("cpu", dtype).unflatten(0, (coupling.oversample, len(data)))
    if valid is None:
        valid = torch.ones(len(data), *(1 for _ in data.shape[1:]), dtype=torch.bool)
    rows = [data.to("cpu", dtype), noise, valid.cpu()]
    rows += [] if condition is None else [condition.cpu()]
    return [tensor.contiguous() for tensor in rows]


def _pair_rows(coupling: Any, everyone: dict[int, list[Tensor]], generator: Rng) -> dict[int, Tensor]:
    """The noise of every rank, on the CPU: rows of one shape and dtype are paired together."""
    device = generator.device if generator is not None else torch.device("cpu")
    noises = {rank: rows[0] for rank, rows in everyone.items()}  # right where there are no rows
    groups: dict[Any, list[int]] = {}
    for rank, (data, *_) in everyone.items():
        if len(data):
            groups.setdefault((data.shape[1:], data.dtype), []).append(rank)
    for ranks in groups.values():
        _check_ranks(everyone, ranks)
        datas, drawn, masks, *conditions = zip(*(everyone[rank] for rank in ranks), strict=True)
        mask = torch.cat([m.expand_as(data) for m, data in zip(masks, datas, strict=True)])
        paired = coupling.pair_here(
            torch.cat(datas).to(device),
            torch.cat(drawn, dim=1).flatten(0, 1).to(device),  # from [oversample, B, *shape]
            {coupling.cond_key: torch.cat(conditions[0]).to(device)} if conditions else None,
            mask.to(device),
            generator,
        )
        parts = paired.cpu().split([len(data) for data in datas])
        noises |= zip(ranks, (part.contiguous() for part in parts), strict=True)
    return noises


def _check_ranks(everyone: dict[int, list[Tensor]], ranks: list[int]) -> None:
    """Raise ValueError where conditions differ in form, or generators were seeded alike."""
    forms = {rank: [(t.shape[1:], t.dtype) for t in everyone[rank][3:]] for rank in ranks}
    first: dict[tuple[float, ...], int] = {}
    for rank in ranks:
        if forms[rank] != forms[ranks[0]]:
            both = f"rank {ranks[0]} has {forms[ranks[0]]}, rank {rank} {forms[rank]}"
            raise ValueError(f"conditions of all ranks must have one shape and dtype; {both}; pad them")
        numbers = tuple(everyone[rank][1][0].flatten()[:COMPARED].tolist())
        other = first.setdefault(numbers, rank)
        if other != rank and len(numbers) == COMPARED:  # fewer may be alike by chance
            raise ValueError(f"ranks {other} and {rank} drew the same noise: seed them with seed + rank, say")
