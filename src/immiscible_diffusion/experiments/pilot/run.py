"""A pilot from its data to its verdict: warm-up, division of the minutes, ``compare``, verdict."""

import math
import time
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from immiscible_diffusion.couplings import check_coupling_name
from immiscible_diffusion.couplings.registry import parse_without_data
from immiscible_diffusion.experiments.compare.collect import collect
from immiscible_diffusion.experiments.compare.plan import BASELINE, MATCHED, Plan
from immiscible_diffusion.experiments.compare.trial import TrialRunner, is_finished
from immiscible_diffusion.experiments.pilot import time_budget
from immiscible_diffusion.experiments.pilot.data import MIN_SAMPLES, Samples
from immiscible_diffusion.experiments.pilot.task import NUM_IMAGES, ArrayEvaluator, is_image, pilot_recipe
from immiscible_diffusion.experiments.pilot.time_budget import MIN_SEEDS, MIN_STEPS, USUAL_SEEDS, Division
from immiscible_diffusion.experiments.pilot.verdict import SHUFFLED, Verdict, finals_of, verdict_of
from immiscible_diffusion.reporting.compare import Comparison
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.utils.atomic_files import read_record, write_record
from immiscible_diffusion.utils.checks import NonNegativeInt, PositiveFloat, PositiveInt, check_fields
from immiscible_diffusion.utils.serialization import from_dict, to_dict
from immiscible_diffusion.utils.signals import Interrupted, InterruptGuard


@dataclass(frozen=True)
class Settings:
    """What is asked.

    Args:
        coupling: the coupling that is asked about: knn:k=4, knn:k=16,center=mean (or label, channel), assignment,
            semidiscrete, gaussian_ot:eps=4, calibrated:ANY, or your own as "my_module:MyCoupling(k=3)".
        minutes: minutes in all.
        sampling_steps: numbers of Euler steps to sample with. Each more makes intervals wider.
        network: auto (a residual MLP on a CPU, a small U-Net for square images elsewhere), mlp or unet.
        matched: sample from the distribution of the coupling's noise, too, where it is not N(0, I).
        seed: the first; of the choice of --max-images as well.
        seeds: how many; by default what the minutes allow, 3 at least.
        steps: steps of every training; by default what the minutes allow.
    """

    coupling: str = "knn:k=4"
    minutes: PositiveFloat = 10.0
    sampling_steps: tuple[PositiveInt, ...] = (5, 20)
    network: Literal["auto", "mlp", "unet"] = "auto"
    matched: bool = True
    seed: NonNegativeInt = 0
    seeds: PositiveInt | None = None
    steps: PositiveInt | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.sampling_steps or len(set(self.sampling_steps)) < len(self.sampling_steps):
            raise ValueError(f"sampling_steps must be different numbers >= 1, got {self.sampling_steps}")
        if self.coupling == BASELINE or self.coupling.startswith((MATCHED, SHUFFLED)):
            raise ValueError(
                f"coupling '{self.coupling}': name the coupling itself, such as knn:k=4; a pilot trains without "
                f"pairing, with the shuffled control, and samples from the matched start by itself"
            )
        check_coupling_name(self.coupling, allow_import=True)


@dataclass(frozen=True, eq=False)
class Outcome:
    """How a pilot ended."""

    verdict: Verdict
    division: Division | None = None  # None where data or minutes were too few
    comparison: Comparison | None = None  # None where nothing was evaluated


class PilotState(NamedTuple):
    """budget.json."""

    question: dict[str, Any]
    division: Division
    seconds: float  # spent


