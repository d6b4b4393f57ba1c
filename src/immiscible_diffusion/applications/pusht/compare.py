"""From the rollouts of a comparison's policies to the report's figures and film."""

from pathlib import Path

from immiscible_diffusion.applications.pusht.rollout import Rollouts
from immiscible_diffusion.applications.pusht.score import (
    last_and_best,
    score_difference,
    score_rollouts,
)
from immiscible_diffusion.applications.pusht.video import save_video
from immiscible_diffusion.experiments.compare.plan import BASELINE, Plan, Trial
from immiscible_diffusion.experiments.compare.trial import headline_steps, rollouts_file
from immiscible_diffusion.reporting.compare import PolicyEntry
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.utils.statistics import Interval

FILM = "film.gif"
EPISODES = 4


Done = dict[str, dict[int, Rollouts]]
"""coupling -> seed -> what its policy did after the last step of training."""


def all_rollouts(plan: Plan) -> Done:
    """What the policies of a comparison did, as far as they got there."""
    return {name: last_rollouts(plan, name) for name in plan.couplings}


def policy_entries(plan: Plan, done: Done) -> tuple[PolicyEntry, ...]:
    """The figures of every coupling's policies, over the seeds that got there."""
    return tuple(_entry(plan, name, runs, done[BASELINE]) for name, runs in done.items() if runs)


def last_rollouts(plan: Plan, coupling: str) -> dict[int, Rollouts]:
    """Rollouts after the last step of training, by seed."""
    found = {}
    for seed in plan.seeds:
        run = RunDir(plan.trial_dir(Trial(coupling, seed)))
        kept = Rollouts.load(rollouts_file(run, plan.recipe.steps))
        if kept is not None:
            found[seed] = kept
    return found


def _entry(
    plan: Plan, coupling: str, runs: dict[int, Rollouts], baseline: dict[int, Rollouts]
) -> PolicyEntry:
    found = score_rollouts(list(runs.values()))
    shared = [seed for seed in runs if seed in baseline]
    gain = None
    if shared and coupling != BASELINE:
        gain = _values(score_difference([runs[s] for s in shared], [baseline[s] for s in shared]))
    checkpoints = [last_and_best(_scores(plan, Trial(coupling, seed))) for seed in runs]
    return PolicyEntry(
        coupling=coupling,
        score=_values(found.score),
        success=_values(found.success),
        gain=gain,
        last=sum(last for last, _ in checkpoints) / len(checkpoints),
        best=sum(best for _, best in checkpoints) / len(checkpoints),
        latency_ms=found.latency_ms,
        seeds=found.seeds,
        episodes=found.episodes,
    )


def _scores(plan: Plan, cell: Trial) -> list[float]:
    """Scores by evaluated step, ascending."""
    budget = headline_steps(plan.recipe)
    records = RunDir(plan.trial_dir(cell)).records("quality")
    scored = {
        record["step"]: record["score"]
        for record in records
        if record["budget"] == budget and record.get("score") is not None
    }
    return [scored[step] for step in sorted(scored)]


def _values(figure: Interval) -> tuple[float, float, float]:
    return figure.value, figure.low, figure.high


def draw_film(plan: Plan, done: Done) -> Path | None:
    """The first seed's policies at work, a row for each coupling; None if none was."""
    policies = {name: runs[plan.seeds[0]] for name, runs in done.items() if plan.seeds[0] in runs}
    if not policies:
        return None
    episodes = min(EPISODES, *(len(rollouts.coverage) for rollouts in policies.values()))
    path = plan.folder / FILM
    save_video(path, policies, episodes=range(episodes))
    return path
