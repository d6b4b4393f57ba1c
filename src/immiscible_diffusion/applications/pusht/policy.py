"""A diffusion model as a policy: it samples actions given observations."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from immiscible_diffusion.applications.pusht.normalization import PolicyNormalizer
from immiscible_diffusion.applications.pusht.windows import OBSERVATION
from immiscible_diffusion.diffusion.paths import Cond
from immiscible_diffusion.diffusion.pipeline import SamplingPipeline
from immiscible_diffusion.utils.random import keyed_generator


@dataclass(frozen=True)
class DiffusionPolicy:
    """Sample action chunks; their noise depends on ``(seed, episode, chunk)`` alone.

    So an episode does not depend on which others are still running, nor on the coupling that the
    model was trained with.
    """

    model: nn.Module  # trained on normalized windows
    pipeline: SamplingPipeline  # how to sample from it
    normalizer: PolicyNormalizer  # of observations and actions
    seed: int = 0  # of the noise

    def __call__(self, observations: Tensor, *, episodes: Tensor, chunk: int) -> Tensor:
        """Actions ``[B, horizon, A]`` for ``observations`` ``[B, n, O]``, in recorded units."""

        def draw(step: int) -> Tensor:
            keys = [(self.seed, int(episode), chunk, step, "plan") for episode in episodes]
            generators = [keyed_generator(*key) for key in keys]
            return torch.stack([torch.randn(self.pipeline.shape, generator=g) for g in generators])

        cond = {OBSERVATION: self.normalizer.observations(observations)}
        actions = sample_actions(self.pipeline, self.model, cond, draw)
        return self.normalizer.action.unnormalize(actions.cpu())


@torch.no_grad()
def sample_actions(pipeline: SamplingPipeline, model: nn.Module, cond: Cond, draw: Callable[[int], Tensor]) -> Tensor:
    """Sample normalized actions from the noise ``draw(-1)``; ``draw(step)`` is that of a step."""
    noise = draw(-1).to(pipeline.device)
    if pipeline.sampler.init_noise == "matched" and pipeline.init_noise is not None:
        noise = pipeline.init_noise.color(noise)
    return pipeline.sampler.sample(
        pipeline.path,
        model.eval(),
        noise,
        cond={name: values.to(pipeline.device) for name, values in cond.items()},
        step_noise=lambda step: draw(step).to(pipeline.device),
    ).data
