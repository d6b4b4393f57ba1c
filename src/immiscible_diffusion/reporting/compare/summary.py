"""What a comparison says, in sentences made from the record, gain and limit alike."""

import math
from collections.abc import Sequence
from statistics import fmean

from immiscible_diffusion.reporting.compare import controls
from immiscible_diffusion.reporting.compare.records import Comparison, CouplingEntry
from immiscible_diffusion.reporting.compare.speedup import Speedup, Verdict, last_steps, speedups
from immiscible_diffusion.reporting.compare.tables import final_points, interval_text, listed, range_text, value_text
from immiscible_diffusion.reporting.html import number
from immiscible_diffusion.utils.statistics import CONFIDENCE, Interval

BELOW = 4.0  # standard errors below 0 that make an excess loss a fault: there are many of them


def sentences(comparison: Comparison, results: Sequence[Speedup] | None = None) -> list[str]:
    """The headline, and what to hold against it: number of comparisons, controls and second metric of the best one."""
    results = speedups(comparison) if results is None else results
    best = best_coupling(comparison, results)
    held = [*controls.remarks(comparison, best), *controls.disagreements(comparison, best)] if best else []
    return [headline(comparison, results), chance(results), *held]


def headline(comparison: Comparison, results: Sequence[Speedup]) -> str:
    """What the best coupling saves in steps of training and of the sampler, and where it does not."""
    best = best_coupling(comparison, results)
    if best is None:
        return "No coupling has been measured." if comparison.treated else "There is no coupling to compare."
    count = len({r.coupling for r in results} & {entry.name for entry in comparison.treated})
    first = f"{best.label}{f', the best of {count} couplings,' if count > 1 else ''}"
    training, sampling = headline_results(comparison, results, best.name)
    text = f"{first} {_savings(comparison, training, 'training')}."
    if any(r.steps for r in sampling):
        text += f" At the end of training it {_savings(comparison, sampling, 'sampling')}."
    resolved, tests = [r for r in (*training, *sampling) if r.is_resolved], sum(r.p_value is not None for r in results)
    if any(r.holds for r in resolved):
        return f"{text} †: still so after Holm's correction for all {tests} comparisons."
    return f"{text} None of it holds after Holm's correction for all {tests} comparisons." if resolved else text


def headline_results(comparison: Comparison, results: Sequence[Speedup], name: str) -> list[list[Speedup]]:
    """The two savings of the coupling ``name`` that the headline speaks of."""
    many = {comparison.headline_steps, max(comparison.sampling_steps)}
    found = [[r for r in results if (r.coupling, r.saves) == (name, saves)] for saves in ("training", "sampling")]
    first = {r.sampling_steps: r.repeats or r.sampling_steps for r in found[1]}
    shown = {*many, *sorted(comparison.sampling_steps)[:2]}, {first.get(steps, 0) for steps in many}
    return [[r for r in each if r.sampling_steps in steps] for each, steps in zip(found, shown, strict=True)]


def best_coupling(comparison: Comparison, results: Sequence[Speedup]) -> CouplingEntry | None:
    """The coupling, no control, with the greatest mean log speed-up in training steps over the sampling steps.

    Where a curve says nothing about steps, by the final metric.
    """

    def gain(entry: CouplingEntry) -> tuple[int, float]:
        measured = [r for r in results if (r.coupling, r.saves) == (entry.name, "training") and r.quality_ratio]
        means = [r.steps or r.quality_ratio.reciprocal for r in measured if r.quality_ratio]
        return len(means), fmean(math.log(mean.value) for mean in means) if means else 0.0

    best = max(comparison.treated, key=gain, default=None)
    return best if best and gain(best)[0] else None


