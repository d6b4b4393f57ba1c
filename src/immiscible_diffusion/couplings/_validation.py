# SPDX-License-Identifier: Apache-2.0 (immiscible-diffusion)
"""What couplings ask of data, masks and conditions before they touch them. Needs torch alone."""

import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# Rows are worked in blocks that stay in a CPU cache: 2 MiB a buffer, 170 images of CIFAR-10.
BLOCK_ELEMENTS = 1 << 19
WITHOUT_FLOAT64 = ("mps",)  # types of devices
# torch < 2.3 has it elsewhere; torch 2.2 lacks it, and a compiled coupling breaks its graph there.
is_compiling = getattr(torch.compiler, "is_compiling", None) or torch._utils.is_compiling


def kind_of(value: Any) -> str:
    """Dtype and shape of a tensor, type of anything else, for errors."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    return type(value).__name__


def check_data(data: Tensor, *, may_be_empty: bool = False) -> None:
    """Raise ValueError unless ``data`` is floating point ``[B, *shape]``, of B and D >= 1."""
    if not isinstance(data, Tensor) or not data.is_floating_point():
        raise ValueError(f"data must be a floating-point tensor [B, ...], got {kind_of(data)}")
    if data.ndim < 2 or (data.numel() == 0 and not (may_be_empty and len(data) == 0)):
        raise ValueError(f"data must be [B, ...] with B and all sizes >= 1, got {kind_of(data)}")


def has_values(tensor: Tensor) -> bool:
    """Whether ``tensor`` can be read: not if it is meta or fake, which have a shape alone."""
    return is_compiling() or not (tensor.is_meta or hasattr(tensor, "fake_mode"))


def can_sync(tensor: Tensor) -> bool:
    """Whether reading ``tensor`` on the host is free: on a device it stalls, compiled it breaks.

    ValueError inside ``torch.vmap``, where it is impossible.
    """
    if is_compiling():
        return False
    if torch._C._functorch.is_batchedtensor(tensor):
        raise ValueError("torch.vmap cannot pair; draw noise = coupling(data) outside, and map over both")
    return tensor.device.type == "cpu" and has_values(tensor)


def check_rows_finite(size: Tensor, what: str = "data") -> None:
    """Raise ValueError naming the first row of ``what`` with a ``size`` ``[n, ...]`` not finite.

    Only where ``can_sync``; elsewhere a bad row gives NaN noise.
    """
    # The sum first: it is finite of every batch that is, and one operation.
    if can_sync(size) and not math.isfinite(float(size.sum())) and not bool(torch.isfinite(size).all()):
        bad = int((~torch.isfinite(size.flatten(1)).all(dim=1)).nonzero()[0])
        raise ValueError(f"{what} row {bad} is not finite, or its square is not; mend it")


def check_fitted(what: str, fitted: tuple[int, ...], shape: tuple[int, ...], advice: str) -> None:
    """Raise ValueError unless ``what`` was fitted on data of this ``shape``."""
    fitted, shape = tuple(fitted), tuple(shape)
    if fitted != shape:
        raise ValueError(f"{what} fitted on data of shape {fitted}, got {shape}; {advice}")


def valid_positions(mask: Tensor | None, data: Tensor) -> Tensor | None:
    """``mask`` broadcast to ``data``, a view; None stays None. ValueError for one that leaves a sample nothing."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise ValueError(f"mask must be boolean, True where data are valid, got {kind_of(mask)}")
    if not is_compiling() and 0 < mask.ndim < data.ndim and mask.shape[0] == len(data) > 1:
        message = f"mask {tuple(mask.shape)} is taken as one for all of data {tuple(data.shape)}, as torch broadcasts"
        warnings.warn(f"{message}; for one each give {data.ndim} dimensions, such as mask[:, None]", stacklevel=4)
    try:
        valid = mask.broadcast_to(data.shape)
    except RuntimeError:
        shapes = f"mask {tuple(mask.shape)} does not broadcast to data {tuple(data.shape)}"
        raise ValueError(f"{shapes}; give one of {data.ndim} dimensions, some of size 1") from None
    if can_sync(mask) and bool((empty := ~valid.flatten(1).any(dim=1)).any()):
        raise ValueError(f"mask leaves sample {int(empty.nonzero()[0])} no valid position")
    return valid


def take_condition(cond: dict[str, Tensor] | None, key: str, what: str) -> Tensor:
    """``cond[key]``; ValueError if it is not there, which names ``what`` needs it."""
    if cond is None or key not in cond:
        known = ", ".join(cond or {}) or "none"
        raise ValueError(f'{what} needs cond["{key}"]; conditions given: {known}')
    return cond[key]


def check_labels(labels: Any, count: int, classes: int | None = None) -> None:
    """Raise ValueError unless ``labels`` are whole numbers ``[count]`` from 0 (below ``classes``, if on the CPU)."""
    if not isinstance(labels, Tensor):
        raise ValueError(f"labels must be a tensor [{count}], got {type(labels).__name__}")
    if labels.is_floating_point() or labels.shape != (count,):
        raise ValueError(f"labels must be whole numbers [{count}], got {kind_of(labels)}")
    if count == 0 or not can_sync(labels):
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (classes is not None and high >= classes):
        expected = "0 or more" if classes is None else f"0 to {classes - 1}, as fitted"
        raise ValueError(f"labels must be {expected}, got {low} to {high}; also where the model drops them")


def rows_of_labels(table: Tensor, labels: Tensor) -> Tensor:
    """``table[labels]``; NaN for a label it does not have, where looking for one would stall."""
    if can_sync(labels):
        return table[labels]
    rows = table[labels.clamp(0, len(table) - 1)]
    unknown = (labels < 0) | (labels >= len(table))
    return rows.masked_fill(unknown.view(-1, *(1 for _ in table.shape[1:])), torch.nan)


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype to select in: float64 for float64 data, float32 for everything shorter."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def widest_dtype(device: torch.device) -> torch.dtype:
    """float64, or float32 where ``device`` has no other."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def to_float64(values: Tensor) -> Tensor:
    """``values`` in float64, on the CPU where their device has none.

    In two calls: ``.to("cpu", torch.float64)`` casts on the device.
    """
    return (values.cpu() if values.device.type in WITHOUT_FLOAT64 else values).double()


def row_blocks(data: Tensor) -> Iterator[slice]:
    """Slices over the rows of ``data``: cache-sized on a CPU, everything at once elsewhere."""
    if not can_sync(data):  # and no range(), which compiled makes a graph for every batch size
        yield slice(None)
        return
    rows = max(1, BLOCK_ELEMENTS * len(data) // data.numel())
    for start in range(0, len(data), rows):
        yield slice(start, min(start + rows, len(data)))


def product(rows: Tensor, matrix: Tensor) -> Tensor:
    """``rows @ matrix``, with ``out=``, as autocast would otherwise take it in half precision."""
    return torch.mm(rows, matrix, out=rows.new_empty(rows.shape[0], matrix.shape[1]))
