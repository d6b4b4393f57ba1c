"""``immiscible evaluate`` of a policy: the error of its actions, and what it does at work."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from immiscible_diffusion.policy import PolicyJudge, keep_rollouts
from immiscible_diffusion.pusht.film import film
from immiscible_diffusion.pusht.score import judge
from immiscible_diffusion.sampler import Sampler
from immiscible_diffusion.setup import make_coupling, start_law
from immiscible_diffusion.trained import Trained

FILMED = 4


def policy_figures(trained: Trained, sampler: Sampler, show: Path | None) -> dict[str, Any]:
    """Figures by name, with 95% intervals over episodes; writes a film to ``show``."""
    recipe = trained.recipe
    law = None
    if sampler.start == "matched":
        coupling = make_coupling(recipe, trained.dataset, trained.run, trained.device)
        law = start_law(recipe, trained.dataset, trained.run, coupling, trained.device)
    judging = PolicyJudge.of(recipe, trained.dataset, trained.device, law)
    figures, done = judging(trained.model, sampler)
    figures = {
        "step": trained.step,
        "sampler": str(sampler),
        "held-out windows": len(judging.probes),
    } | figures
    if done is None:
        return figures
    found = judge([done])
    keep_rollouts(trained.run.root / "rollouts" / f"evaluated_{trained.step:06d}.npz", done)
    if show is not None:
        film(show, {recipe.coupling: done}, episodes=range(min(FILMED, found.episodes)))
    intervals = {name: list(asdict(getattr(found, name)).values()) for name in ("score", "success")}
    return figures | {
        "episodes": found.episodes,
        "score_interval": intervals["score"][1:],
        "success_interval": intervals["success"][1:],
    }
