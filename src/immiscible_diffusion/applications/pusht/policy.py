"""A diffusion model as a policy: it samples plans given what was seen."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from immiscible_diffusion.applications.pusht.normalization import MinMax
from immiscible_diffusion.applications.pusht.observation_normalizer import Sight
from immiscible_diffusion.applications.pusht.windows import OBSERVATION
from immiscible_diffusion.couplings import NoiseDistribution
from immiscible_diffusion.diffusion.paths import Path
from immiscible_diffusion.diffusion.samplers import SamplerConfig
from immiscible_diffusion.utils.random import keyed_generator


@dataclass(frozen=True)
class Planner:
    """Plans by sampling; the noise of a plan depends on ``(seed, episode, plan)`` alone.

    So what happens in an episode does not depend on which others are still under way, nor on the
    coupling that the model was trained with.

    Args:
        model: trained on normalized windows.
        path: that it was trained on.
        sampler: how plans are made; ``init_noise="matched"`` needs ``law``.
        shape: of a plan, ``(horizon, A)``.
        sight: how it is told what was observed.
        acted: range of the actions.
        seed: of the noise.
        device: where the model is.
        law: of the noise that the model was trained on, measured on whole windows.
    """

    model: nn.Module
    path: Path
    sampler: SamplerConfig
    shape: tuple[int, ...]
    sight: Sight
    acted: MinMax
    seed: int = 0
    device: torch.device | str = "cpu"
    law: NoiseDistribution | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.sampler.init_noise == "matched") != (self.law is not None):
            raise ValueError(
                f"sampler.init_noise={self.sampler.init_noise} and law={self.law} do not go together: the "
                f"matched start needs the law, the normal one takes none"
            )

    @torch.no_grad()
    def __call__(self, observations: Tensor, *, episodes: Tensor, plan: int) -> Tensor:
        """Actions ``[B, horizon, A]`` for ``observations`` ``[B, n, O]``, in recorded units."""
        self.model.eval()
        cond = {OBSERVATION: self.sight(observations).to(self.device)}
        draw = self._noise(episodes, plan)
        noise = draw(-1)
        if self.law is not None:
            noise = self.law.color(noise)
        sampled = self.sampler.sample(self.path, self.model, noise, cond=cond, step_noise=draw)
        return self.acted.undo(sampled.data.cpu())

    def _noise(self, episodes: Tensor, plan: int) -> Callable[[int], Tensor]:
        """Noise ``[B, horizon, A]`` of a step of the sampler; -1 = to start from."""

        def draw(step: int) -> Tensor:
            keys = ((self.seed, int(episode), plan, step, "plan") for episode in episodes)
            rows = [torch.randn(self.shape, generator=keyed_generator(*key)) for key in keys]
            return torch.stack(rows).to(self.device)

        return draw
