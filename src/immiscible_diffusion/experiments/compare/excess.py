"""Loss less irreducible loss, for the report of a comparison."""

from statistics import fmean
from typing import Any

from torch import Tensor

from immiscible_diffusion.analysis.estimates import mean_of
from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.experiments.compare.denoising import (
    AVERAGED,
    LEVELS,
    kept_losses,
    row_count,
)
from immiscible_diffusion.experiments.compare.irreducible import (
    best_on_probes,
    find_irreducible,
    probes_used,
)
from immiscible_diffusion.experiments.compare.plan import Plan
from immiscible_diffusion.reporting.compare.results import Excess, ExcessPoint, Irreducible
from immiscible_diffusion.training.run_dir import RunDir


def excess_of(plan: Plan, dataset: DataSet) -> Excess | None:
    """The irreducible losses of the couplings trained so far; None if no loss by level is kept."""
    found = find_irreducible(plan, dataset)
    couplings = [_irreducible(name, values) for name, values in found["couplings"].items()]
    couplings += [Irreducible(name, skipped=reason) for name, reason in found["skipped"].items()]
    if not couplings:
        return None
    return Excess(
        levels=LEVELS,
        averaged=AVERAGED,
        probes=probes_used(plan.recipe, dataset),
        images=row_count(plan.recipe, dataset),
        given="the label" if plan.recipe.conditional else "",
        couplings=tuple(couplings),
    )


def _irreducible(name: str, values: dict[str, Any]) -> Irreducible:
    """Means over the seeds; their errors as of one, since all seeds have the same images."""
    every = [values["laws"][mark] for mark in values["seeds"].values()]

    def mean(what: str, part: str) -> tuple[float, ...]:
        rows = zip(*(law[what] for law in every), strict=True)
        return tuple(fmean(level[part] for level in row) for row in rows)

    found = mean("irreducible", "value"), mean("irreducible", "error"), mean("reached", "value")
    return Irreducible(name, *found, every[0]["estimate"])


def excess_points(plan: Plan, run: RunDir, coupling: str) -> tuple[ExcessPoint, ...]:
    """The excess loss of ``run``, trained with ``coupling``, at every step where it was measured.

    Each noisy image's best possible loss is taken off the loss on that image, so that most of the
    noise of both goes.
    """
    steps = sorted({record["step"] for record in run.records("denoising")})
    if not steps:
        return ()
    best, points = best_on_probes(plan, coupling, run.recipe().seed), []
    for step in steps:
        losses = kept_losses(run, step)
        if losses is not None:
            same = losses[:, : best.shape[1]]
            points.append(_point(step, same, same - best))
    return tuple(points)


def _point(step: int, losses: Tensor, above: Tensor) -> ExcessPoint:
    by_level = [mean_of(row) for row in above]
    whole = mean_of(above[:AVERAGED].mean(dim=0))
    loss = tuple(float(row.mean()) for row in losses)
    excess = tuple(mean.value for mean in by_level)
    error = tuple(mean.error for mean in by_level)
    return ExcessPoint(step, loss, excess, error, whole.value, whole.error)
