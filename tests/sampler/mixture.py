"""A mixture of Gaussians, whose best denoiser is known."""

import numpy as np
import torch
from scipy.integrate import solve_ivp

MEANS, STD = (-1.0, 0.4, 1.2), 0.35


def draw(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    means = torch.tensor(MEANS, dtype=torch.float64)
    which = torch.randint(len(MEANS), (count,), generator=generator)
    spread = torch.randn(count, dtype=torch.float64, generator=generator)
    return (means[which] + STD * spread)[:, None]


def denoised(x, alpha, sigma):
    """``E[data | x_t]``, in numpy or torch."""
    library = torch if isinstance(x, torch.Tensor) else np
    variance = (alpha * STD) ** 2 + sigma**2
    weight = total = 0.0
    for mean in MEANS:
        density = library.exp(-((x - alpha * mean) ** 2) / (2 * variance))
        total = total + density * (mean + alpha * STD**2 * (x - alpha * mean) / variance)
        weight = weight + density
    return total / weight


def model_on(path):
    """What the best network says on ``path``; the tests give it the mixture to speak of."""

    def model(x, time, cond):
        t = (time.double() + 1) / path.steps
        mixture = path.mixture(t, x)
        data = denoised(x, mixture.alpha, mixture.sigma)
        return mixture.convert(data, x, "data", path.prediction)

    return model


def sigma_model(x, time, cond):
    """The same on a SigmaPath."""
    return denoised(x, 1.0, (4 * time.double()).exp()[:, None])


def exact(x, alpha, sigma):
    """Where the probability flow takes ``x`` ``[n, 1]`` at ``(alpha, sigma)``: it knows no t.

    With z = x / alpha and s = sigma / alpha the flow is dz/ds = (z - E[data]) / s.
    """

    def slope(_, z, s):
        return (z - denoised(z, 1.0, s)) / s

    def log_slope(u, z):  # s = exp(u): smooth over many decades
        s = np.exp(u)
        return s * slope(u, z, s)

    ends = np.log(sigma / alpha), np.log(1e-7)
    found = solve_ivp(log_slope, ends, (x / alpha).numpy()[:, 0], rtol=1e-10, atol=1e-10)
    return torch.from_numpy(found.y[:, -1])[:, None]


def order(sample, reference, counts):
    """Slope of the error's logarithm against that of the steps."""
    errors = [float((sample(n) - reference).square().mean().sqrt()) for n in counts]
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0], errors
