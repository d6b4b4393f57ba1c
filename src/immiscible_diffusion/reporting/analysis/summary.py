"""What an analysis shows, in one sentence per coupling with a verdict."""

import math
from dataclasses import dataclass
from enum import Enum

from immiscible_diffusion.reporting.analysis import records
from immiscible_diffusion.reporting.html import number

SMALL = 1000  # samples
# docs/results/prediction.md: 50 points, stated before they were measured.
NO_RECOMMENDATION = (
    "No coupling is recommended: how many training steps one saves does not follow from these figures (where both "
    "were measured, the reduction of the irreducible loss did not predict the speed-up: correlation -0.08 at 5 and "
    "-0.14 at 20 Euler steps). Seen afterwards, so to be confirmed: KL from N(0, I) went with harm where sampling "
    "starts from N(0, I) (-0.46 and -0.77), mostly between families of couplings. Measure it on your data: "
    "immiscible pilot (minutes, a small network), or immiscible compare (a recipe)."
)


class Verdict(Enum):
    """What a coupling does to the distribution of the noise."""

    UNPAIRED = "no pairing"
    PRESERVED = "stays N(0, I)"
    CHANGED = "no longer N(0, I)"
    UNRESOLVED = "unresolved"
    FAILED = "estimate failed"


@dataclass(frozen=True)
class Finding:
    """One sentence on one coupling."""

    coupling: str
    verdict: Verdict
    text: str

    def __str__(self) -> str:
        return f"{self.coupling} [{self.verdict.value}]: {self.text}"


def verdict_of(coupling: records.CouplingRecord) -> Verdict:
    """By its KL from N(0, I): exactly 0, above 0 by three standard errors, or neither."""
    kl = coupling.noise.kl
    if coupling.name == records.BASELINE:
        return Verdict.UNPAIRED
    if coupling.failed:
        return Verdict.FAILED
    if kl == (0, 0):
        return Verdict.PRESERVED
    changed = kl.is_known and kl.value > max(records.SURE * kl.bar, records.LEAST_KL)
    return Verdict.CHANGED if changed else Verdict.UNRESOLVED


def findings(record: records.AnalysisRecord) -> list[Finding]:
    """One finding per coupling, the baseline's first."""
    return [
        Finding(one.name if one.failed else one.label, verdict_of(one), _sentence(record, one))
        for one in sorted(record.couplings, key=lambda one: one.name != records.BASELINE)
    ]


def _sentence(record: records.AnalysisRecord, coupling: records.CouplingRecord) -> str:
    verdict, t = verdict_of(coupling), record.main_time
    if verdict is Verdict.FAILED:
        reason = (
            "negative log-likelihood and entropy, which are equal for every true density, differ, "
            "or the information comes out below 0: no figure is given"
        )
        if coupling.noise.kl == (0, 0):
            reason += "; by construction the noise stays N(0, I)"
        return f"Its density could not be estimated on these data ({reason})."
    parts = [f"At t = {t:g} a noisy point may come from {_count(coupling.miscibility, record, t)}"]
    if coupling.conditional:
        parts.append(f"given the condition from {_count(coupling.conditional[0], record, t)}")
    if verdict is not Verdict.UNPAIRED:
        total = math.log(record.data.samples)
        parts.append(f"the noise tells {coupling.noise.information} of {total:.1f} nats")
    if verdict in (Verdict.CHANGED, Verdict.UNRESOLVED):
        parts.append(f"KL of all noise from N(0, I): {coupling.noise.kl} nats")
    return "; ".join(parts) + _remedy(record, coupling) + "."


def _count(mixing: records.Miscibility, record: records.AnalysisRecord, t: float) -> str:
    effective, total = mixing.at(t, "effective"), mixing.effective_count.value
    return f"{counted(effective)} of {count(total)} {record.data.noun}"


def _remedy(record: records.AnalysisRecord, coupling: records.CouplingRecord) -> str:
    """What to do where sampling would start beside what was trained; a control gets none."""
    if verdict_of(coupling) is not Verdict.CHANGED or "shuffled:" in coupling.name:
        return ""
    if record.data.masked:
        return " (calibration and the matched start are not available for masked data)"
    train = f"train with calibrated:{coupling.name}, or "
    return f" ({'' if 'calibrated:' in coupling.name else train}sample with --init-noise matched)"


def condition_summary(record: records.AnalysisRecord) -> str:
    """How much is mixed given the condition; empty without one."""
    coupling = next((one for one in record.couplings if one.conditional), None)
    if coupling is None:
        return ""
    main, *others = coupling.conditional
    nats = [math.log(max(1.0, one.effective_count.value)) for one in (main, *others)]
    at_others = ""
    if others:
        at_others = f" ({min(nats[1:]):.2f} to {max(nats[1:]):.2f} at the other bandwidths)"
    return (
        f"Given {main.condition}, a sample is mixed with others by at most log {count(main.effective_count.value)} = "
        f"{nats[0]:.2f} nats{at_others}, against log {main.samples:,} = {math.log(main.samples):.2f} without the "
        f"condition{': next to nothing is left for pairing to unmix' if nats[0] < 0.05 else ''}."
    )


def remarks(record: records.AnalysisRecord) -> list[str]:
    """What else a reader must know."""
    few = record.data.samples
    small = f"Only {few} samples: a network can memorize them, with or without pairing."
    return [small, NO_RECOMMENDATION] if few < SMALL else [NO_RECOMMENDATION]


def summary_lines(record: records.AnalysisRecord) -> list[str]:
    """Everything above, as lines of text."""
    lines = [condition_summary(record), *map(str, findings(record)), *remarks(record)]
    return [line for line in lines if line]


def count(value: float) -> str:
    """A number of samples: 1,790 or 42.8 or 1.07."""
    return f"{value:,.0f}" if value >= 99.95 or value.is_integer() else number(value)


def counted(mean: records.Mean) -> str:
    """A mean number of samples: whole where there are many."""
    if not mean.value >= 100:
        return str(mean)
    return f"{mean.value:,.0f} ± {mean.bar:,.0f}" if mean.bar >= 1 else f"{mean.value:,.0f}"


def ratio(one: records.Mean, other: records.Mean) -> records.Mean:
    """Of two means, as if independent; unknown where the divisor may be 0."""
    if not one.is_known or not other.value > 4 * other.bar:
        return records.UNKNOWN
    value = one.value / other.value
    return records.Mean(value, math.hypot(one.bar, value * other.bar) / other.value)
