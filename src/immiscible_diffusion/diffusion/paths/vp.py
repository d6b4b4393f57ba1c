"""Variance-preserving diffusion in discrete steps: DDPM, DDIM, Stable Diffusion."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal

import torch
from torch import Tensor

from immiscible_diffusion.diffusion.paths.base import Cond, Model, Path, PathSample, Velocity, check_sample, per_row
from immiscible_diffusion.diffusion.paths.parametrization import Mixture
from immiscible_diffusion.utils.checks import PositiveFloat, check_fields

LARGEST_BETA = 0.999  # of the cosine schedule, 2102.09672


@dataclass(frozen=True)
class VPPath(Path):
    """``x_t = alpha data + sigma noise`` with ``alpha^2 + sigma^2 = 1``, trained at integer steps.

    DDPM (2006.11239). Step s of 0 ... steps - 1, the network's time, is ``t = (s + 1) / steps``; t = 0 is data itself.
    Between steps the angle ``atan2(sigma, alpha)`` is linear in t.

    Args:
        schedule: schedule of beta: ``linear`` (DDPM), ``scaled_linear`` (Stable Diffusion: linear in its root) or
            ``cosine`` (2102.09672, which needs no beta).
        prediction: what the network learns: ``epsilon`` (the noise), ``v`` (2202.00512: ``alpha noise - sigma data``)
            or ``data``.
        steps: steps of the schedule.
        beta_start: first beta.
        beta_end: last beta.
        zero_snr: rescale so that the last step is pure noise (2305.08891, algorithm 1); not with ``epsilon``, from
            which no data follow there.
        min_snr: gamma of the min-SNR weight (2303.09556), usually 5; None weights every step alike. Not with
            ``zero_snr``: the weight is 0 where nothing is left of the data.
    """

    schedule: Literal["linear", "scaled_linear", "cosine"] = "linear"
    prediction: Literal["epsilon", "v", "data"] = "epsilon"
    steps: Annotated[int, ">= 2"] = 1000
    beta_start: PositiveFloat = 1e-4
    beta_end: Annotated[float, "> 0 and < 1"] = 0.02
    zero_snr: bool = False
    min_snr: PositiveFloat | None = None

    def __post_init__(self) -> None:
        check_fields(self, "path.")
        if not self.beta_end >= self.beta_start:
            raise ValueError(f"path.beta_end must be >= {self.beta_start}, path.beta_start, got {self.beta_end}")
        if self.zero_snr and self.prediction == "epsilon":
            raise ValueError(
                "zero_snr leaves no data in the last step, so none can be predicted by epsilon; "
                "use prediction v or data"
            )
        if self.zero_snr and self.min_snr is not None:
            raise ValueError(
                "min_snr gives the last step of zero_snr, from which sampling starts, the weight 0, so that it is "
                "never trained; leave out one of the two"
            )

    @property
    def betas(self) -> Tensor:
        """``[steps]`` float64, before any rescaling to zero SNR."""
        if self.schedule == "linear":
            return torch.linspace(self.beta_start, self.beta_end, self.steps, dtype=torch.float64)
        if self.schedule == "scaled_linear":
            ends = math.sqrt(self.beta_start), math.sqrt(self.beta_end)
            return torch.linspace(*ends, self.steps, dtype=torch.float64).square()
        t = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
        alpha_bar = ((t + 0.008) / 1.008 * math.pi / 2).cos().square()
        return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp_max(LARGEST_BETA)

    def alpha(self, t: Tensor) -> Tensor:
        """``sqrt(cumprod(1 - beta))``."""
        return self._angle(t)[0].cos()

    def sigma(self, t: Tensor) -> Tensor:
        """``sqrt(1 - alpha^2)``, without cancellation."""
        return self._angle(t)[0].sin()

    def step(self, t: Tensor) -> Tensor:
        """The integer step at (or nearest to) ``t``; -1 is data."""
        return self._position(t).round().long() - 1

    def time(self, step: Tensor) -> Tensor:
        """``t`` of integer steps, float32."""
        return (step.float() + 1) / self.steps

    def mixture(self, t: Tensor, like: Tensor) -> Mixture:
        """Coefficients at ``t`` ``[B]``, to broadcast over ``like`` ``[B, *shape]``."""
        angle, slope = (per_row(value, like) for value in self._angle(t))
        alpha, sigma = angle.cos(), angle.sin()
        return Mixture(alpha, sigma, -sigma * slope, alpha * slope)

    def sample(self, data: Tensor, noise: Tensor, t: Tensor) -> PathSample:
        """Mix ``data`` and ``noise`` ``[B, *shape]`` at ``t`` ``[B]`` in [0, 1]."""
        check_sample(data, noise, t)
        alpha, sigma = per_row(self.alpha(t), data), per_row(self.sigma(t), data)
        target = {"epsilon": noise, "data": data}.get(self.prediction)
        if target is None:
            target = alpha * noise - sigma * data
        return PathSample(alpha * data + sigma * noise, t, target)

    def sample_time(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Times ``[count]`` of uniform integer steps, on the device of ``generator``."""
        device = generator.device if generator is not None else "cpu"
        steps = torch.randint(self.steps, (count,), device=device, generator=generator)
        return (steps + 1) / self.steps

    def weight(self, t: Tensor) -> Tensor:
        """1, or the min-SNR weight of the prediction's squared error."""
        if self.min_snr is None:
            return torch.ones_like(t)
        alpha, sigma = self.alpha(t).square(), self.sigma(t).square()
        capped = torch.minimum(alpha, self.min_snr * sigma)  # sigma^2 min(snr, gamma)
        return capped / {"epsilon": alpha, "v": alpha + sigma, "data": sigma}[self.prediction]

    def network_time(self, t: Tensor) -> Tensor:
        """The integer step; between steps, where ODE solvers evaluate, a fraction."""
        return (self._position(t) - 1).clamp_min(0)

    def from_network_time(self, network_time: Tensor) -> Tensor:
        """The inverse of ``network_time``."""
        return (network_time + 1) / self.steps

    def velocity(self, model: Model, cond: Cond | None = None) -> Velocity:
        """dx/dt of the probability-flow ODE, which is v times the slope of the angle."""

        def field(x: Tensor, t: Tensor) -> Tensor:
            t = t.clamp_min(1 / self.steps)  # the network was not trained below its first step
            mixture, slope = self.mixture(t, x), per_row(self._angle(t)[1], x)
            output = model(x, self.network_time(t), cond)
            return slope * mixture.convert(output, x, self.prediction, "v")

        return field

    def _position(self, t: Tensor) -> Tensor:
        """``t`` in units of steps, 0 to ``steps``; rounding errors beside a step are removed."""
        if not t.is_floating_point():
            raise ValueError(f"t must be floating, got {t.dtype}; use path.time(step)")
        dtype = torch.float64 if t.dtype == torch.float64 else torch.float32
        position = (t.to(dtype) * self.steps).clamp(0, self.steps)
        nearest = position.round()
        return torch.where((position - nearest).abs() < 1e-3, nearest, position)

    def _angle(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """``atan2(sigma, alpha)`` and its slope in t, ``[B]`` each."""
        position = self._position(t)
        angles = _angles(self, position.device, position.dtype)
        upper = position.ceil().clamp_min(1).long()  # a step belongs to the interval below it
        rise = angles[upper] - angles[upper - 1]
        return angles[upper] - (upper - position) * rise, rise * self.steps


@lru_cache(maxsize=64)
def _angles(path: VPPath, device: torch.device, dtype: torch.dtype) -> Tensor:
    """``atan2(sigma, alpha)`` ``[steps + 1]`` of data and of every step."""
    # Cached, in float64 on the CPU: also within inference mode, compiled code or a CUDA graph.
    with torch.inference_mode(False), torch.no_grad():
        root = (1 - path.betas).cumprod(0).sqrt()
        if path.zero_snr:
            root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        angle = torch.atan2((1 - root.square()).sqrt(), root)
        return torch.cat([torch.zeros(1).double(), angle]).to(dtype).to(device)
