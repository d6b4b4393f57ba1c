"""One assignment over all processes: rows go to rank 0, which solves, and come back."""

import itertools
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from immiscible_diffusion.couplings._validation import working_dtype

COMPARED = 16  # numbers of two ranks' noise, to tell whether they were seeded alike
_HEADER = 32  # numbers that describe what a rank brings
_DTYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
# What user input can raise before or in the solve: told to the other ranks, which would wait.
FAULTS = (ValueError, TypeError, RuntimeError, MemoryError, ImportError)
# Kept no longer than the default group: a group that outlives it aborts the process at its end.
_groups: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def ranks_in_use() -> bool:
    """Whether there are other processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def uses_ranks(coupling: Any) -> bool:
    """Whether ``coupling``, or one that it wraps, works across ranks."""
    inner = getattr(coupling, "coupling", None)
    if getattr(coupling, "across_ranks", False):
        return True
    return inner is not None and uses_ranks(inner)


def pairing_group() -> Any:
    """The gloo group that pairing talks on, made once; all ranks must call it at the same place.

    A group of its own, since pairing runs in a thread beside the training's collectives.
    """
    world = dist.group.WORLD
    if world not in _groups:
        _groups[world] = dist.new_group(backend="gloo")
    return _groups[world]


def pair_across_ranks(
    coupling: Any,
    data: Tensor,
    noise: Tensor | Callable[[], Tensor],
    cond: dict[str, Tensor] | None,
    mask: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    """``coupling.pair_here`` on the rows of all ranks, in their order; this rank's noise.

    Ranks may bring any number of rows, also none; ``noise`` that is a function is
    drawn here, where a fault is told to all. Rows of one shape are assigned together.

    Raises:
        ValueError: on all ranks, if one brought what does not fit, or rank 0 could not solve.
    """
    group, parcel, fault = pairing_group(), [], None
    try:
        noise = noise() if callable(noise) else noise
        coupling.check(data, noise, cond, mask)
        parcel = _parcel(coupling, data, noise, cond, mask)
        header = _describe(parcel)
    except FAULTS as error:  # told to all, so that none waits for the others
        fault, header = error, torch.full((_HEADER,), -1, dtype=torch.int64)
    headers = [torch.empty_like(header) for _ in range(dist.get_world_size())]
    dist.all_gather(headers, header, group=group)
    if fault is not None:
        raise fault
    _check_headers(headers)
    if dist.get_rank() == 0:
        return _serve(coupling, headers, parcel, group, generator)[0].to(data)
    return _visit(parcel, data, group)


def finish_across_ranks(coupling: Any, generator: Callable[[int], torch.Generator]) -> None:
    """Take part without rows until all ranks have come to the end of their batches.

    Args:
        coupling: that works across ranks, or wraps one that does.
        generator: for the n-th round of the others; rank 0 solves for them.

    Raises:
        ValueError: another rank was at fault.
    """
    group, inner = pairing_group(), _across(coupling)
    for number in itertools.count():
        header = torch.zeros(_HEADER, dtype=torch.int64)  # no tensors: has come to its end
        headers = [torch.empty_like(header) for _ in range(dist.get_world_size())]
        dist.all_gather(headers, header, group=group)
        _check_headers(headers)
        if not any(int(other[1]) for other in headers):
            return
        if dist.get_rank() == 0:
            _serve(inner, headers, [], group, generator(number))
        else:
            _agree(True, group)


def fail_across_ranks() -> None:
    """Tell the other ranks, who wait for this one's rows, that there will be none."""
    header = torch.full((_HEADER,), -1, dtype=torch.int64)
    headers = [torch.empty_like(header) for _ in range(dist.get_world_size())]
    dist.all_gather(headers, header, group=pairing_group())


def _check_headers(headers: list[Tensor]) -> None:
    bad = [rank for rank, other in enumerate(headers) if int(other[0]) < 0]
    if bad:
        raise ValueError(f"rank {bad[0]} could not pair its batch; its own error says why")


def _across(coupling: Any) -> Any:
    """The coupling itself, or the one inside, that works across ranks."""
    while not getattr(coupling, "across_ranks", False):
        coupling = coupling.coupling
    return coupling


def _visit(parcel: list[Tensor], data: Tensor, group: Any) -> Tensor:
    """Send the rows to rank 0 and receive their noise."""
    for tensor in parcel:
        if len(data):
            dist.send(tensor, dst=0, group=group)
    _agree(True, group)
    found = torch.empty(data.shape, dtype=parcel[0].dtype)
    if len(data):
        dist.recv(found, src=0, group=group)
    return found.to(data)


def _serve(
    coupling: Any,
    headers: list[Tensor],
    own: list[Tensor],
    group: Any,
    generator: torch.Generator | None,
) -> dict[int, Tensor]:
    """Rank 0: gather, pair, hand out. Ranks that have come to their end bring nothing."""
    brought = {0: own} if own else {}
    for rank, header in enumerate(headers[1:], start=1):
        if not int(header[1]):
            continue
        brought[rank] = _blank(header)
        for tensor in brought[rank] if int(header[0]) else ():
            dist.recv(tensor, src=rank, group=group)
    device = generator.device if generator is not None else torch.device("cpu")
    try:
        noises = _paired(coupling, brought, generator, device)
    except FAULTS:
        _agree(False, group)
        raise
    _agree(True, group)
    for rank, noise in sorted(noises.items()):
        if rank and len(noise):
            dist.send(noise, dst=rank, group=group)
    return noises


