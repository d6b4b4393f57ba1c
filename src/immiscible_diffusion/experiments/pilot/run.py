"""A probe from its data to its verdict: warm-up, plan, cells, and what they say."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.analysis.cache import content_of
from immiscible_diffusion.couplings import check_coupling_name
from immiscible_diffusion.experiments.pilot.cells import KEPT, Bench
from immiscible_diffusion.experiments.pilot.division import (
    FEWEST_STEPS,
    SHARE,
    USUAL_SEEDS,
    Division,
    divide,
    minutes_for,
)
from immiscible_diffusion.experiments.pilot.features import floor_of
from immiscible_diffusion.experiments.pilot.network import Network
from immiscible_diffusion.experiments.pilot.pictured import DATA, is_picture, keep_picture
from immiscible_diffusion.experiments.pilot.prepared import FEWEST, Prepared
from immiscible_diffusion.experiments.pilot.records import Store, finals
from immiscible_diffusion.experiments.pilot.verdict import MATCHED, SHUFFLED, Verdict, judge
from immiscible_diffusion.experiments.pilot.warm_up import TimeUp, measure
from immiscible_diffusion.metrics import Floor
from immiscible_diffusion.utils.progress import Progress
from immiscible_diffusion.utils.signals import Interrupted, InterruptGuard


@dataclass(frozen=True)
class Settings:
    """What is asked.

    Args:
        coupling: does it help?
        minutes: in all.
        sampling_steps: numbers of Euler steps to sample with.
        network: auto, mlp or unet.
        seed: the first of the seeds.
        seeds: how many; None = what the minutes allow.
        steps: of training; None = what the minutes allow.
        matched: sample from the law of the coupling's noise too.
    """

    coupling: str = "knn:k=16"
    minutes: float = 10.0
    sampling_steps: tuple[int, ...] = (5, 20)
    network: str = "auto"
    seed: int = 0
    seeds: int | None = None
    steps: int | None = None
    matched: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.minutes < math.inf:
            raise ValueError(f"minutes must be above 0, got {self.minutes}")
        if (
            not self.sampling_steps
            or min(self.sampling_steps) < 1
            or len(set(self.sampling_steps)) < len(self.sampling_steps)
        ):
            raise ValueError(
                f"sampling_steps must be different numbers of steps >= 1, got {self.sampling_steps}"
            )
        for name in ("seeds", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.coupling == "independent" or self.coupling.startswith((MATCHED, SHUFFLED)):
            raise ValueError(
                f"coupling '{self.coupling}': name the coupling itself, such as knn:k=16; a probe "
                f"trains without pairing, with the shuffled control, and samples from the matched "
                f"start by itself"
            )
        check_coupling_name(self.coupling, allow_import=True)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a probe found: its verdict and all that its record needs."""

    verdict: Verdict
    division: Division | None
    floor: Floor | None
    untrained: float | None


