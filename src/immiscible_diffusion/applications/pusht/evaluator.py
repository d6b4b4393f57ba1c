"""Scores of policies: the error of their actions, and what they do in the simulator."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from immiscible_diffusion.applications.pusht.config import PolicyEvalConfig
from immiscible_diffusion.applications.pusht.environment import VectorEnv, simulator_version
from immiscible_diffusion.applications.pusht.policy import DiffusionPolicy
from immiscible_diffusion.applications.pusht.rollout import Rollouts, rollout
from immiscible_diffusion.applications.pusht.score import (
    last_and_best,
    score_difference,
    score_rollouts,
)
from immiscible_diffusion.applications.pusht.states import start_states
from immiscible_diffusion.applications.pusht.video import save_video
from immiscible_diffusion.applications.pusht.windows import Windows
from immiscible_diffusion.diffusion.losses.base import mean_over
from immiscible_diffusion.diffusion.pipeline import SamplingPipeline
from immiscible_diffusion.evaluation.evaluator import EVAL_SEED, EvalResult
from immiscible_diffusion.reporting.compare import PolicyEntry
from immiscible_diffusion.training.builders import Run
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.random import keyed_generator
from immiscible_diffusion.utils.statistics import Interval

VIDEO_EPISODES = 4
VIDEO = "film.gif"


@dataclass(frozen=True, eq=False)
class PolicyEvaluator:
    """Scores policies on held-out windows and in the simulator.

    The windows, starts and noises are the same for every coupling and training seed.

    Attributes:
        config: how many windows and episodes.
        train: the windows that policies are trained on, whose ranges normalize.
        held_out: those that they are not trained on.
        device: where the model is.
    """

    config: PolicyEvalConfig
    train: Windows
    held_out: Windows
    device: torch.device | str = "cpu"

    def check(self) -> str:
        """Say what scores policies; raises if the simulator is needed and missing."""
        return simulator_version() if self.config.episodes else "held-out windows"

    @torch.no_grad()
    def action_error(self, pipeline: SamplingPipeline, model: nn.Module) -> float:
        """Return the mean squared error of the actions carried out, in the range [-1, 1].

        Between one sampled action sequence a held-out window and the recorded one. Not 0 even for
        a perfect policy, since demonstrations are multimodal.
        """
        batch, sampler = self.probes.to(self.device), pipeline.sampler
        draw = self._noise(len(batch))
        noise = draw(-1)
        if sampler.init_noise == "matched" and pipeline.init_noise is not None:
            noise = pipeline.init_noise.color(noise)
        actions = sampler.sample(
            pipeline.path, model.eval(), noise, cond=batch.cond, step_noise=draw
        ).data
        first = self.train.n_obs_steps - 1
        executed = slice(first, first + self.train.n_action_steps)
        error = (actions - batch.data).square()[:, executed]
        mask = None if batch.mask is None else batch.mask[:, executed]
        return float(mean_over(error, mask).mean())

    @cached_property
    def probes(self) -> Batch:
        """Held-out windows within their episode, chosen once."""
        rows = self.held_out.complete_rows()
        order = torch.randperm(len(rows), generator=keyed_generator(EVAL_SEED, "held-out windows"))
        return self.held_out.batch(rows[order][: self.config.windows])

    def _noise(self, count: int) -> Callable[[int], Tensor]:
        def draw(step: int) -> Tensor:
            generator = keyed_generator(EVAL_SEED, step, "held-out plans")
            return torch.randn((count, *self.train.shape), generator=generator).to(self.device)

        return draw

    def rollouts(self, pipeline: SamplingPipeline, model: nn.Module) -> Rollouts:
        """Run the policy in the simulator on the fixed episodes.

        Raises:
            ValueError: its observations are not those of the simulator.
        """
        matched = pipeline.sampler.init_noise == "matched"
        policy = DiffusionPolicy(
            model,
            pipeline.path,
            pipeline.sampler,
            self.train.shape,
            self.train.normalizer,
            seed=EVAL_SEED,
            device=self.device,
            noise_distribution=pipeline.init_noise if matched else None,
        )
        starts = start_states(self.config.episodes)
        with VectorEnv(len(starts), workers=self.config.workers) as env:
            return rollout(
                env,
                policy,
                starts,
                obs_type=self.train.episodes.obs_type,
                n_obs_steps=self.train.n_obs_steps,
                n_action_steps=self.train.n_action_steps,
            )

    def __call__(
        self,
        pipeline: SamplingPipeline,
        model: nn.Module,
        *,
        seed: int,
        step: int,
        final: bool = True,
        headline: bool = True,
        run_dir: RunDir | None = None,
    ) -> EvalResult:
        """Score the policy: the error of its actions; in the simulator where it is due."""
        scores: dict[str, Any] = {"action_error": self.action_error(pipeline, model)}
        due = headline and (final or self.config.rollout_every == "all")
        if due and self.config.episodes:
            rollouts = self.rollouts(pipeline, model)
            result = score_rollouts([rollouts])
            scores |= {"score": result.score.value, "success": result.success.value}
            scores |= {"latency_ms": result.latency_ms}
            if run_dir is not None:
                rollouts.save(rollouts_file(run_dir, step))
        return EvalResult(scores)

    def calibrate(self, metrics: Sequence[str] = ()) -> dict[str, Any]:
        """Raise ValueError: there is no scale for these scores."""
        raise ValueError("calibrate is for images scored by a Frechet distance; leave it out")

    def evaluate_run(
        self, run: Run, *, seed: int, batch_size: int, metrics: Any = ()
    ) -> dict[str, Any]:
        """Score a run's policy with 95% intervals over episodes; keep rollouts and a video."""
        pipeline, step = run.pipeline(batch_size), run.step
        scores: dict[str, Any] = {
            "step": step,
            "sampler": str(run.recipe.sampler),
            "held-out windows": len(self.probes),
            "action_error": self.action_error(pipeline, run.model),
        }
        if not self.config.episodes:
            return scores
        rollouts = self.rollouts(pipeline, run.model)
        result, root = score_rollouts([rollouts]), run.run_dir.root
        rollouts.save(root / "rollouts" / f"evaluated_{step:06d}.npz")
        episodes = range(min(VIDEO_EPISODES, result.episodes))
        save_video(
            root / f"film_{step:06d}.gif", {run.recipe.coupling: rollouts}, episodes=episodes
        )
        return scores | {
            "score": result.score.value,
            "success": result.success.value,
            "latency_ms": result.latency_ms,
            "episodes": result.episodes,
            "score_interval": [result.score.low, result.score.high],
            "success_interval": [result.success.low, result.success.high],
        }

    def summary(
        self, runs: Mapping[str, Mapping[int, RunDir]], folder: Path, step: int
    ) -> dict[str, Any]:
        """Return the policies' scores in the simulator over the seeds, and draw a video."""
        done: dict[str, dict[int, Rollouts]] = {}
        for coupling, by_seed in runs.items():
            loaded = {s: Rollouts.load(rollouts_file(run, step)) for s, run in by_seed.items()}
            done[coupling] = {s: rollouts for s, rollouts in loaded.items() if rollouts is not None}
        baseline = next(iter(done.values()))
        entries = tuple(
            _entry(coupling, rollouts, baseline, runs[coupling])
            for coupling, rollouts in done.items()
            if rollouts
        )
        first = {name: next(iter(r.values())) for name, r in done.items() if r}
        if first:
            count = min(VIDEO_EPISODES, *(len(rollouts.coverage) for rollouts in first.values()))
            save_video(folder / VIDEO, first, episodes=range(count))
        return {
            "features": "actions",
            "accuracy": None,
            "samples": len(self.probes),
            "real_samples": len(self.held_out),
            "floor": None,
            "metric": "action error",
            "policies": entries,
            "film": VIDEO if first else None,
        }


