"""A diffusion model as a policy: it samples actions given observations."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from immiscible_diffusion.applications.pusht.normalization import PolicyNormalizer
from immiscible_diffusion.applications.pusht.windows import OBSERVATION
from immiscible_diffusion.diffusion.paths import Path
from immiscible_diffusion.diffusion.pipeline import InitNoise
from immiscible_diffusion.diffusion.samplers import SamplerConfig
from immiscible_diffusion.utils.random import keyed_generator


@dataclass(frozen=True)
class DiffusionPolicy:
    """Sample action chunks; their noise depends on ``(seed, episode, chunk)`` alone.

    So an episode does not depend on which others are still running, nor on the coupling that the
    model was trained with.

    Args:
        model: trained on normalized windows.
        path: that it was trained on.
        sampler: ``init_noise="matched"`` needs ``noise_distribution``.
        shape: of a chunk, ``(horizon, A)``.
        normalizer: of observations and actions.
        seed: of the noise.
        device: where the model is.
        noise_distribution: of the noise that the model was trained on, measured on complete
            windows.
    """

    model: nn.Module
    path: Path
    sampler: SamplerConfig
    shape: tuple[int, ...]
    normalizer: PolicyNormalizer
    seed: int = 0
    device: torch.device | str = "cpu"
    noise_distribution: InitNoise | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.sampler.init_noise == "matched") != (self.noise_distribution is not None):
            raise ValueError(
                f"sampler.init_noise={self.sampler.init_noise} does not go with "
                f"noise_distribution={self.noise_distribution}: 'matched' needs one, 'normal' none"
            )

    @torch.no_grad()
    def __call__(self, observations: Tensor, *, episodes: Tensor, chunk: int) -> Tensor:
        """Actions ``[B, horizon, A]`` for ``observations`` ``[B, n, O]``, in recorded units."""
        self.model.eval()
        cond = {OBSERVATION: self.normalizer.observations(observations).to(self.device)}
        draw = self._noise(episodes, chunk)
        noise = draw(-1)
        if self.noise_distribution is not None:
            noise = self.noise_distribution.color(noise)
        sampled = self.sampler.sample(self.path, self.model, noise, cond=cond, step_noise=draw)
        return self.normalizer.action.unnormalize(sampled.data.cpu())

    def _noise(self, episodes: Tensor, chunk: int) -> Callable[[int], Tensor]:
        """Draw noise ``[B, horizon, A]`` of a sampling step; -1 is the initial noise."""

        def draw(step: int) -> Tensor:
            keys = ((self.seed, int(episode), chunk, step, "plan") for episode in episodes)
            rows = [torch.randn(self.shape, generator=keyed_generator(*key)) for key in keys]
            return torch.stack(rows).to(self.device)

        return draw
