"""What was found, in plain sentences made from the numbers; also when pairing does not help."""

from dataclasses import dataclass

from immiscible_diffusion.reporting.compare.estimate import Estimate
from immiscible_diffusion.reporting.compare.results import Comparison
from immiscible_diffusion.reporting.compare.speedup import (
    Speedup,
    kept_by_control,
    last_steps,
    speedup,
)


@dataclass(frozen=True)
class Finding:
    """One coupling's result: ``verdict`` as in Speedup, one sentence, and a few more."""

    coupling: str
    verdict: str
    headline: str
    detail: str

    @property
    def text(self) -> str:
        """All sentences."""
        return f"{self.headline} {self.detail}".strip()


def number(value: float) -> str:
    """Three significant digits, without exponent for usual sizes: 0.0123, 1.20, 12,300."""
    if abs(value) >= 999.5:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:#.3g}".removesuffix(".") if value else "0"


def with_interval(estimate: Estimate | None) -> str:
    """An estimate for a table: '2.1 (1.8 to 2.5)', '> 14', '1.9 (one seed)' or '-'."""
    if estimate is None:
        return "-"
    if estimate.bound == "~":
        return "bounded from both sides"
    text = f"{estimate.bound} {number(estimate.value)}".strip()
    if estimate.low is not None and estimate.high is not None:
        return f"{text} ({number(estimate.low)} to {number(estimate.high)})"
    return f"{text} (one seed)" if estimate.seeds == 1 else text


def findings(comparison: Comparison) -> list[Finding]:
    """One finding per coupling that is neither baseline nor control, in the order given."""
    return [_finding(comparison, entry.name) for entry in comparison.treated]


def summary(comparison: Comparison) -> str:
    """What pairing does at every sampling budget."""
    if not comparison.treated:
        return "There is no coupling to compare with the baseline."
    lines = " ".join(_at_budget(comparison, budget) for budget in comparison.sampling_steps)
    return f"Training steps needed to equal {comparison.baseline.label}. {lines}"


MEANINGS = {
    "helps": "fewer with",
    "ends better": "not bounded, but better in the end with",
    "hurts": "more (pairing hurts) with",
    "ends worse": "not bounded, but worse in the end with",
    "unresolved": "no difference resolved for",
    "one seed": "one seed only, so no interval, for",
    "missing": "not measured for",
}


def _at_budget(comparison: Comparison, budget: int) -> str:
    """'With 20 Euler steps: fewer with assignment; more (pairing hurts) with knn:k=16.'."""
    verdicts = {e.label: speedup(comparison, e.name, budget).verdict for e in comparison.treated}
    parts = [
        f"{meaning} {_join([label for label in verdicts if verdicts[label] == verdict])}"
        for verdict, meaning in MEANINGS.items()
        if verdict in verdicts.values()
    ]
    return f"With {_budget(comparison, budget)}: {'; '.join(parts)}."


def missing(comparison: Comparison) -> list[str]:
    """What the comparison lacks, in sentences; empty when complete."""
    lines = []
    present = {(cell.coupling, cell.seed): cell for cell in comparison.cells}
    if not present:
        return ["No run has been evaluated yet."]
    for entry in comparison.couplings:
        absent = [seed for seed in comparison.seeds if (entry.name, seed) not in present]
        if absent:
            lines.append(f"{entry.label}: no run of {_seeds(absent)}.")
        lasts = [last_steps(comparison, entry.name, budget) for budget in comparison.sampling_steps]
        for cell in comparison.cells_of(entry.name):
            reached = min(last.get(cell.seed, 0) for last in lasts)
            if reached < max(comparison.eval_steps, default=0) or not cell.finished:
                lines.append(
                    f"{entry.label}, seed {cell.seed}: "
                    + (f"evaluated up to step {reached:,}" if reached else "not evaluated in full")
                    + f" of {comparison.total_steps:,}"
                    + ("." if cell.finished else ", not finished.")
                )
    return lines


def _finding(comparison: Comparison, name: str) -> Finding:
    head = speedup(comparison, name, comparison.headline_steps)
    others = [b for b in comparison.sampling_steps if b != comparison.headline_steps]
    sentences = [_quality(comparison, head), _wall(head)]
    sentences.append(_elsewhere(comparison, [speedup(comparison, name, b) for b in others]))
    sentences.append(_control(comparison, name))
    detail = " ".join(sentence for sentence in sentences if sentence)
    return Finding(name, head.verdict, _headline(comparison, head), detail)


