"""Couplings in the workers of a torch ``DataLoader``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import default_collate

from immiscible_diffusion.couplings.base import Coupling, as_coupling

Key = str | int


@dataclass(frozen=True)
class Collate:
    """A collate function that pairs in the workers of a torch ``DataLoader``.

    ``DataLoader(images, 64, num_workers=4, collate_fn=Collate(KNN(4), data_key="pixel_values"))``

    For loaders that yield what the network sees: images, or latents from disk. The pool of ``LinearAssignment`` is the
    loader's batch; for a larger one load several at once and split.

    Noise comes from torch's generator in the worker, which the loader seeds anew for every worker
    and epoch from ``DataLoader(generator=)`` or else from the generator of the main process: seed
    that one with ``torch.manual_seed(seed + rank)``, or all ranks draw the same.
    """

    coupling: Coupling  # any that needs no other process; its tensors (centers) must be on the CPU
    # makes the batch: a dict, a tuple or list, or a tensor (the data)
    collate_fn: Callable[[list[Any]], Any] = default_collate
    data_key: Key = 0  # where the data are: a key of the dict, or the place in the tuple
    # where a dict gets the noise. To a tuple or list it is appended; of a tensor it makes ``(data, noise)``
    noise_key: str = "noise"
    mask_key: Key | None = None  # where the mask of valid positions is, if any
    # names of the coupling's conditions to their keys or places, such as ``{"label": 1}``
    cond: Mapping[str, Key] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "coupling", as_coupling(self.coupling))
        if self.coupling.across_ranks:
            raise ValueError(
                "across_ranks=True needs the process group, in which loader workers are not; pair "
                "in the training loop, or without across_ranks"
            )

    def __call__(self, items: list[Any]) -> Any:
        """The batch of ``items``, with noise; ValueError where the batch lacks what was named."""
        batch = self.collate_fn(items)
        data = batch if isinstance(batch, Tensor) else _take(batch, self.data_key, "data_key")
        mask = None if self.mask_key is None else _take(batch, self.mask_key, "mask_key")
        cond = {name: _take(batch, key, "cond") for name, key in (self.cond or {}).items()}
        if isinstance(batch, Mapping) and self.noise_key in batch:
            raise ValueError(f"the batch has '{self.noise_key}' already; give another noise_key")
        noise = self.coupling(data, cond=cond or None, mask=mask)
        if isinstance(batch, Mapping):
            return {**batch, self.noise_key: noise}
        if isinstance(batch, Tensor):
            return data, noise
        return [*batch, noise] if isinstance(batch, list) else (*batch, noise)


def _take(batch: Any, key: Key, option: str) -> Tensor:
    try:
        return batch[key]
    except (KeyError, IndexError, TypeError) as error:
        held = ", ".join(map(str, batch)) if isinstance(batch, Mapping) else f"{len(batch)} items"
        raise ValueError(f"{option}={key!r} is not in the batch, a {type(batch).__name__} of {held}") from error
