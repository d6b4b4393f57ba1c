"""One assignment over all processes: rows go to rank 0, which solves, and come back.

What ranks bring is announced as objects and sent as tensors: pickled, 1,024 x 3,072 floats of two
processes take 105 ms there and back (gloo, 2 cores), as tensors 20 ms.
"""

import itertools
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from immiscible_diffusion.couplings._validation import working_dtype

COMPARED = 16  # numbers of two ranks' noise, to tell whether they were seeded alike
# What user input can raise before or in the solve: the other ranks, which would wait, hear of it.
FAULTS = (ValueError, TypeError, RuntimeError, MemoryError, ImportError)
# Kept no longer than the default group: a group that outlives it aborts the process at its end.
_groups: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def ranks_in_use() -> bool:
    """Whether there are other processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def pairing_group() -> Any:
    """The gloo group that pairing uses, made once; all ranks must call it at the same place.

    A group of its own, since pairing runs in a thread beside the training's collectives.
    """
    world = dist.group.WORLD
    if world not in _groups:
        _groups[world] = dist.new_group(backend="gloo")
    return _groups[world]


def pair_across_ranks(
    coupling: Any,
    data: Tensor,
    noise: Tensor | None,
    cond: dict[str, Tensor] | None,
    mask: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    """``coupling.pair_here`` on the rows of all ranks, in their order; this rank's noise.

    Ranks may have any number of rows, also none; ``noise`` that is None is drawn here. Rows of one
    shape are assigned together.

    Raises:
        ValueError: on all ranks, if the input of one does not fit, or rank 0 could not solve.
    """
    try:
        noise = coupling.draw(data, generator) if noise is None else noise
        coupling.check_pair(data, noise, cond, mask)
        rows = _rows(coupling, data, noise, cond, mask)
    except FAULTS:
        fail_across_ranks()
        raise
    return _take_part(coupling, rows, _announce(_forms(rows)), generator).to(data)


def finish_across_ranks(coupling: Any, generator: Callable[[int], torch.Generator]) -> None:
    """Take part without rows until all ranks have come to the end of their batches.

    Args:
        coupling: a ``LinearAssignment``.
        generator: for the n-th round of the others; rank 0 solves for them.

    Raises:
        ValueError: another rank failed.
    """
    for number in itertools.count():
        forms = _announce([])
        if not any(forms):
            return
        _take_part(coupling, [], forms, generator(number))


def fail_across_ranks() -> None:
    """Let the other ranks, who wait for this one's rows, know that there will be none."""
    dist.all_gather_object([None] * dist.get_world_size(), None, group=pairing_group())


Form = list[tuple[torch.Size, torch.dtype]]


def _forms(rows: list[Tensor]) -> Form:
    return [(tensor.shape, tensor.dtype) for tensor in rows]


def _announce(form: Form) -> list[Form]:
    """What every rank is going to send: empty of one that has ended; ValueError if one failed."""
    forms: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(forms, form, group=pairing_group())
    if None in forms:
        raise ValueError(
            f"rank {forms.index(None)} could not pair its batch; its own error says why"
        )
    return forms


def _take_part(
    coupling: Any, rows: list[Tensor], forms: list[Form], generator: torch.Generator | None
) -> Tensor:
    """Send ``rows`` to rank 0, or as rank 0 pair those of all; this rank's noise, on the CPU."""
    group, rank = pairing_group(), dist.get_rank()
    own = torch.zeros(0)
    if rank != 0:
        for tensor in rows:
            if tensor.numel():
                dist.send(_as_bytes(tensor), dst=0, group=group)
        _agree(True)
        if rows:
            own = torch.empty_like(rows[0])
            if len(own):
                dist.recv(own, src=0, group=group)
        return own
    everyone = {0: rows} if rows else {}
    for other, form in enumerate(forms[1:], start=1):
        if form:
            everyone[other] = [torch.empty(shape, dtype=dtype) for shape, dtype in form]
            for tensor in everyone[other]:
                if tensor.numel():
                    dist.recv(_as_bytes(tensor), src=other, group=group)
    try:
        noises = _pair_rows(coupling, everyone, generator)
    except FAULTS:
        _agree(False)
        raise
    _agree(True)
    for other, noise in sorted(noises.items()):
        if other and len(noise):
            dist.send(noise, dst=other, group=group)
    return noises.get(0, own)