def _headline(comparison: Comparison, result: Speedup) -> str:
    label = comparison.entry(result.coupling).label
    where = f"at {_budget(comparison, result.budget)}"
    base, steps = comparison.baseline.label, result.steps
    if result.verdict == "missing":
        return f"{label} {where}: no seed has been evaluated for both it and {base}."
    if steps is None or steps.bound == "~":
        end = f", but it {result.verdict}" if result.verdict.startswith("ends") else ""
        return f"{label} {where}: the evaluated steps do not bound a speed-up{end}."
    span = _span(steps, result)
    if result.verdict == "unresolved":
        return f"{label} {where}: no difference resolved; speed-up {span}."
    if result.verdict == "one seed":
        return f"{label} {where}: speed-up {span}; one seed gives no interval."
    if result.verdict == "hurts":
        slower = number(1 / steps.value)
        most = "more than " if steps.bound else ""
        return f"{label} hurts {where}: it needs {most}{slower} times the steps (speed-up {span})."
    least = "more than " if steps.bound else ""
    return (
        f"{label} needs {least}{number(steps.value)} times fewer training steps than {base} "
        f"{where} ({span.partition(', ')[2]})."
    )


def _span(steps: Estimate, result: Speedup) -> str:
    """Value, interval and seeds: '2.1, 95% interval 1.8 to 2.5, 3 seeds'."""
    seeds = f"{steps.seeds} seeds" if steps.seeds > 1 else "one seed"
    if steps.bound:
        bounded = sum(row.bound != "" for row in result.seeds)
        return f"{steps.bound} {number(steps.value)}, a bound on {bounded} of {seeds}"
    if steps.low is None or steps.high is None:
        return f"{number(steps.value)}, {seeds}"
    low, high = number(steps.low), number(steps.high)
    return f"{number(steps.value)}, 95% interval {low} to {high}, {seeds}"


def _quality(comparison: Comparison, result: Speedup) -> str:
    base, other, ratio = result.baseline_final, result.coupling_final, result.quality_ratio
    if base is None or other is None or ratio is None:
        return ""
    text = f"Its {comparison.measure} ends at {number(other.value)} against {number(base.value)}"
    if ratio.low is not None and ratio.high is not None:
        text += f" (ratio {number(ratio.value)}, {number(ratio.low)} to {number(ratio.high)})"
    if result.resolved is False and comparison.floor is not None:
        floor = comparison.floor
        if max(base.value, other.value) < floor.high:
            text += "; both lie within what real data differ from real data by"
        else:
            text += "; they differ by less than the spread of real data against real data"
        text += f" ({number(floor.low)} to {number(floor.high)}), so the difference is not resolved"
    elif ratio.low is not None and not ratio.excludes_one:
        text += ", no difference resolved over the seeds"
    if result.horizon is not None and result.horizon < comparison.total_steps:
        text += f", after {result.horizon:,} of {comparison.total_steps:,} steps"
    return text + "."


def _wall(result: Speedup) -> str:
    if result.wall is None or result.wall.bound == "~":
        return ""
    return f"Speed-up in training time, cost of pairing included: {with_interval(result.wall)}."


def _elsewhere(comparison: Comparison, results: list[Speedup]) -> str:
    parts = [f"{result.budget}: {_brief(result)}" for result in results]
    sampler = comparison.sampler_name
    return f"Speed-up at other numbers of {sampler} steps: {'; '.join(parts)}." if parts else ""


def _brief(result: Speedup) -> str:
    if result.verdict == "missing":
        return "not measured"
    if result.steps is None or result.steps.bound == "~":
        ratio = with_interval(result.quality_ratio)
        return f"not bounded, final distance {ratio} times the baseline's"
    end = {"unresolved": ", no difference resolved", "hurts": ", hurts"}.get(result.verdict, "")
    return with_interval(result.steps) + end


def _control(comparison: Comparison, name: str) -> str:
    control = comparison.control(name)
    if name.startswith("shuffled:"):
        return "It is itself a control: its noises are those of a pairing, given to other data."
    if control is None:
        return "There is no shuffled control, so how much of this is pairing is not known."
    kept = [kept_by_control(comparison, name, budget) for budget in comparison.sampling_steps]
    clear = [k for k in kept if k is not None and k.share is not None]
    if not any(kept):
        return "Its shuffled control was not measured."
    if not clear:
        return "No budget has a resolved gain that its shuffled control could keep."
    parts = [f"{share(k.share)} at {k.budget}" for k in clear]
    return (
        f"The same noises shuffled over the batch, so without pairing, keep {_join(parts)} "
        f"{comparison.sampler_name} steps of the final gain."
    )


def share(value: float | None) -> str:
    """A share of a gain in words: '46%', 'not resolved', or 'none' where the control is worse."""
    if value is None:
        return "not resolved"
    return f"{100 * value:.0f}%" if value >= 0 else "none"


def _budget(comparison: Comparison, budget: int) -> str:
    return f"{budget} {comparison.sampler_name} step{'s' if budget > 1 else ''}"


def _seeds(seeds: list[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {_join([str(seed) for seed in seeds])}"


def _join(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)
