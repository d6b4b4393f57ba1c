"""Couplings in other people's trainers: torchcfm, loader workers, one number to log.

``docs/trainers/`` has a page for each trainer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from immiscible_diffusion.coupling.base import Coupling, check_noise, draw, pair
from immiscible_diffusion.coupling.inputs import valid_positions
from immiscible_diffusion.coupling.ranks import uses_ranks

Key = str | int


@torch.no_grad()
def pull(data: Tensor, noise: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """How far each noise leans towards its datum, ``<noise, data> / |data|``: ``[B]`` float32.

    A number to log: for noise drawn without regard to the data 0 +- 1 a datum, so 0 +- 1/sqrt(B) in
    the mean; for data of root mean square 1, 0.46 with ``KNN(2)`` and 1.9 with ``KNN(64)``.
    ``mask`` is boolean, broadcasts to ``data`` ``[B, *shape]`` and is True where data are valid.
    """
    check_noise(data, noise)
    valid, rows, noise = valid_positions(mask, data), data.float(), noise.float()
    if valid is not None:
        rows, noise = rows.masked_fill(~valid, 0), noise.masked_fill(~valid, 0)
    length = torch.linalg.vector_norm(rows.flatten(1), dim=1)
    return (rows * noise).flatten(1).sum(dim=1) / length.clamp_min(1e-30)


@dataclass(frozen=True)
class PlanSampler:
    """A coupling that answers to torchcfm's ``OTPlanSampler``; see ``as_torchcfm``.

    ``replace`` is there for the signature: every datum occurs once, whatever it is.
    """

    coupling: Coupling
    label_key: str = "label"

    def sample_plan(self, x0: Tensor, x1: Tensor, replace: bool = True) -> tuple[Tensor, Tensor]:
        """Noise for ``x1`` ``[B, *shape]``, made from ``x0`` if the coupling can, and ``x1``."""
        return self._noise(x0, x1, None), x1

    def sample_plan_with_labels(
        self,
        x0: Tensor,
        x1: Tensor,
        y0: Tensor | None = None,
        y1: Tensor | None = None,
        replace: bool = True,
    ) -> tuple[Tensor, Tensor, None, Tensor | None]:
        """The same, None for the labels of the noise, and ``y1``, the labels of the data.

        Raises:
            ValueError: ``y0`` is given, which cannot follow the noise.
        """
        if y0 is not None:
            raise ValueError("y0 labels x0, the noise, which is replaced; label the data with y1")
        return self._noise(x0, x1, y1), x1, None, y1

    def _noise(self, x0: Tensor, x1: Tensor, y1: Tensor | None) -> Tensor:
        cond = None if y1 is None else {self.label_key: y1}
        if hasattr(self.coupling, "pair"):
            return pair(self.coupling, x1, x0, cond=cond)
        return self.coupling(x1, cond=cond)


def as_torchcfm(coupling: Coupling, *, label_key: str = "label") -> PlanSampler:
    """``coupling`` in the place of torchcfm's plan sampler.

    ``matcher.ot_sampler = as_torchcfm(KNN(k=4))``. There ``x0`` is noise, at t = 0, ``x1`` data, at
    t = 1, and ``u = x1 - x0`` is learned; here data are at t = 0, and ``noise - data = -u``.
    ``x1`` and its labels, which the coupling gets as ``cond[label_key]``, stay in place, bit for
    bit. ``x0`` is used where the coupling has ``pair``; otherwise the coupling draws its own.
    """
    if not callable(coupling):
        raise ValueError(f"as_torchcfm needs a coupling, such as KNN(4), got {coupling!r}")
    return PlanSampler(coupling, label_key)


@dataclass(frozen=True)
class Collate:
    """A collate function that pairs in the workers of a torch ``DataLoader``.

    ``DataLoader(images, 64, num_workers=4, collate_fn=Collate(KNN(4), data_key="pixel_values"))``

    For loaders that yield what the network sees: images, or latents from disk. The pool of
    ``LinearAssignment`` is the loader's batch; for a larger one load several at once and split.

    Noise comes from torch's generator in the worker, which the loader seeds anew for every worker
    and epoch from ``DataLoader(generator=)`` or else from the generator of the main process: seed
    that one with ``torch.manual_seed(seed + rank)``, or all ranks draw the same.

    Args:
        coupling: any that needs no other process; its tensors (centres) must be on the CPU.
        collate_fn: makes the batch: a dict, a tuple or list, or a tensor (the data).
        data_key: where the data are: a key of the dict, or the place in the tuple.
        noise_key: where a dict gets the noise. To a tuple or list it is appended; of a tensor it
            makes ``(data, noise)``.
        mask_key: where the mask of valid positions is, if any.
        cond: names of the coupling's conditions to their keys or places, such as ``{"label": 1}``.
    """

    coupling: Coupling
    collate_fn: Callable[[list[Any]], Any] = default_collate
    data_key: Key = 0
    noise_key: str = "noise"
    mask_key: Key | None = None
    cond: Mapping[str, Key] | None = None

    def __post_init__(self) -> None:
        if uses_ranks(self.coupling):
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
        noise = draw(self.coupling, data, cond=cond or None, mask=mask)
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
        kind = type(batch).__name__
        raise ValueError(f"{option}={key!r} is not in the batch, a {kind} of {held}") from error
