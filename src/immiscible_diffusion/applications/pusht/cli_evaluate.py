"""``immiscible evaluate`` of a policy: the error of its actions, and what it does at work."""

from typing import Any

from immiscible_diffusion.applications.pusht.evaluator import PolicyEvaluator
from immiscible_diffusion.applications.pusht.score import score_rollouts
from immiscible_diffusion.applications.pusht.video import save_video
from immiscible_diffusion.evaluation.load_run import LoadedRun

FILMED = 4


def policy_figures(trained: LoadedRun) -> dict[str, Any]:
    """Figures by name, with 95% intervals over episodes; keeps the rollouts and a film in the run.

    Plans are made by the recipe's sampler.
    """
    recipe, run, step = trained.recipe, trained.run, trained.step
    judging = PolicyEvaluator.of(
        recipe, trained.dataset, trained.device, trained.init_noise_distribution()
    )
    figures: dict[str, Any] = {
        "step": step,
        "sampler": str(recipe.sampler),
        "held-out windows": len(judging.probes),
        "action_error": judging.action_error(trained.model, recipe.sampler),
    }
    if not judging.evaluation.episodes:
        return figures
    done = judging.rollouts(trained.model, recipe.sampler)
    found = score_rollouts([done])
    done.save(run.root / "rollouts" / f"evaluated_{step:06d}.npz")
    shown = range(min(FILMED, found.episodes))
    save_video(run.root / f"film_{step:06d}.gif", {recipe.coupling: done}, episodes=shown)
    return figures | {
        "score": found.score.value,
        "success": found.success.value,
        "latency_ms": found.latency_ms,
        "episodes": found.episodes,
        "score_interval": [found.score.low, found.score.high],
        "success_interval": [found.success.low, found.success.high],
    }