@dataclass(eq=False)
class Pilot:
    """A pilot study of one coupling on one set of samples.

    Its folder is a comparison's, with budget.json beside: what was asked, how minutes are divided, seconds spent.
    """

    samples: Samples
    settings: Settings
    folder: Path
    device: torch.device
    quiet: bool = False
    began: float = field(default_factory=time.monotonic, init=False)
    spent: float = field(default=0.0, init=False)  # by earlier calls

    def run(self, command: str = "immiscible pilot") -> Outcome:
        """Train what is not finished yet, as long as there is time, and decide.

        Interrupted on a signal, with finished trainings kept; ValueError if the folder holds another question, or a
        coupling fails on the data.
        """
        division = self.divide()
        if isinstance(division, Verdict):
            return Outcome(division)
        plan = self.plan(division)
        self.train_all(plan)
        return self.outcome(plan, division, command)

    @property
    def seconds(self) -> float:
        """Seconds spent by this call and earlier ones."""
        return time.monotonic() - self.began + self.spent

    @cached_property
    def couplings(self) -> tuple[str, ...]:
        """No pairing, the coupling and its control, and both from the start that matches them."""
        name, masked = self.settings.coupling, self.samples.every.mask is not None
        coupling = parse_without_data(name, allow_import=True)
        names = (BASELINE, name, SHUFFLED + name)
        # A distribution of noise is measured without masks.
        if not self.settings.matched or coupling.preserves_marginal or masked:
            return names
        return *names, MATCHED + name, MATCHED + SHUFFLED + name

    def plan(self, division: Division) -> Plan:
        """The comparison."""
        recipe = pilot_recipe(
            self.samples,
            self.settings.network,
            self.device,
            steps=division.steps,
            eval_steps=division.eval_steps,
            sampling_steps=self.settings.sampling_steps,
        )
        first = self.settings.seed
        return Plan(self.folder, recipe, self.couplings, tuple(range(first, first + division.seeds)))

    def runner(self, plan: Plan, seed: int) -> tuple[TrialRunner, ArrayEvaluator]:
        """What runs the trials of one seed: each has halves of the data of its own."""
        recipe = replace(plan.recipe, seed=seed)
        one = replace(plan, recipe=recipe, seeds=(seed,))
        runner = TrialRunner(one, self.device.type, self.quiet)
        runner.task = recipe.task.build(recipe, self.device, self.samples.split(seed))
        assert isinstance(runner.evaluator, ArrayEvaluator)
        return runner, runner.evaluator

    def divide(self, *, dry_run: bool = False) -> Division | Verdict:
        """How the minutes are spent, by a warm-up or as an earlier call has it; a verdict where data or time lack."""
        settings, path = self.settings, self.folder / "budget.json"
        if (count := self.samples.count) < MIN_SAMPLES:
            text = f"too little data to tell: {count}, and it takes {MIN_SAMPLES} at least"
            return Verdict("too little", (text,))
        if path.exists():
            before: PilotState = from_dict(PilotState, read_record(path), str(path))
            if changed := [k for k, v in self.question.items() if before.question.get(k) != v]:
                change = f"{changed[0]}: {before.question.get(changed[0])} -> {self.question[changed[0]]}"
                raise ValueError(f"{self.folder} holds a pilot of another question ({change}); choose another --out")
            self.spent = before.seconds
            return before.division
        runner, evaluator = self.runner(self.plan(Division(1, MIN_STEPS, (MIN_STEPS,), 0)), settings.seed)
        is_fixed = settings.seeds is not None and settings.steps is not None
        seconds = 0 if is_fixed else 60 * settings.minutes
        timing = time_budget.warm_up(runner.plan, runner.task, evaluator, seconds)
        left = settings.minutes - self.seconds / 60
        division = time_budget.divide(left, timing, seeds=settings.seeds, steps=settings.steps)
        if division is None:
            steps, seeds = settings.steps or MIN_STEPS, settings.seeds or USUAL_SEEDS
            text = (
                f"too little time to tell: {settings.minutes:g} minutes do not hold {settings.seeds or MIN_SEEDS} "
                f"seeds of {steps} steps here; about {time_budget.minutes_for(timing, seeds, steps)} minutes would"
            )
            return Verdict("too little", (text,))
        if not dry_run:
            self._keep(question=self.question, division=asdict(division))
        return division

    @cached_property
    def question(self) -> dict[str, Any]:
        """What the folder is about: it holds one question."""
        samples = self.samples
        return to_dict(asdict(self.settings)) | {
            "conditions": list(samples.condition_names),
            "device": self.device.type,
            "data": f"{samples.name}, {samples.count} of {samples.shape}, {samples.digest}",
        }

    def _keep(self, **values: Any) -> None:
        """Write ``values`` into budget.json, with the seconds spent."""
        path = self.folder / "budget.json"
        try:
            before = read_record(path) if path.exists() else {}
            write_record(path, before | values | {"seconds": self.seconds})
        except OSError as error:
            raise ValueError(f"cannot write to {self.folder}: {error}") from error

    def train_all(self, plan: Plan) -> None:
        """Train what is not finished, seed by seed, until the minutes are over."""
        plan.keep()
        with InterruptGuard() as guard, time_budget.stop_after(60 * self.settings.minutes - self.seconds) as over:
            for seed in plan.seeds:
                runner, _ = self.runner(plan, seed)
                for trial in runner.plan.trials:
                    if over.is_set() or is_finished(plan, trial):
                        continue
                    try:
                        runner(trial)
                        RunDir(plan.trial_dir(trial)).checkpoint.unlink(missing_ok=True)
                    except Interrupted:
                        if not over.is_set():
                            raise
                    finally:
                        self._keep()
                    if guard.received is not None and not over.is_set():
                        text = f"finished trainings are in {self.folder}, the same command resumes from there"
                        raise Interrupted(guard.received, f"stopped; {text}")

    def outcome(self, plan: Plan, division: Division, command: str) -> Outcome:
        """What the finished trials say."""
        runner, evaluator = self.runner(plan, self.settings.seed)
        comparison = None
        if any(RunDir(plan.trial_dir(trial)).records("quality") for trial in plan.trials):
            comparison = collect(plan, command, irreducible=False, runner=runner)
            write_record(self.folder / "results.json", comparison.to_dict())
        verdict = verdict_of(
            finals_of(comparison) if comparison else {},
            self.settings.coupling,
            floor=(evaluator.floor.low, evaluator.floor.high) if evaluator.floor else None,
            untrained=evaluator.untrained,
        )
        if is_image(self.samples.shape):
            rows = evaluator.samples.held_out[:NUM_IMAGES]
            RunDir(self.folder).save_grid(self.samples.take(rows).data, "held_out", 8)
        if verdict.seeds_needed is not None:  # say what would tell
            seconds = verdict.seeds_needed * division.seconds / division.seeds
            minutes = math.ceil(seconds / 60 / time_budget.SHARE)
            text = f"about --seeds {verdict.seeds_needed} --minutes {minutes} would do"
            verdict = replace(verdict, sentences=(f"{verdict.sentences[0]}; {text}",))
        return Outcome(verdict, division, comparison)

    def record(self, outcome: Outcome) -> dict[str, Any]:
        """The JSON values of pilot.json."""
        samples, verdict, division = self.samples, outcome.verdict, outcome.division
        effects = [asdict(effect) | {"verdict": effect.verdict} for effect in verdict.effects]
        values: dict[str, Any] = to_dict(asdict(verdict) | {"effects": effects})
        return values | {
            "format": 2,
            "question": self.question,
            "data": {
                "name": samples.name,
                "note": samples.note,
                "count": samples.count,
                "shape": list(samples.shape),
                "conditions": list(samples.condition_names),
                "masked": samples.every.mask is not None,
                "held_out": samples.num_held_out,
            },
            "network": str(self.plan(division).recipe.model) if division else "",
            "plan": division and asdict(division),
            "seconds": self.seconds,
        }
