"""A diffusion model as a policy: it samples plans given what was seen."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from immiscible_diffusion.coupling import NoiseLaw
from immiscible_diffusion.data.normalise import MinMax
from immiscible_diffusion.data.sight import Sight
from immiscible_diffusion.data.trajectories import OBSERVATION
from immiscible_diffusion.path import Path
from immiscible_diffusion.rng import keyed_generator
from immiscible_diffusion.sampler import Sampler


@dataclass(frozen=True)
class Planner:
    """Plans by sampling; the noise of a plan depends on ``(seed, episode, plan)`` alone.

    So what happens in an episode does not depend on which others are still under way, nor on the
    coupling that the model was trained with.

    Args:
        model: trained on normalised windows.
        path: that it was trained on.
        sampler: how plans are made; ``start="matched"`` needs ``law``.
        shape: of a plan, ``(horizon, A)``.
        sight: how it is told what was observed.
        acted: range of the actions.
        seed: of the noise.
        device: where the model is.
        law: of the noise that the model was trained on, measured on whole windows.
    """

    model: nn.Module
    path: Path
    sampler: Sampler
    shape: tuple[int, ...]
    sight: Sight
    acted: MinMax
    seed: int = 0
    device: torch.device | str = "cpu"
    law: NoiseLaw | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.sampler.start == "matched") != (self.law is not None):
            raise ValueError(
                f"sampler.start={self.sampler.start} and law={self.law} do not go together: the "
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