def rollouts_file(run_dir: RunDir, step: int) -> Path:
    """Return where the rollouts at ``step`` are."""
    return run_dir.root / "rollouts" / f"step_{step:06d}.npz"


def _entry(
    coupling: str,
    rollouts: Mapping[int, Rollouts],
    baseline: Mapping[int, Rollouts],
    runs: Mapping[int, RunDir],
) -> PolicyEntry:
    """Return the scores of one coupling over its seeds; its gain on the seeds of the baseline."""
    result = score_rollouts(list(rollouts.values()))
    shared = [seed for seed in rollouts if seed in baseline]
    gain = None
    if shared and rollouts is not baseline:
        gain = _values(
            score_difference([rollouts[s] for s in shared], [baseline[s] for s in shared])
        )
    checkpoints = [last_and_best(_scores(runs[seed])) for seed in rollouts]
    return PolicyEntry(
        coupling=coupling,
        score=_values(result.score),
        success=_values(result.success),
        gain=gain,
        last=sum(last for last, _ in checkpoints) / len(checkpoints),
        best=sum(best for _, best in checkpoints) / len(checkpoints),
        latency_ms=result.latency_ms,
        seeds=result.seeds,
        episodes=result.episodes,
    )


def _scores(run_dir: RunDir) -> list[float]:
    """Return the scores in the simulator by evaluated step, ascending."""
    scores = {
        r["step"]: r["score"] for r in run_dir.records("quality") if r.get("score") is not None
    }
    return [scores[step] for step in sorted(scores)]


def _values(figure: Interval) -> tuple[float, float, float]:
    return figure.value, figure.low, figure.high