def _agree(well: bool, group: Any) -> None:
    """Rank 0 tells how it went."""
    flag = torch.tensor([int(well)])
    dist.broadcast(flag, src=0, group=group)
    if not int(flag) and dist.get_rank() != 0:
        raise ValueError("rank 0 could not pair the batches of all ranks; its own error says why")


def _paired(
    coupling: Any,
    brought: dict[int, list[Tensor]],
    generator: torch.Generator | None,
    device: torch.device,
) -> dict[int, Tensor]:
    """The noise of every rank, on the CPU: rows of one shape and dtype are paired together."""
    kinds: dict[Any, list[int]] = {}
    noises: dict[int, Tensor] = {}
    for rank, (data, *_) in brought.items():
        noises[rank] = data.cpu()
        if len(data):
            kinds.setdefault((data.shape[1:], data.dtype), []).append(rank)
    for ranks in kinds.values():
        _check_conditions(brought, ranks)
        _check_seeds(brought, ranks)
        parcels = [brought[rank] for rank in ranks]
        data = torch.cat([parcel[0] for parcel in parcels])
        noise = torch.cat([parcel[1] for parcel in parcels], dim=1)  # [oversample, B, *shape]
        mask = torch.cat([valid.expand_as(mine) for mine, _, valid, *_ in parcels])
        cond = None
        if coupling.cond_key is not None:
            cond = {coupling.cond_key: torch.cat([parcel[3] for parcel in parcels]).to(device)}
        paired = coupling.pair_here(
            data.to(device),
            noise.flatten(0, 1).to(device),
            cond=cond,
            mask=None if bool(mask.all()) else mask.to(device),
            generator=generator,
        )
        sizes = [len(parcel[0]) for parcel in parcels]
        noises |= zip(ranks, (part.cpu().contiguous() for part in paired.split(sizes)), strict=True)
    return noises


def _check_seeds(brought: dict[int, list[Tensor]], ranks: list[int]) -> None:
    """Raise ValueError if two ranks drew the same noise, from generators seeded alike."""
    first: dict[tuple[float, ...], int] = {}
    for rank in ranks:
        drawn = tuple(brought[rank][1][0].flatten()[:COMPARED].tolist())
        if len(drawn) < COMPARED:  # so few numbers may be alike by chance
            continue
        if (other := first.setdefault(drawn, rank)) != rank:
            raise ValueError(
                f"ranks {other} and {rank} drew the same noise: seed them differently, such as "
                f"torch.manual_seed(seed + rank), or give each a generator of its own"
            )


def _check_conditions(brought: dict[int, list[Tensor]], ranks: list[int]) -> None:
    """Raise ValueError unless the conditions of all have the same form."""
    forms = {rank: [(t.shape[1:], t.dtype) for t in brought[rank][3:]] for rank in ranks}
    for rank, form in forms.items():
        if form != forms[ranks[0]]:
            raise ValueError(
                f"conditions of all ranks must have one shape and dtype; rank {ranks[0]} brought "
                f"{forms[ranks[0]]}, rank {rank} {form}; pad them to one shape"
            )


def _parcel(
    coupling: Any,
    data: Tensor,
    noise: Tensor,
    cond: dict[str, Tensor] | None,
    mask: Tensor | None,
) -> list[Tensor]:
    """What a rank brings: data, noise ``[oversample, B, *shape]``, mask, and the condition if any."""
    dtype = working_dtype(data.dtype)
    valid = torch.ones(len(data), *(1 for _ in data.shape[1:]), dtype=torch.bool)
    if mask is not None:
        valid = mask.cpu().broadcast_to(data.shape)
    parcel = [
        data.to("cpu", dtype),
        noise.to("cpu", dtype).unflatten(0, (coupling.oversample, len(data))),
        valid,
    ]
    if coupling.cond_key is not None and cond:
        parcel.append(cond[coupling.cond_key].cpu())
    return [tensor.contiguous() for tensor in parcel]


def _describe(parcel: list[Tensor]) -> Tensor:
    """A header: rows, number of tensors, and for each its dtype, dimensions and sizes."""
    numbers = [len(parcel[0]), len(parcel)]
    for tensor in parcel:
        if tensor.dtype not in _DTYPES:
            raise ValueError(f"across ranks a condition of {tensor.dtype} cannot be sent")
        numbers += [_DTYPES.index(tensor.dtype), tensor.ndim, *tensor.shape]
    if len(numbers) > _HEADER:
        raise ValueError("data and condition have too many dimensions to be sent across ranks")
    return torch.tensor(numbers + [0] * (_HEADER - len(numbers)))


def _blank(header: Tensor) -> list[Tensor]:
    """Tensors to receive what ``header`` describes."""
    numbers = iter(header.tolist())
    next(numbers)
    tensors = []
    for _ in range(next(numbers)):
        dtype, dims = _DTYPES[next(numbers)], next(numbers)
        tensors.append(torch.empty([next(numbers) for _ in range(dims)], dtype=dtype))
    return tensors
