"""Paths: how data and noise are mixed at time t, and what the network learns there.

In every path t = 0 is data and t = 1 is noise.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from immiscible_diffusion.diffusion.paths.parametrization import Mixture, Prediction

Cond = dict[str, Tensor]
Model = Callable[[Tensor, Tensor, Cond | None], Tensor]
"""``model(x_t [B, *shape], network_time [B], cond) -> [B, *shape]``."""
Velocity = Callable[[Tensor, Tensor], Tensor]
"""``velocity(x [B, *shape], t [B]) -> dx/dt [B, *shape]``."""


@dataclass(frozen=True)
class PathSample:
    """A point of a path: the mixture ``x_t`` ``[B, *shape]`` at ``t`` ``[B]`` in [0, 1].

    ``target`` ``[B, *shape]`` is what the network should predict there.
    """

    x_t: Tensor
    t: Tensor
    target: Tensor


class Path(ABC):
    """How data and noise are mixed, and what the network learns: what losses and samplers need."""

    if TYPE_CHECKING:  # a class constant, or a field of a dataclass

        @property
        def prediction(self) -> Prediction:
            """What the network predicts."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Coefficient of the data in ``x_t``."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Coefficient of the noise in ``x_t``."""

    @abstractmethod
    def mixture(self, t: Tensor, like: Tensor) -> Mixture:
        """Coefficients at ``t`` ``[B]``, to broadcast over ``like`` ``[B, *shape]``."""

    @abstractmethod
    def sample(self, data: Tensor, noise: Tensor, t: Tensor) -> PathSample:
        """Mix ``data`` and ``noise`` ``[B, *shape]`` at ``t`` ``[B]`` in [0, 1]."""

    @abstractmethod
    def sample_time(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Times ``[count]`` to train at, on the device of the generator (CPU without one)."""

    @abstractmethod
    def network_time(self, t: Tensor) -> Tensor:
        """The time that the network gets for ``t``."""

    @abstractmethod
    def from_network_time(self, network_time: Tensor) -> Tensor:
        """The ``t`` of a ``network_time``: the inverse of ``network_time``."""

    def weight(self, t: Tensor) -> Tensor:
        """Weight ``[B]`` of the squared error at ``t``: 1 unless a path says otherwise."""
        return torch.ones_like(t)

    def velocity(self, model: Model, cond: Cond | None = None) -> Velocity:
        """The model's dx/dt along the path, which ODE samplers integrate from t = 1 to 0."""

        def field(x: Tensor, t: Tensor) -> Tensor:
            output = model(x, self.network_time(t), cond)
            return self.mixture(t, x).convert(output, x, self.prediction, "velocity")

        return field


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """``[B]`` reshaped to broadcast over ``[B, *shape]``."""
    return values.to(like).view(-1, *(1,) * (like.ndim - 1))


def check_sample(data: Tensor, noise: Tensor, t: Tensor) -> None:
    """Raise ValueError unless ``noise`` is like ``data`` ``[B, *shape]``, and ``t`` ``[B]``."""
    if noise.shape != data.shape or t.shape != data.shape[:1]:
        raise ValueError(
            f"expected noise like data and t [B]; got data {tuple(data.shape)}, "
            f"noise {tuple(noise.shape)}, t {tuple(t.shape)}"
        )
