"""What a comparison says, in sentences: a verdict with its evidence for each coupling."""

from dataclasses import dataclass

from immiscible_diffusion.reporting.compare.records import Comparison
from immiscible_diffusion.reporting.compare.speedup import Speedup, Verdict, last_steps, share_of_control, speedup
from immiscible_diffusion.reporting.compare.tables import final_points, interval_text, share_text

BELOW = 4.0  # standard errors below 0 that make an excess loss a fault: there are many of them


@dataclass(frozen=True)
class Finding:
    """The verdict on one coupling at the headline sampling steps, and its evidence."""

    coupling: str
    label: str
    verdict: Verdict
    evidence: str

    @property
    def text(self) -> str:
        """The whole sentence."""
        return f"{self.label}: {self.verdict.value}. {self.evidence}"


def findings(comparison: Comparison) -> list[Finding]:
    """One finding for each coupling that is neither baseline nor control, in the order given."""
    every = {e: speedup(comparison, e.name, comparison.headline_steps) for e in comparison.treated}
    return [
        Finding(entry.name, entry.label, result.verdict, _evidence(comparison, result))
        for entry, result in every.items()
    ]


def summary(comparison: Comparison) -> str:
    """The verdicts, a line for each number of sampling steps: 'With 20 Euler steps: helps: A.'."""
    if not comparison.treated:
        return "There is no coupling to compare with the baseline."
    lines = []
    for steps in comparison.sampling_steps:
        verdicts = {e.label: speedup(comparison, e.name, steps).verdict for e in comparison.treated}
        groups = {v: [label for label in verdicts if verdicts[label] == v] for v in Verdict}
        parts = [f"{v.value}: {', '.join(labels)}" for v, labels in groups.items() if labels]
        lines.append(f"With {comparison.steps_text(steps)}: {'; '.join(parts)}.")
    return "\n".join([f"Training steps against {comparison.baseline.label}.", *lines])


def _evidence(comparison: Comparison, result: Speedup) -> str:
    base, final = result.baseline_final, result.coupling_final
    if base is None or final is None:
        return f"No seed has been evaluated for both it and {comparison.baseline.label}."
    where, seeds = comparison.steps_text(result.sampling_steps), len(result.seeds)
    steps = interval_text(result.steps, result.bound) if result.steps else "not bounded"
    wall = f", in time {interval_text(result.wall, result.bound)}" if result.wall else ""
    text = (
        f"With {where}, speed-up in training steps {steps}{wall}; final {comparison.metric} {interval_text(final)} "
        f"against {interval_text(base)}, ratio {interval_text(result.quality_ratio)}; {seeds} "
        f"seed{'s' if seeds != 1 else ' gives no interval'}."
    )
    if result.resolved is False and (floor := comparison.floor):
        ends = f"{floor.low:.3g} to {floor.high:.3g} of real against real data"
        text += f" The floor ({ends}) hides the difference of the final values."
    if result.horizon and result.horizon < comparison.total_steps:
        text += f" Compared after {result.horizon:,} of {comparison.total_steps:,} steps."
    return f"{text} {_control(comparison, result.coupling)}"


def _control(comparison: Comparison, name: str) -> str:
    if name.startswith("shuffled:"):
        return "It is itself a control: the noise of a pairing, shuffled over the batch."
    if comparison.control(name) is None:
        return "No shuffled control, so how much of this is pairing is not known."
    shares = [share_of_control(comparison, name, steps) for steps in comparison.sampling_steps]
    parts = [f"{share_text(s.share)} at {s.sampling_steps}" for s in shares if s and s.share is not None]
    if not any(shares):
        return "Its shuffled control was not measured."
    if not parts:
        return "Its gains are too small to tell what the shuffled control keeps of them."
    return (
        f"The shuffled control, without pairing, keeps {', '.join(parts)} "
        f"{comparison.sampler_name} steps of the final gain."
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
