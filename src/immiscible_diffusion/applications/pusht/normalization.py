"""Ranges of recorded numbers, and back: what a policy sees lies in [-1, 1]."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from immiscible_diffusion.utils.atomic_files import atomic_path
from immiscible_diffusion.utils.optional_deps import require_extra

CONSTANT = 1e-4  # a coordinate that varies by less is a constant, which is put at 0


@dataclass(frozen=True, eq=False)
class MinMax:
    """Least and largest of every coordinate, mapped to -1 and 1. Compared by content.

    A coordinate that does not vary is mapped to 0 and back to its value.

    Attributes:
        low: ``[D]`` float32.
        high: ``[D]`` float32, nowhere below ``low``.
    """

    low: Tensor
    high: Tensor

    def __post_init__(self) -> None:
        low, high = self.low, self.high
        if low.ndim != 1 or low.shape != high.shape or not bool((low <= high).all()):
            raise ValueError(
                f"expected low <= high, both [D]; got {tuple(low.shape)} and {tuple(high.shape)}, "
                f"{low.tolist()} and {high.tolist()}"
            )

    @classmethod
    def fit(cls, rows: Tensor) -> "MinMax":
        """The range of ``rows`` ``[N, D]``; ValueError if there are none, or one is not finite."""
        if rows.ndim != 2 or 0 in rows.shape or not bool(rows.isfinite().all()):
            raise ValueError(f"a range is of finite rows [N, D], got {tuple(rows.shape)}")
        return cls(rows.amin(dim=0).float(), rows.amax(dim=0).float())

    @classmethod
    def of_spread(cls, rows: Tensor) -> "MinMax":
        """Mean less and plus one standard deviation of ``rows`` ``[N, D]`` in the place of ends.

        So what is applied has mean 0 and variance 1.
        """
        cls.fit(rows)  # for its errors
        mean, spread = rows.double().mean(dim=0), rows.double().std(dim=0, unbiased=False)
        return cls((mean - spread).float(), (mean + spread).float())

    def apply(self, values: Tensor) -> Tensor:
        """``values`` ``[..., D]`` to [-1, 1]; beyond, if they lie beyond the range."""
        return (values - self._middle.to(values)) / self._half.to(values)

    def undo(self, values: Tensor) -> Tensor:
        """The inverse of ``apply``."""
        return values * self._half.to(values) + self._middle.to(values)

    @property
    def _middle(self) -> Tensor:
        return (self.low + self.high) / 2

    @property
    def _half(self) -> Tensor:
        half = (self.high - self.low) / 2
        return torch.where(half < CONSTANT / 2, torch.ones(()), half)

    @property
    def digest(self) -> str:
        """Short hash of the content: 16 hex digits."""
        content = torch.stack([self.low, self.high]).cpu().contiguous().numpy().tobytes()
        return hashlib.sha256(content).hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MinMax) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"MinMax(dim={len(self.low)}, digest={self.digest})"


def save_ranges(path: str | os.PathLike[str], ranges: Mapping[str, MinMax]) -> None:
    """Write named ranges to ``path`` (safetensors), whole or not at all."""
    with require_extra("train", "saving ranges"):
        from safetensors.torch import save_file
    tensors = {f"{name}.low": span.low.contiguous() for name, span in ranges.items()}
    tensors |= {f"{name}.high": span.high.contiguous() for name, span in ranges.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, str(temporary), {name: span.digest for name, span in ranges.items()})


def load_ranges(path: str | os.PathLike[str]) -> dict[str, MinMax]:
    """Read what ``save_ranges`` wrote; ValueError names a file that is not that, or was changed."""
    with require_extra("train", "loading ranges"):
        from safetensors import SafetensorError, safe_open
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist; expected ranges saved with the run")
    try:
        with safe_open(str(path), framework="pt") as file:
            digests = file.metadata() or {}
            found = {
                name: MinMax(file.get_tensor(f"{name}.low"), file.get_tensor(f"{name}.high"))
                for name in digests
            }
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} does not hold ranges ({error})") from error
    wrong = [name for name, span in found.items() if span.digest != digests[name]]
    if wrong or not found:
        raise ValueError(f"{path}: the range of {', '.join(wrong) or 'nothing'} was changed")
    return found
