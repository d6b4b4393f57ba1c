"""What a pilot may say: helps or costs by so much, no effect above seed noise, or too little.

``log(d / d_none) = log(d / d_shuffled) + log(d_shuffled / d_none)``, with d the distance at the end of training: the
effect of a coupling is that of pairing, which its shuffled control lacks, plus that of the changed noise distribution,
which the control has. All three are paired by seed, with t-intervals. An effect is looked at from several starts and
with several sampling steps: the intervals hold together at 95%, each at 1 - 5% / comparisons (Bonferroni). A gain
counts if its interval excludes 1, the floor does not hide it, and the interval of pairing excludes 1 too.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from immiscible_diffusion.experiments.compare.plan import BASELINE, MATCHED
from immiscible_diffusion.reporting.compare import Comparison
from immiscible_diffusion.reporting.compare.speedup import floor_resolves
from immiscible_diffusion.utils.statistics import CONFIDENCE, Interval, ratio_interval, t_quantile

SHUFFLED = "shuffled:"
RELEVANT = 1.25  # an effect below this factor is called none
MIN_SEEDS, MAX_SEEDS = 3, 200
LEARNED = 0.5  # of the distance of samples that took no training

Finals = Mapping[tuple[str, int], Mapping[int, float]]
"""(coupling, sampling steps) -> seed -> distance at the end of training."""


@dataclass(frozen=True)
class Effect:
    """A coupling, sampled from one start in ``sampling_steps`` steps, against no pairing."""

    coupling: str  # with ``matched:`` where sampling starts from the noise it was trained on
    sampling_steps: int
    total: Interval  # distance / distance without pairing; below 1 the coupling is better
    pairing: Interval  # distance / distance of its shuffled control
    noise: Interval  # distance of the control / distance without pairing
    baseline: float  # mean distance without pairing
    final: float  # mean distance with the coupling
    above_floor: bool  # the floor does not hide the difference

    @property
    def verdict(self) -> str:
        """'helps', 'costs', 'noise' (the control gains no less), 'none', 'floor' or 'open'."""
        if self.total.excludes(1) and not self.above_floor:
            return "floor"
        if self.total.low > 1:
            return "costs"
        if self.total.high < 1 and self.pairing.high < 1:
            return "helps"
        if self.total.high < 1:
            return "noise" if is_narrow(self.pairing) or self.pairing.low > 1 else "open"
        return "none" if is_narrow(self.total) else "open"

    def __str__(self) -> str:
        steps = f"{self.sampling_steps} Euler step{'s' if self.sampling_steps > 1 else ''}"
        return f"{self.coupling.removeprefix(MATCHED)} sampled {self.start} in {steps}"

    @property
    def start(self) -> str:
        """Where sampling starts, in words."""
        return "from its own noise distribution" if self.coupling.startswith(MATCHED) else "from N(0, I)"


@dataclass(frozen=True)
class Verdict:
    """How a pilot ends."""

    kind: str  # 'helps', 'costs', 'none' or 'too little'
    # the effect, how much of it is pairing, how much the changed noise; of 'too little' one alone
    sentences: tuple[str, ...]
    effects: tuple[Effect, ...] = ()  # all that was looked at
    level: float = CONFIDENCE  # of each interval
    seeds_needed: int | None = None  # that would tell, where too few did
    seeds: tuple[int, ...] = ()  # that all couplings finished
    untrained: float | None = None  # distance of what takes no training


def is_narrow(interval: Interval) -> bool:
    """Whether an effect of ``RELEVANT`` would have been seen."""
    return interval.low > 1 / RELEVANT and interval.high < RELEVANT


def seeds_for(std: float, level: float) -> int:
    """Seeds after which an effect of ``RELEVANT`` is seen, if logs deviate by ``std``."""
    for seeds in range(MIN_SEEDS, MAX_SEEDS):
        if t_quantile(seeds - 1, level) * std / math.sqrt(seeds) <= math.log(RELEVANT):
            return seeds
    return MAX_SEEDS


def finals_of(comparison: Comparison) -> Finals:
    """The distances at the last step, on the seeds that all couplings have finished."""
    done = [{t.seed for t in comparison.trials_of(entry.name) if t.finished} for entry in comparison.couplings]
    seeds = set.intersection(*done)
    finals: dict[tuple[str, int], dict[int, float]] = {}
    for trial in (trial for trial in comparison.trials if trial.seed in seeds):
        for m in trial.metrics:
            if m.step == comparison.total_steps and m.value is not None:
                finals.setdefault((trial.coupling, m.sampling_steps), {})[trial.seed] = m.value
    return finals


def effects_of(finals: Finals, coupling: str, floor: tuple[float, float] | None) -> tuple[tuple[Effect, ...], float]:
    """Every effect that ``finals`` allow, and the level of their intervals."""
    names = [n for n in (MATCHED + coupling, coupling) if any(n == name for name, _ in finals)]
    sampling_steps = sorted({steps for _, steps in finals})
    level = 1 - (1 - CONFIDENCE) / (len(names) * len(sampling_steps))
    effects = []
    for name in names:
        prefix = MATCHED if name.startswith(MATCHED) else ""
        for steps in sampling_steps:
            values, baseline = finals[name, steps], finals[BASELINE, steps]
            control = finals[prefix + SHUFFLED + coupling, steps]
            pairs = ((values, baseline), (values, control), (control, baseline))
            total, pairing, noise = (ratio_interval(*p, confidence=level) for p in pairs)
            means = fmean(baseline.values()), fmean(values.values())
            effects.append(Effect(name, steps, total, pairing, noise, *means, floor_resolves(floor, *means)))
    return tuple(effects), level


def verdict_of(finals: Finals, coupling: str, *, floor: tuple[float, float] | None, untrained: float) -> Verdict:
    """The verdict on ``coupling`` from distances at the end of training, on the same seeds.

    ``floor`` has the smallest and the largest distance between sets of real data, if known; ``untrained`` is the
    distance of what takes no training: pure noise, or the mean of the data.
    """
    seeds = sorted(next(iter(finals.values()), {}))
    if len(seeds) < MIN_SEEDS:
        text = f"too little time to tell: {len(seeds)} of at least {MIN_SEEDS} seeds were finished"
        return Verdict("too little", (text,), (), CONFIDENCE, MIN_SEEDS, tuple(seeds), untrained)
    effects, level = effects_of(finals, coupling, floor)
    kinds = {e.verdict for e in effects}
    kind, needed = "too little", None
    sentences: tuple[str, ...]
    if (best := min(e.baseline for e in effects)) > LEARNED * untrained:
        text = "too little time to tell: without pairing the network has hardly learned anything yet"
        sentences = (f"{text} (distance {best:.3g}, without training {untrained:.3g})",)
    elif "helps" in kinds:
        kind, sentences = "helps", _helps(effects)
    elif "costs" in kinds:
        kind, sentences = "costs", _costs(effects)
    elif "open" in kinds:
        waiting = [e.pairing if e.total.high < 1 else e.total for e in effects if e.verdict == "open"]
        widest = max(max(i.high, 1 / i.low) for i in waiting)
        needed = max(len(seeds) + 1, *(seeds_for(i.std, level) for i in waiting))
        text = f"{len(seeds)} seeds leave room for an effect of {widest - 1:.0%} either way"
        sentences = (f"too little time to tell: {text}",)
    elif "floor" in kinds:
        text = "too little data to tell: the difference is within what two sets of real data of this size differ by"
        sentences = (text,)
    else:
        kind, sentences = "none", _none(effects)
    return Verdict(kind, sentences, effects, level, needed, tuple(seeds), untrained)


def _helps(effects: tuple[Effect, ...]) -> tuple[str, ...]:
    best = min((e for e in effects if e.verdict == "helps"), key=lambda e: e.total.value)
    worst = max(effects, key=lambda e: (e.verdict == "costs", e.total.value))
    text = f"helps by {_percent(best.total)}: {best}"
    if worst.verdict == "costs":
        text += f"; but costs {_percent(worst.total)}: {worst}"
    return text, *_parts(best)


def _costs(effects: tuple[Effect, ...]) -> tuple[str, ...]:
    worst = max((e for e in effects if e.verdict == "costs"), key=lambda e: e.total.value)
    text = f"costs {_percent(worst.total)}: {worst}"
    others = [e for e in effects if e.start != worst.start]
    if others and all(e.verdict != "costs" for e in others):
        text += f"; {others[0].start} no cost is resolved"
    return text, *_parts(worst)


def _none(effects: tuple[Effect, ...]) -> tuple[str, ...]:
    best = min(effects, key=lambda e: (e.verdict != "noise", e.total.value))
    if best.verdict == "noise":
        text = f"no gain by pairing: {best} is {_percent(best.total)} nearer to the data than without pairing, "
        text += "but by its changed noise distribution"
    else:
        widest = max(max(e.total.high, 1 / e.total.low) for e in effects)
        text = f"no effect above seed noise: one of {widest - 1:.0%} would have been seen"
    return text, *_parts(best)


def _parts(effect: Effect) -> tuple[str, str]:
    """What pairing does of an effect, and what the changed noise distribution."""
    return (
        f"pairing itself, against the same noises shuffled: {_part(effect.pairing)}",
        f"the changed noise distribution, shuffled against N(0, I): {_part(effect.noise)}",
    )


def _part(interval: Interval) -> str:
    if interval.excludes(1):
        return f"{'helps by' if interval.high < 1 else 'costs'} {_percent(interval)}"
    ends = f"{interval.low - 1:+.0%} to {interval.high - 1:+.0%} of the distance"
    return f"{'no effect above seed noise' if is_narrow(interval) else 'not resolved'} ({ends})"


def _percent(interval: Interval) -> str:
    """The change of the distance, less or more, with its interval."""
    sign = 1 if interval.value < 1 else -1
    low, high = sorted(sign * (1 - end) for end in (interval.low, interval.high))
    return f"{sign * (1 - interval.value):.0%} ({low:.0%} to {high:.0%})"
