"""How good a trained policy is: the error of its actions, and what it does in the simulator."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from immiscible_diffusion.applications.pusht.config import DemonstrationConfig, load_windows
from immiscible_diffusion.applications.pusht.environment import VectorEnv
from immiscible_diffusion.applications.pusht.policy import DiffusionPolicy
from immiscible_diffusion.applications.pusht.rollout import Rollouts, rollout
from immiscible_diffusion.applications.pusht.score import score_rollouts
from immiscible_diffusion.applications.pusht.states import start_states
from immiscible_diffusion.applications.pusht.windows import Windows
from immiscible_diffusion.couplings import NoiseDistribution
from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.diffusion.losses.base import mean_over
from immiscible_diffusion.diffusion.samplers import SamplerConfig
from immiscible_diffusion.evaluation.config import PolicyEvaluation
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.random import keyed_generator

EVAL_SEED = 0  # the same windows, starts and noise for every coupling and training seed


@dataclass(frozen=True, eq=False)
class PolicyEvaluator:
    """Judges the policies of a recipe.

    Args:
        recipe: names path, data, and how to judge.
        train: the windows that policies are trained on: their ranges normalize.
        held_out: those that they are not trained on.
        device: where the model is.
        law: of the noise that the model was trained on; for the matched start.
    """

    recipe: Recipe
    train: Windows
    held_out: Windows
    device: torch.device | str = "cpu"
    law: NoiseDistribution | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        dataset: DataSet,
        device: torch.device | str = "cpu",
        law: NoiseDistribution | None = None,
    ) -> "PolicyEvaluator":
        """The judge of a recipe; ``dataset`` is what it trains on.

        Raises:
            ValueError: the recipe trains no policy.
        """
        if not isinstance(recipe.data, DemonstrationConfig) or not isinstance(dataset, Windows):
            raise ValueError(f"{recipe.name} trains no policy; a policy learns demonstrations")
        return cls(recipe, dataset, load_windows(recipe.data)[1], device, law)

    @property
    def evaluation(self) -> PolicyEvaluation:
        """How to judge."""
        assert isinstance(self.recipe.evaluation, PolicyEvaluation)
        return self.recipe.evaluation

    def policy(self, model: nn.Module, sampler: SamplerConfig) -> DiffusionPolicy:
        """The policy in the units of the recordings."""
        return DiffusionPolicy(
            model,
            self.recipe.noise_path,
            sampler,
            self.train.shape,
            self.train.normalizer,
            seed=EVAL_SEED,
            device=self.device,
            noise_distribution=self.law if sampler.init_noise == "matched" else None,
        )

    @torch.no_grad()
    def action_error(self, model: nn.Module, sampler: SamplerConfig) -> float:
        """Mean squared error of the actions that are carried out, in the range [-1, 1].

        Of one plan a held-out window against what was recorded there; where people did now this,
        now that, no policy has error 0.
        """
        batch = self.probes.to(self.device)
        draw = self._noise(len(batch))
        noise = draw(-1)
        if sampler.init_noise == "matched" and self.law is not None:
            noise = self.law.color(noise)
        plans = sampler.sample(
            self.recipe.noise_path, model.eval(), noise, cond=batch.cond, step_noise=draw
        ).data
        first = self.train.n_obs_steps - 1
        done = slice(first, first + self.train.n_action_steps)
        error = (plans - batch.data).square()[:, done]
        mask = None if batch.mask is None else batch.mask[:, done]
        return float(mean_over(error, mask).mean())

    @cached_property
    def probes(self) -> Batch:
        """Held-out windows within their episode, chosen once."""
        rows = self.held_out.complete_rows()
        order = torch.randperm(len(rows), generator=keyed_generator(EVAL_SEED, "held-out windows"))
        return self.held_out.batch(rows[order][: self.evaluation.windows])

    def _noise(self, count: int) -> Callable[[int], Tensor]:
        def draw(step: int) -> Tensor:
            generator = keyed_generator(EVAL_SEED, step, "held-out plans")
            return torch.randn((count, *self.train.shape), generator=generator).to(self.device)

        return draw

    def rollouts(self, model: nn.Module, sampler: SamplerConfig) -> Rollouts:
        """The policy at work on the fixed episodes.

        Raises:
            ValueError: its observations are not those of the simulator.
        """
        starts = start_states(self.evaluation.episodes)
        config = self.recipe.data
        assert isinstance(config, DemonstrationConfig)
        with VectorEnv(len(starts), workers=self.evaluation.workers) as env:
            return rollout(
                env,
                self.policy(model, sampler),
                starts,
                obs_type=self.train.episodes.obs_type,
                n_obs_steps=config.n_obs_steps,
                n_action_steps=config.n_action_steps,
            )

    def __call__(
        self, model: nn.Module, sampler: SamplerConfig, *, at_work: bool = True
    ) -> tuple[dict[str, Any], Rollouts | None]:
        """Figures by name, and what was done in the simulator, if anything was."""
        figures: dict[str, Any] = {"action_error": self.action_error(model, sampler)}
        if not at_work or not self.evaluation.episodes:
            return figures, None
        done = self.rollouts(model, sampler)
        found = score_rollouts([done])
        figures |= {"score": found.score.value, "success": found.success.value}
        return figures | {"latency_ms": found.latency_ms}, done
