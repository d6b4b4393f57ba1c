"""What couplings ask of data and masks before they touch them. Depends on torch alone."""

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

# Rows are worked in blocks that stay in a CPU cache: 2 MiB a buffer, 170 images of CIFAR-10.
BLOCK_ELEMENTS = 1 << 19
# torch 2.2 lacks it; there a compiled coupling breaks its graph where it looks.
# torch < 2.3 has it elsewhere.
_is_compiling = getattr(torch.compiler, "is_compiling", None) or torch._utils.is_compiling


def check_data(data: Tensor) -> None:
    """Raise ValueError unless ``data`` is a floating-point tensor ``[B, *shape]``, B and D >= 1."""
    if not isinstance(data, Tensor) or not data.is_floating_point():
        kind = data.dtype if isinstance(data, Tensor) else type(data).__name__
        raise ValueError(f"data must be a floating-point tensor [B, ...], got {kind}")
    if data.ndim < 2 or data.numel() == 0:
        raise ValueError(
            f"data must have shape [B, ...] with at least one sample of at least one dimension, "
            f"got {tuple(data.shape)}"
        )


def can_sync(tensor: Tensor) -> bool:
    """Whether reading ``tensor`` on the host is free: on a device it stalls, compiled it breaks."""
    return tensor.device.type == "cpu" and not _is_compiling()


def check_rows_finite(size: Tensor, first_row: int = 0, what: str = "data") -> None:
    """Raise ValueError naming the first row of ``what`` with a ``size`` ``[n, ...]`` not finite.

    Only where ``can_sync``; elsewhere a bad row gives NaN noise.
    """
    if not can_sync(size) or bool(torch.isfinite(size).all()):
        return
    bad = int((~torch.isfinite(size.flatten(1)).all(dim=1)).nonzero()[0])
    raise ValueError(
        f"{what} row {first_row + bad} is not finite (or longer than its dtype can square); "
        f"mend it before pairing"
    )


def valid_positions(mask: Tensor | None, data: Tensor) -> Tensor | None:
    """``mask`` broadcast to ``data``, a view; None stays None.

    Raises:
        ValueError: not boolean, not broadcastable, or (on the CPU) a sample has no valid position.
    """
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"mask must be a boolean tensor, True where data are valid, got {kind}")
    if 0 < mask.ndim < data.ndim and mask.shape[0] == len(data) > 1 and not _is_compiling():
        warnings.warn(
            f"mask {tuple(mask.shape)} is taken as one for all of data {tuple(data.shape)}, as "
            f"torch broadcasts it; for one each give {data.ndim} dimensions, such as mask[:, None]",
            stacklevel=4,
        )
    try:
        valid = mask.broadcast_to(data.shape)
    except RuntimeError:
        raise ValueError(
            f"mask {tuple(mask.shape)} does not broadcast to data {tuple(data.shape)}; give one "
            f"of {data.ndim} dimensions, 1 wherever it says the same for all positions"
        ) from None
    if can_sync(mask) and not bool(mask.all()):
        empty = ~valid.flatten(1).any(dim=1)
        if bool(empty.any()):
            raise ValueError(f"mask leaves sample {int(empty.nonzero()[0])} no valid position")
    return valid


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype to select in: float64 for float64 data, float32 for everything shorter."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def row_blocks(data: Tensor) -> Iterator[slice]:
    """Slices over the rows of ``data``: cache-sized on a CPU, everything at once elsewhere."""
    rows = len(data)
    if can_sync(data):
        rows = max(1, BLOCK_ELEMENTS * len(data) // data.numel())
    for start in range(0, len(data), rows):
        yield slice(start, min(start + rows, len(data)))


def product(rows: Tensor, matrix: Tensor) -> Tensor:
    """``rows @ matrix``, with ``out=``, as autocast would otherwise take it in half precision."""
    return torch.mm(rows, matrix, out=rows.new_empty(len(rows), matrix.shape[1]))