def _savings(comparison: Comparison, results: Sequence[Speedup], saves: str) -> str:
    """'needs 2.1 (1.8 to 2.5) times fewer training steps than A at 5 Euler steps; no difference is resolved at 20'."""
    base, preposition = comparison.baseline.label, "at" if saves == "training" else "with"
    named: list[Speedup] = []

    def where(result: Speedup) -> str:
        named.append(result)  # the first names the unit
        steps = result.sampling_steps
        return f"{preposition} {steps if len(named) > 1 else comparison.steps_text(steps)}"

    def marks(result: Speedup) -> str:
        return "†" * result.holds + " (below the floor)" * result.hidden

    def times(result: Speedup, ratio: Interval) -> str:
        word, ratio = ("fewer", ratio) if result.verdict is Verdict.HELPS else ("more", ratio.reciprocal)
        least = f"more than {number(ratio.value)} times " if ratio.value > 1.005 else ""
        text = least if result.bound else f"{interval_text(ratio)} times "
        return f"{text}{word}{'' if named else f' {saves} steps than {base}'} {where(result)}{marks(result)}"

    def values(result: Speedup) -> str:
        ends = (value_text(result.steps, result.bound), range_text(result.steps))
        return f"{where(result)} ({', '.join(filter(None, ends))})" if result.steps else where(result)

    ordered = [r for verdict in Verdict for r in results if r.verdict is verdict]
    needs = [times(r, r.steps) for r in ordered if r.is_resolved and r.steps]
    finals = [
        f"{interval_text(r.quality_ratio)} times that of {base} {where(r)}{marks(r)}"
        for r in ordered
        if r.is_resolved and r.steps is None
    ]
    parts = [f"needs {listed(needs)}"] if needs else []
    parts += [f"has a best {comparison.metric} {listed(finals)}"] if finals else []
    if unresolved := [values(r) for r in ordered if r.verdict is Verdict.UNRESOLVED]:
        lead = "no difference is resolved " if parts else f"has no resolved difference in {saves} steps from {base}: "
        parts.append(lead + listed(unresolved))
    if absent := [where(r) for r in ordered if r.verdict is Verdict.NOT_MEASURED]:
        parts.append(f"is not measured {listed(absent)}")
    hurts = {r.verdict for r in results if r.is_resolved} == {Verdict.HURTS}
    return (f"saves no {saves} steps: it " if hurts else "") + "; ".join(parts)


def chance(results: Sequence[Speedup]) -> str:
    """How many verdicts there would be if nothing had an effect, and how many there are."""
    count = sum(r.p_value is not None for r in results)
    if not count:
        return "One seed has no interval, so nothing here is resolved."
    resolved, left = [r for r in results if r.is_resolved], sum(r.holds for r in results)
    hidden = sum(r.hidden for r in resolved)
    return (
        f"{count} comparisons; about {(1 - CONFIDENCE) * count:.2g} would be resolved if nothing had an effect. "
        f"{len(resolved)} are{f' ({hidden} of them below the floor)' if hidden else ''}, "
        f"{left} after Holm's correction for their number."
    )


def missing(comparison: Comparison) -> list[str]:
    """The trials that a comparison lacks, in sentences; empty when complete."""
    if not comparison.trials:
        return ["No trial has been evaluated yet."]
    lines = []
    for entry in comparison.couplings:
        trials = comparison.trials_of(entry.name)
        absent = sorted(set(comparison.seeds) - {trial.seed for trial in trials})
        if absent:
            lines.append(f"{entry.label}: no trial of seed {', '.join(map(str, absent))}.")
        lasts = [last_steps(comparison, entry.name, s) for s in comparison.sampling_steps]
        for trial in trials:
            reached = min(last.get(trial.seed, 0) for last in lasts)
            if reached < max(comparison.eval_steps, default=0) or not trial.finished:
                lines.append(
                    f"{entry.label}, seed {trial.seed}: evaluated up to step {reached:,} of "
                    f"{comparison.total_steps:,}{'' if trial.finished else ', not finished'}."
                )
    return lines


def excess_remarks(comparison: Comparison) -> list[str]:
    """Which irreducible losses are estimated or left out and why, and which excess is below 0."""
    if comparison.excess is None:
        return []
    lines, levels = [], comparison.excess.levels
    for entry in comparison.excess.couplings:
        name, cause = entry.coupling, "which cannot be: its loss or its density is at fault"
        if entry.skipped:
            lines.append(f"{name}: no irreducible loss; {entry.skipped}.")
        elif entry.estimate:
            cause = "where the estimate of its density falls short"
            lines.append(
                f"{name} has no density in closed form: its optimal denoiser is {entry.estimate}. "
                "It may lose more than the best possible one; the true excess loss is then higher."
            )
        points = final_points(comparison, name)
        rows = [row for p in points for row in zip(levels, p.excess, p.error, strict=True)]
        below = sorted({t for t, value, error in rows if value < -BELOW * error})
        if below:
            times = ", ".join(f"{t:g}" for t in below)
            lines.append(f"{name}: below 0 by more than {BELOW:g} standard errors at t = {times}, {cause}.")
    return lines