class Probe:
    """A probe of one coupling on one set of data.

    Args:
        prepared: the data.
        settings: what is asked.
        store: where it is kept.
        device: where to train.
        quiet: show no progress.
    """

    def __init__(
        self,
        prepared: Prepared,
        settings: Settings,
        store: Store,
        *,
        device: torch.device,
        quiet: bool = False,
    ) -> None:
        self.prepared, self.settings, self.store, self.quiet = prepared, settings, store, quiet
        network = Network.choose(settings.network, prepared.shape, device)
        self.bench = Bench(
            prepared, settings.coupling, settings.sampling_steps, network, device, settings.matched
        )
        self.began = time.monotonic()
        self.spent = 0.0  # by earlier calls

    def run(self) -> Outcome:
        """Train what is not finished yet, as long as there is time, and judge.

        Raises:
            Interrupted: on a signal; finished trainings are kept.
            ValueError: the folder holds another question, or a coupling fails on the data.
        """
        if (few := self.too_few()) is not None:
            return Outcome(few, None, None, None)
        division, needed = self.division()
        if division is None:
            said = (
                f"too little time to tell: {self.settings.minutes:g} minutes do not hold 3 seeds "
                f"of {FEWEST_STEPS} steps here; about {needed} minutes would"
            )
            return Outcome(Verdict("too little", said), None, None, None)
        self.train_all(division)
        return self.outcome(division)

    def too_few(self) -> Verdict | None:
        """The verdict on data that are too few to split in two."""
        if len(self.prepared) >= FEWEST:
            return None
        said = f"too little data to tell: {len(self.prepared)}, and it takes {FEWEST} at least"
        return Verdict("too little", said)

    # -- the plan ---------------------------------------------------------------------------------

    @cached_property
    def asked(self) -> dict[str, Any]:
        """The question: a folder holds one."""
        values = asdict(self.settings)
        data = self.prepared.batch.data
        return {
            **{name: list(v) if isinstance(v, tuple) else v for name, v in values.items()},
            "conditions": list(self.prepared.seen),
            "device": self.bench.device.type,
            "data": f"{self.prepared.name}, {tuple(data.shape)}, {content_of(self.prepared.batch)}",
        }

    def division(self, *, keep: bool = True) -> tuple[Division | None, int]:
        """How the minutes are spent, as planned before or by a warm-up; minutes needed if not."""
        plan = self.store.plan(self.asked)
        if plan is not None:
            values = plan["division"]
            self.spent = plan["warm_up"] + sum(cell.seconds for cell in self.store.cells())
            return Division(**{**values, "at": tuple(values["at"])}), 0
        settings = self.settings
        given = settings.seeds is not None and settings.steps is not None
        timing = measure(self.bench, settings.seed, 0 if given else 60 * settings.minutes)
        warm_up = time.monotonic() - self.began
        left = settings.minutes - warm_up / 60
        division = divide(left, timing, seeds=settings.seeds, steps=settings.steps)
        needed = minutes_for(timing, settings.seeds or USUAL_SEEDS, settings.steps or FEWEST_STEPS)
        if division is not None and keep:
            plan = {"asked": self.asked, "division": asdict(division), "warm_up": warm_up}
            self.store.keep_plan({**plan, "timing": asdict(timing)})
        return division, needed

    # -- training ---------------------------------------------------------------------------------

    def train_all(self, division: Division) -> None:
        """Every cell that is not finished, seed by seed, until the minutes are over."""
        cells = self.store.cells()
        done = {(cell.coupling, cell.seed) for cell in cells}
        total = 3 * division.seeds * division.steps
        label = f"probe {self.settings.coupling}"
        deadline = self.began + 60 * self.settings.minutes - self.spent
        show = Progress(total, len(done) * division.steps, label, quiet=self.quiet)
        with show, InterruptGuard() as guard:
            watch = self._watch(guard, deadline, show, lambda: len(done) * division.steps)
            for seed in range(self.settings.seed, self.settings.seed + division.seeds):
                for coupling in self.bench.couplings:
                    if (coupling, seed) in done:
                        continue
                    try:
                        cell = self.bench.cell(
                            coupling,
                            seed,
                            division.steps,
                            division.at,
                            watch,
                            self.show if seed == self.settings.seed else None,
                        )
                    except TimeUp:
                        return
                    cells.append(cell)
                    done.add((coupling, seed))
                    self.store.keep(cells)

    def _watch(
        self, guard: InterruptGuard, deadline: float, show: Progress, before: Callable[[], int]
    ) -> Callable[[int], None]:
        def watch(step: int) -> None:
            show.update(before() + step)
            if guard.received is not None:
                raise Interrupted(
                    guard.received,
                    f"stopped; finished trainings are in {self.store.folder}, the same command "
                    f"goes on from there",
                )
            if time.monotonic() > deadline:
                raise TimeUp

        return watch

    def show(self, arm: str, budget: int, made: Tensor) -> None:
        """Keep a picture of samples, of images."""
        if is_picture(self.prepared.shape):
            keep_picture(self.store.folder, arm, budget, made)

    # -- the end ----------------------------------------------------------------------------------

    def outcome(self, division: Division) -> Outcome:
        """What the finished cells say."""
        found = finals(self.store.cells(), self.bench.couplings)
        floor = floor_of(self.prepared, self.bench.features)
        seed = self.settings.seed
        start = self.bench.ground(seed).start
        mean = self.bench.features.moments.mean.expand(start.shape)
        untrained = min(self.bench.distance(made, seed) for made in (start, mean))
        if is_picture(self.prepared.shape):
            rows = self.bench.ground(seed).held[:KEPT]
            keep_picture(self.store.folder, DATA, None, self.prepared.take(rows).data)
        verdict = judge(found, self.settings.coupling, floor=floor, untrained=untrained)
        return Outcome(_with_minutes(verdict, division), division, floor, untrained)


def _with_minutes(verdict: Verdict, division: Division) -> Verdict:
    """The verdict with the options that would tell, where too few seeds did."""
    if verdict.seeds_needed is None:
        return verdict
    seconds = verdict.seeds_needed * division.seconds / division.seeds
    minutes = math.ceil(seconds / 60 / SHARE)
    said = f"{verdict.sentence}; about --seeds {verdict.seeds_needed} --minutes {minutes} would do"
    return replace(verdict, sentence=said)
