"""Mean and spread of a data set, fitted once before step 0 and saved with the run."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.extra import needs_extra
from immiscible_diffusion.files import atomic_path


@dataclass(frozen=True, eq=False)
class Moments:
    """First moments of a data set, as the model sees it (encoded, augmented).

    Immutable, compared by content. Ten thousand data are plenty for a mean.

    Attributes:
        mean: ``[*shape]`` float32.
        variance: mean over the dimensions of the variance, > 0 unless all data are equal.
        count: number of data seen.
    """

    mean: Tensor
    variance: float
    count: int

    @classmethod
    def fit(cls, data: Tensor | Iterable[Tensor]) -> "Moments":
        """Fit to ``data``: one tensor ``[N, *shape]`` or an iterable of batches ``[B, *shape]``.

        Sums run in float64 on the CPU.

        Raises:
            ValueError: no data, data not finite, or batches of different shapes.
        """
        batches = [data] if isinstance(data, Tensor) else data
        count, total, square = 0, torch.zeros(()), torch.zeros(())
        for batch in batches:
            if not isinstance(batch, Tensor):
                raise ValueError(
                    f"batches must be tensors [B, *shape], got {type(batch).__name__}; "
                    f"of a loader of pairs give (x for x, _ in loader)"
                )
            batch = batch.detach().to("cpu", torch.float64)
            if count and batch.shape[1:] != total.shape:
                raise ValueError(
                    f"batches differ in shape: {tuple(total.shape)} and {tuple(batch.shape[1:])}; "
                    f"moments are of data of one shape"
                )
            count += len(batch)
            total = total + batch.sum(dim=0)
            square = square + batch.square().sum(dim=0)
        if count == 0:
            raise ValueError("moments need at least one datum, got none")
        mean = total / count
        if not bool(torch.isfinite(square).all()):
            raise ValueError("data are not finite; mend them before fitting moments")
        variance = (square / count - mean.square()).clamp_min(0).mean()
        return cls(mean.float(), float(variance), count)

    def to(self, device: torch.device | str) -> "Moments":
        """The moments on ``device``; move them once, so that no step pays for it."""
        return Moments(self.mean.to(device), self.variance, self.count)

    @property
    def digest(self) -> str:
        """Short hash of the content: 16 hex digits."""
        content = self.mean.cpu().contiguous().numpy().tobytes()
        text = f"{tuple(self.mean.shape)}/{self.variance!r}/{self.count}".encode()
        return hashlib.sha256(content + text).hexdigest()[:16]

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Moments) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Moments(shape={tuple(self.mean.shape)}, count={self.count}, digest={self.digest})"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to ``path`` (safetensors), whole or not at all."""
        with needs_extra("train", "saving moments"):
            from safetensors.torch import save_file
        metadata = {"variance": repr(self.variance), "count": str(self.count)}
        with atomic_path(path) as temporary:
            save_file({"mean": self.mean.cpu().contiguous()}, str(temporary), metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Moments":
        """Read what ``save`` wrote; ValueError names a file that is not such a file."""
        with needs_extra("train", "loading moments"):
            from safetensors import SafetensorError, safe_open
        if not Path(path).is_file():
            raise ValueError(f"{path} does not exist; expected moments saved by Moments.save")
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                mean = file.get_tensor("mean")
            return cls(mean, float(metadata["variance"]), int(metadata["count"]))
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{path} does not hold moments ({error})") from error
