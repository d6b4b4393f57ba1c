"""Scores of policies: the error of their actions, and what they do in the simulator."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from immiscible_diffusion.applications.pusht.config import PolicyEvalConfig
from immiscible_diffusion.applications.pusht.environment import PushT, VectorEnv
from immiscible_diffusion.applications.pusht.policy import DiffusionPolicy, sample_actions
from immiscible_diffusion.applications.pusht.rollout import (
    Rollouts,
    last_and_best,
    rollout,
    score_difference,
    score_rollouts,
)
from immiscible_diffusion.applications.pusht.states import start_states
from immiscible_diffusion.applications.pusht.video import save_video
from immiscible_diffusion.applications.pusht.windows import Windows
from immiscible_diffusion.diffusion.losses.base import mean_over
from immiscible_diffusion.diffusion.pipeline import SamplingPipeline
from immiscible_diffusion.evaluation.evaluator import EVAL_SEED, EvalResult, Evaluator
from immiscible_diffusion.reporting.compare.records import PolicyEntry
from immiscible_diffusion.training.builders import Run
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.random import keyed_generator
from immiscible_diffusion.utils.statistics import Interval


@dataclass(frozen=True, eq=False)
class PolicyEvaluator(Evaluator):
    """Score policies on validation windows and in the simulator.

    Windows, initial states and noise are the same for every coupling and training seed.
    """

    config: PolicyEvalConfig  # how many windows and episodes
    train: Windows  # those that policies are trained on; their normalizer is used
    validation: Windows  # those of other episodes

    def check(self) -> str:
        """Say what scores policies; raise if the simulator is needed and missing."""
        if not self.config.episodes:
            return "validation windows"
        PushT()
        return f"gym-pusht {version('gym-pusht')}"

    @cached_property
    def probes(self) -> Batch:
        """Validation windows without repeated steps, chosen once."""
        rows = self.validation.complete_rows()
        order = torch.randperm(len(rows), generator=keyed_generator(EVAL_SEED, "held-out windows"))
        return self.validation.batch(rows[order][: self.config.windows])

    def action_error(self, pipeline: SamplingPipeline, model: nn.Module) -> float:
        """Mean squared error of the actions carried out, normalized to [-1, 1].

        It compares one sample per window with the recorded actions. A perfect policy does not
        reach 0, since demonstrations are multimodal.
        """
        batch = self.probes.to(pipeline.device)

        def draw(step: int) -> Tensor:
            generator = keyed_generator(EVAL_SEED, step, "held-out plans")
            return torch.randn(batch.data.shape, generator=generator)

        error = (sample_actions(pipeline, model, batch.cond or {}, draw) - batch.data).square()
        first = self.train.config.n_obs_steps - 1
        executed = slice(first, first + self.train.config.n_action_steps)
        mask = None if batch.mask is None else batch.mask[:, executed]
        return float(mean_over(error[:, executed], mask).mean())

    def rollouts(self, pipeline: SamplingPipeline, model: nn.Module) -> Rollouts:
        """Run the policy in the simulator on the fixed episodes."""
        starts, config = start_states(self.config.episodes), self.train.config
        policy = DiffusionPolicy(model, pipeline, self.train.normalizer, seed=EVAL_SEED)
        options: Any = {"obs_type": self.train.episodes.obs_type}
        options |= {"n_obs_steps": config.n_obs_steps, "n_action_steps": config.n_action_steps}
        with VectorEnv(len(starts), workers=self.config.workers) as env:
            return rollout(env, policy, starts, **options)

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
            scores |= score_rollouts([rollouts]).values
            if run_dir is not None:
                rollouts.save(_rollouts_file(run_dir, step))
        return EvalResult(scores)

    def evaluate_run(self, run: Run, *, seed: int, batch_size: int, metrics: Any) -> dict[str, Any]:
        """Score a run's policy with 95% intervals over episodes; keep rollouts and a video."""
        pipeline, root = run.pipeline(batch_size), run.run_dir.root
        scores: dict[str, Any] = {
            "step": run.step,
            "sampler": str(run.recipe.sampler),
            "validation_windows": len(self.probes),
            "action_error": self.action_error(pipeline, run.model),
        }
        if not self.config.episodes:
            return scores
        rollouts = self.rollouts(pipeline, run.model)
        rollouts.save(root / "rollouts" / f"evaluated_{run.step:06d}.npz")
        save_video(root / f"video_{run.step:06d}.gif", {run.recipe.coupling: rollouts})
        result = score_rollouts([rollouts])
        intervals = {"score": result.score, "success": result.success}
        ends = {f"{name}_interval": [part.low, part.high] for name, part in intervals.items()}
        return {**scores, **result.values, "episodes": result.episodes, **ends}

    def summary(self, runs: Mapping[str, Mapping[int, RunDir]], folder: Path, step: int) -> dict[str, Any]:
        """Return the policies' scores in the simulator over the seeds, and draw a video."""
        rollouts: dict[str, dict[int, Rollouts]] = {}
        for coupling, by_seed in runs.items():
            files = {seed: _rollouts_file(run, step) for seed, run in by_seed.items()}
            loaded = {seed: Rollouts.load(file) for seed, file in files.items() if file.exists()}
            rollouts[coupling] = loaded
        baseline, video = next(iter(rollouts.values())), folder / "video.gif"
        rollouts = {coupling: by_seed for coupling, by_seed in rollouts.items() if by_seed}
        if rollouts:
            first = {name: next(iter(by_seed.values())) for name, by_seed in rollouts.items()}
            save_video(video, first)
        sizes = {"samples": len(self.probes), "real_samples": len(self.validation)}
        entries = [_entry(c, by_seed, baseline, runs[c]) for c, by_seed in rollouts.items()]
        return {
            **{"features": "actions", **sizes, "accuracy": None, "floor": None},
            "metric": "action error",
            "policies": tuple(entries),
            "video": video.name if entries else None,
        }


def _rollouts_file(run_dir: RunDir, step: int) -> Path:
    return run_dir.root / "rollouts" / f"step_{step:06d}.npz"


def _entry(
    coupling: str, rollouts: Mapping[int, Rollouts], baseline: Mapping[int, Rollouts], runs: Mapping[int, RunDir]
) -> PolicyEntry:
    """Return the scores of one coupling over its seeds; its gain on the seeds of the baseline."""
    result = score_rollouts(list(rollouts.values()))
    shared = [seed for seed in rollouts if seed in baseline]
    gain = None
    if shared and rollouts is not baseline:
        gain = score_difference([rollouts[s] for s in shared], [baseline[s] for s in shared])
    checkpoints = []
    for seed in rollouts:
        records = [r for r in runs[seed].records("quality") if r.get("score") is not None]
        scores = {r["step"]: r["score"] for r in records}
        checkpoints.append(last_and_best([scores[step] for step in sorted(scores)]))
    return PolicyEntry(
        coupling=coupling,
        score=_triple(result.score),
        success=_triple(result.success),
        gain=None if gain is None else _triple(gain),
        last=fmean(last for last, _ in checkpoints),
        best=fmean(best for _, best in checkpoints),
        latency_ms=result.latency_ms,
        seeds=result.seeds,
        episodes=result.episodes,
    )


def _triple(interval: Interval) -> tuple[float, float, float]:
    return interval.value, interval.low, interval.high
