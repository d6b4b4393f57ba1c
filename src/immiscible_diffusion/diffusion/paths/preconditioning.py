"""Preconditioning for every path: the network is left what no linear map predicts."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from immiscible_diffusion.diffusion.paths.base import Cond, Path
from immiscible_diffusion.diffusion.paths.parametrization import Mixture

LEAST_VARIANCE = 1e-6
STATISTICS = ("data_mean", "noise_mean", "data_variance", "noise_variance", "covariance")


class Preconditioned(nn.Module):
    """``E y + c_skip (x - E x) + c_out network(c_in (x - E x), time)`` at ``x = alpha data + sigma noise``.

    The target is ``y = a data + b noise`` (``Mixture.coefficients``). Let a dimension of the data have variance s^2,
    of the noise v, and their covariance over the training pairs be c. Then Var x = alpha^2 s^2 + 2 alpha sigma c +
    sigma^2 v = d, and

        c_in   = d^(-1/2)
        c_skip = Cov(y, x) / d = (a alpha s^2 + (a sigma + b alpha) c + b sigma v) / d
        c_out  = |alpha b - sigma a| ((s^2 v - c^2) / d)^(1/2)

    c_skip (x - E x) + E y is the best linear prediction, and c_out the deviation of y around it: the determinant of
    the covariance of (x, y) is (alpha b - sigma a)^2 (s^2 v - c^2). So input and target of the network have variance
    1 at every t. Without pairing c = 0, v = 1; with the data predicted at ``data + sigma noise`` this is EDM
    (2206.00364, table 1), whose straight path is c_skip = (t - (1 - t) s^2) / d, c_out = s d^(-1/2), d = (1 - t)^2 s^2
    + t^2. A network that gets x itself and must give y has to carry the noise through its layers.

    Args:
        network: ``network(x, network_time, cond)``.
        path: that it is trained on.
        data_variance: s^2, until ``fit`` measures it; the means are 0, v is 1 and c is 0.
        identity_sigma: of an EDMPath, the sigma at which the output is the input itself, as consistency models need
            (2303.01469, appendix C): it is taken from sigma, but not in d. 0 otherwise.
    """

    data_mean: Tensor
    noise_mean: Tensor
    data_variance: Tensor
    noise_variance: Tensor
    covariance: Tensor

    def __init__(
        self, network: nn.Module, path: Path, data_variance: float = 1.0, identity_sigma: float = 0.0
    ) -> None:
        super().__init__()
        self.network, self.path, self.identity_sigma = network, path, identity_sigma
        for name, value in zip(STATISTICS, (0.0, 0.0, data_variance, 1.0, 0.0), strict=True):
            self.register_buffer(name, torch.tensor(float(value)))

    def forward(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        """Predict the path's target at ``x`` ``[B, *shape]`` and the network's ``time`` ``[B]``."""
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        mean, noise_mean, s2, v, c = (getattr(self, name).to(dtype) for name in STATISTICS)
        mixture = self.path.mixture(self.path.from_network_time(time.to(dtype)), x.to(dtype))
        a, b = mixture.coefficients(self.path.prediction)
        deviation, c_skip, c_out = scales(mixture, a, b, s2, v, c, self.identity_sigma)
        centered = x - (mixture.alpha * mean + (mixture.sigma - self.identity_sigma) * noise_mean)
        output = self.network((centered / deviation).to(x.dtype), time, cond)
        return (a * mean + b * noise_mean + c_skip * centered + c_out * output).to(x.dtype)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        """Take statistics of whatever shape: those of a network that was never fitted are scalars."""
        for name in STATISTICS:
            if (saved := state_dict.get(prefix + name)) is not None:
                self.register_buffer(name, torch.empty_like(saved, device=self.data_mean.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @torch.no_grad()
    def fit(self, pairs: Iterable[tuple[Tensor, Tensor | None]]) -> None:
        """Measure means, variances and covariance of data and noise ``[B, *shape]``.

        Noise None is N(0, I), independent of the data. Means are of every dimension; variances and the covariance are
        of every channel of ``[B, C, ...]`` data of three dimensions and more, else of all dimensions together.
        ValueError without data, or for what is not such pairs.
        """
        count, paired, sums = 0, False, [torch.zeros((), dtype=torch.float64)] * 5
        for data, noise in map(_checked, pairs):
            x = data.cpu().double()
            paired = noise is not None
            n = torch.zeros_like(x) if noise is None else noise.cpu().double()
            count += len(x)
            sums = [total + part.sum(0) for total, part in zip(sums, (x, n, x * x, n * n, x * n), strict=True)]
        if not count:
            raise ValueError("preconditioning needs data to fit, got none")
        mean, noise_mean, xx, noise_square, xn = (total / count for total in sums)
        s2 = _over_channels(xx - mean**2).clamp_min(LEAST_VARIANCE)
        v = _over_channels(noise_square - noise_mean**2).clamp_min(LEAST_VARIANCE) if paired else torch.ones(())
        most = (1 - LEAST_VARIANCE) * (s2 * v).sqrt()
        c = _over_channels(xn - mean * noise_mean).clamp(-most, most)
        for name, value in zip(STATISTICS, (mean, noise_mean, s2, v, c), strict=True):
            self.register_buffer(name, value.float().to(self.data_mean.device))


def scales(
    mixture: Mixture, a: Tensor, b: Tensor, s2: Tensor, v: Tensor, c: Tensor, identity_sigma: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """``(1 / c_in, c_skip, c_out)`` of ``Preconditioned``, in its letters, all to broadcast over a batch."""
    alpha, sigma = mixture.alpha, mixture.sigma
    shifted = sigma - identity_sigma
    variance, shifted_variance = (alpha**2 * s2 + 2 * alpha * s * c + s**2 * v for s in (sigma, shifted))
    c_skip = (a * alpha * s2 + (a * shifted + b * alpha) * c + b * shifted * v) / shifted_variance
    c_out = (alpha * b - shifted * a).abs() * ((s2 * v - c**2) / variance).sqrt()
    return variance.sqrt(), c_skip, c_out


def _checked(pair: Any) -> tuple[Tensor, Tensor | None]:
    """``pair``; ValueError unless it is ``(data, noise)`` of one shape, or ``(data, None)``, and finite."""
    if not (isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], Tensor)):
        raise ValueError(
            f"fit takes an iterable of pairs (data, noise), such as [(data, noise)]; got a {type(pair).__name__}"
        )
    data, noise = pair
    if noise is not None and noise.shape != data.shape:
        raise ValueError(f"expected noise like data; got data {tuple(data.shape)}, noise {tuple(noise.shape)}")
    if not all(bool(part.isfinite().all()) for part in pair if part is not None):
        raise ValueError("data or noise are not finite; mend them before fitting")
    return data, noise


def _over_channels(values: Tensor) -> Tensor:
    """The mean of ``[*shape]`` over all but the channels, where there are some, to broadcast over a sample."""
    return values.mean(tuple(range(1, values.ndim)), keepdim=True) if values.ndim > 2 else values.mean()