def _as_bytes(tensor: Tensor) -> Tensor:
    """The memory of a contiguous tensor of any dtype, which gloo may not know."""
    return tensor.flatten().view(torch.uint8)


def _agree(success: bool) -> None:
    """Let all ranks know whether rank 0 could pair; ValueError on the others if it could not."""
    flag = torch.tensor([int(success)])
    dist.broadcast(flag, src=0, group=pairing_group())
    if not int(flag) and dist.get_rank() != 0:
        raise ValueError("rank 0 could not pair the batches of all ranks; its own error says why")


def _rows(
    coupling: Any,
    data: Tensor,
    noise: Tensor,
    cond: dict[str, Tensor] | None,
    mask: Tensor | None,
) -> list[Tensor]:
    """Data, noise ``[oversample, B, *shape]``, mask, and the condition if any; on the CPU."""
    dtype = working_dtype(data.dtype)
    valid = torch.ones(len(data), *(1 for _ in data.shape[1:]), dtype=torch.bool)
    if mask is not None:
        valid = mask.cpu().broadcast_to(data.shape)
    noise = noise.to("cpu", dtype).unflatten(0, (coupling.oversample, len(data)))
    rows = [data.to("cpu", dtype), noise, valid]
    if coupling.cond_key is not None and cond:
        rows.append(cond[coupling.cond_key].cpu())
    return [tensor.contiguous() for tensor in rows]


def _pair_rows(
    coupling: Any, everyone: dict[int, list[Tensor]], generator: torch.Generator | None
) -> dict[int, Tensor]:
    """The noise of every rank, on the CPU: rows of one shape and dtype are paired together."""
    device = generator.device if generator is not None else torch.device("cpu")
    groups: dict[Any, list[int]] = {}
    noises: dict[int, Tensor] = {}
    for rank, (data, *_) in everyone.items():
        noises[rank] = data.cpu()
        if len(data):
            groups.setdefault((data.shape[1:], data.dtype), []).append(rank)
    for ranks in groups.values():
        _check_conditions(everyone, ranks)
        _check_seeds(everyone, ranks)
        parts = [everyone[rank] for rank in ranks]
        data = torch.cat([part[0] for part in parts])
        noise = torch.cat([part[1] for part in parts], dim=1)  # [oversample, B, *shape]
        mask = torch.cat([valid.expand_as(mine) for mine, _, valid, *_ in parts])
        cond = None
        if coupling.cond_key is not None:
            cond = {coupling.cond_key: torch.cat([part[3] for part in parts]).to(device)}
        valid = None if bool(mask.all()) else mask.to(device)
        noise = noise.flatten(0, 1).to(device)
        paired = coupling.pair_here(data.to(device), noise, cond, valid, generator)
        split = paired.split([len(part[0]) for part in parts])
        noises |= zip(ranks, (part.cpu().contiguous() for part in split), strict=True)
    return noises


def _check_seeds(everyone: dict[int, list[Tensor]], ranks: list[int]) -> None:
    """Raise ValueError if two ranks drew the same noise, from generators seeded alike."""
    first: dict[tuple[float, ...], int] = {}
    for rank in ranks:
        numbers = tuple(everyone[rank][1][0].flatten()[:COMPARED].tolist())
        if len(numbers) < COMPARED:  # so few numbers may be alike by chance
            continue
        if (other := first.setdefault(numbers, rank)) != rank:
            raise ValueError(
                f"ranks {other} and {rank} drew the same noise: seed them differently, such as "
                f"torch.manual_seed(seed + rank), or give each a generator of its own"
            )


def _check_conditions(everyone: dict[int, list[Tensor]], ranks: list[int]) -> None:
    """Raise ValueError unless the conditions of all have the same form."""
    forms = {rank: [(t.shape[1:], t.dtype) for t in everyone[rank][3:]] for rank in ranks}
    for rank, form in forms.items():
        if form != forms[ranks[0]]:
            raise ValueError(
                f"conditions of all ranks must have one shape and dtype; rank {ranks[0]} has "
                f"{forms[ranks[0]]}, rank {rank} {form}; pad them to one shape"
            )
