"""What a comparison consists of: one recipe, several couplings, several seeds."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from immiscible_diffusion.couplings import check_coupling_name
from immiscible_diffusion.training.recipe import Recipe, differences
from immiscible_diffusion.utils.atomic_files import read_record, write_record

BASELINE = "independent"
MATCHED = "matched:"
TINY, SMOKE_RUN = "-tiny", "a smoke run of seconds: none of its figures says anything"


@dataclass(frozen=True)
class Trial:
    """One training run of a comparison."""

    coupling: str
    seed: int

    @property
    def unmatched(self) -> "Trial":
        """The trial with the same training, sampled from N(0, I); itself, unless ``matched:``."""
        return Trial(self.coupling.removeprefix(MATCHED), self.seed)

    @property
    def is_matched(self) -> bool:
        """Whether sampling starts from the distribution of the noise it was trained on."""
        return self.coupling.startswith(MATCHED)

    def __str__(self) -> str:
        return f"{self.coupling}, seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """A comparison: ``recipe`` trained with every coupling at every seed.

    Trials of a seed share the order of the data, the times, the initial weights and the initial noise of sampling.
    ``matched:ANY`` is ANY sampled from the distribution of the noise that it was trained on.
    """

    folder: Path
    recipe: Recipe
    couplings: tuple[str, ...]
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        for what, values in (("coupling", self.couplings), ("seed", self.seeds)):
            if not values:
                raise ValueError(f"a comparison needs at least one {what}, got none")
            if len(set(values)) < len(values):
                raise ValueError(f"a {what} is named twice: {', '.join(map(str, values))}")
        if len({slug(coupling).lower() for coupling in self.couplings}) < len(self.couplings):
            alike = "as their names differ in case or in signs alone"
            raise ValueError(f"two couplings would share a folder, {alike}: {', '.join(self.couplings)}")
        for steps in self.recipe.task.eval.sampling_steps:
            self.recipe.sampler.with_steps(steps).check(self.recipe.path)  # here, not after hours
        for coupling in self.couplings:
            # A misspelled one fails here, not after hours.
            check_coupling_name(coupling.removeprefix(MATCHED), allow_import=True)

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All trials, seed by seed, so that an unfinished comparison has complete seeds."""
        return tuple(Trial(c, seed) for seed in self.seeds for c in self.couplings)

    def trial_recipe(self, trial: Trial) -> Recipe:
        """The recipe of a trial."""
        sampler = self.recipe.sampler
        if trial.is_matched:
            sampler = dataclasses.replace(sampler, init_noise="matched")
        coupling = trial.unmatched.coupling
        # Scores are taken while it trains, so that earlier weights need not be kept.
        changes: dict[str, Any] = {"coupling": coupling, "seed": trial.seed, "checkpoints_total_limit": 1}
        return dataclasses.replace(self.recipe, sampler=sampler, **changes)

    def matched_trial(self, trial: Trial) -> Trial | None:
        """The trial of this plan with the training of ``trial`` and matched initial noise."""
        name = MATCHED + trial.coupling
        return Trial(name, trial.seed) if name in self.couplings else None

    def trial_dir(self, trial: Trial) -> Path:
        """The run folder of a trial."""
        return self.folder / "trials" / slug(trial.coupling) / f"seed{trial.seed}"

    @property
    def eval_steps(self) -> tuple[int, ...]:
        """The training steps at which every trial is evaluated."""
        return self.recipe.task.eval.training_steps(self.recipe.steps)

    def control_of(self, coupling: str) -> str | None:
        """The coupling of this plan whose shuffled control ``coupling`` is."""
        start = MATCHED if coupling.startswith(MATCHED) else ""
        original = start + coupling.removeprefix(start).removeprefix("shuffled:")
        return original if original != coupling and original in self.couplings else None

    def check(self) -> None:
        """Raise ValueError if the folder holds a comparison of another recipe."""
        path = self.folder / "plan.json"
        if path.exists() and (changed := differences(Recipe.from_dict(read_record(path).get("recipe")), self.recipe)):
            raise ValueError(
                f"{self.folder} holds a comparison of another recipe ({'; '.join(changed)}); choose another --out"
            )

    def keep(self) -> None:
        """Write the plan, after ``check``. Couplings and seeds may be added; finished trials stay."""
        self.check()
        values = {"recipe": self.recipe.to_dict(), "couplings": list(self.couplings), "seeds": list(self.seeds)}
        try:
            write_record(self.folder / "plan.json", values)
        except OSError as error:
            raise ValueError(f"cannot write to {self.folder}: {error}") from error


def slug(name: str) -> str:
    """``name`` as a folder name."""
    return re.sub(r"[^\w.=,+-]", "_", name.replace(":", "-"))
