"""Linear assignment of a batch of noise to a batch of data.

*Immiscible Diffusion* (arXiv 2406.12303, Algorithm 1).
"""

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from immiscible_diffusion.coupling.inputs import check_data, check_rows_finite, working_dtype

COSTS = ("inner", "norm")


@dataclass(frozen=True)
class LinearAssignment:
    """One-to-one pairing of a batch of data with a batch of noise at least total cost.

    The set of noises is the one drawn, so the law of the noise stays N(0, I) exactly; only which
    datum gets which noise changes. A batch of one datum is legal, pairs nothing and warns.

    Args:
        cost: ``"inner"``: the squared distance, whose best permutation is that of the inner
            products alone (one matrix product, no ``[B, B, D]``); ``"norm"``: the distance not
            squared, as the paper's code has it (slower to solve, for parity).
    """

    cost: Literal["inner", "norm"] = "inner"

    def __post_init__(self) -> None:
        if self.cost not in COSTS:
            raise ValueError(f"cost must be one of {', '.join(COSTS)}, got {self.cost!r}")

    @torch.no_grad()
    def __call__(
        self,
        data: Tensor,
        *,
        cond: dict[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw noise for ``data`` ``[B, *shape]`` and assign it.

        Returns:
            Noise like ``data`` in shape, dtype and device; without gradient.

        Raises:
            ValueError: ``data`` is empty, not floating, or has a row that is not finite.
        """
        check_data(data)
        noise = torch.randn(data.shape, dtype=data.dtype, device=data.device, generator=generator)
        return self.pair(data, noise)

    @torch.no_grad()
    def pair(self, data: Tensor, noise: Tensor) -> Tensor:
        """Your own ``noise`` ``[B, *shape]``, its rows put in the order that suits ``data``."""
        return noise[self.assign(data, noise)]

    @torch.no_grad()
    def assign(self, data: Tensor, noise: Tensor) -> Tensor:
        """The permutation ``[B]`` (int64): datum i gets ``noise[permutation[i]]``."""
        check_data(data)
        if noise.shape != data.shape:
            raise ValueError(
                f"noise must be {tuple(data.shape)} like data, got {tuple(noise.shape)}"
            )
        if len(data) == 1:
            warnings.warn(
                "LinearAssignment pairs nothing in a batch of one datum; KNN(k) does", stacklevel=2
            )
        cost = self._cost(data, noise).cpu()
        check_rows_finite(cost)
        from scipy.optimize import linear_sum_assignment  # keeps the package's import light

        _, column = linear_sum_assignment(cost.numpy())
        return torch.as_tensor(column, device=data.device)

    def _cost(self, data: Tensor, noise: Tensor) -> Tensor:
        """``[B, B]``: cost of giving noise j to datum i."""
        dtype = working_dtype(data.dtype)
        data, noise = data.flatten(1).to(dtype), noise.flatten(1).to(dtype)
        if self.cost == "norm":
            return torch.cdist(data, noise)
        # With out=, as autocast would otherwise take the product in half precision.
        product = torch.mm(data, noise.T, out=data.new_empty(len(data), len(data)))
        return product.neg_()
