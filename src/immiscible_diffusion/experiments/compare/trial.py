"""One cell of a comparison: train it, judging it at the steps and sampling_steps of the plan."""

import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from immiscible_diffusion.applications.pusht.environment import simulator_version
from immiscible_diffusion.applications.pusht.evaluator import PolicyEvaluator
from immiscible_diffusion.couplings import Coupling, NoiseDistribution, draw, parse_coupling
from immiscible_diffusion.couplings.moments import Moments
from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.diffusion.pipeline import Generator
from immiscible_diffusion.diffusion.samplers import SamplerConfig
from immiscible_diffusion.evaluation.images import ImageEvaluator, judged
from immiscible_diffusion.experiments.compare.excess_loss import (
    Probes,
    keep_losses,
    losses_by_level,
)
from immiscible_diffusion.experiments.compare.plan import Plan, Trial
from immiscible_diffusion.metrics import METRICS
from immiscible_diffusion.training.builders import init_noise_distribution, make_coupling
from immiscible_diffusion.training.codec import Codec
from immiscible_diffusion.training.load import alike, load_codec, load_data, pictures_of
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.training.trainer import Trainer
from immiscible_diffusion.utils.atomic_files import read_json, write_json
from immiscible_diffusion.utils.device import pick_device

Judging = Callable[[RunDir, nn.Module, int], None]
"""Judges a model at a step and records what it found in a run folder."""
GRID_IMAGES = 32
TRIED = 64


@dataclass
class TrialRunner:
    """Runs cells of a plan; data and judge are made once and serve all cells of a process."""

    plan: Plan
    device: str = "auto"
    quiet: bool = True
    _dataset: DataSet | None = None
    _codec: Codec | None = None
    _judge: ImageEvaluator | None = None

    def __call__(self, cell: Trial) -> None:
        """Train ``cell`` from where it stands to the end.

        Raises:
            Interrupted: on a signal, after writing a checkpoint.
        """
        if is_finished(self.plan, cell) or is_carried(self.plan, cell):
            return
        recipe, folder = self.plan.trial_recipe(cell), self.plan.trial_dir(cell)
        companion = companion_of(self.plan, cell)
        run = RunDir.open(folder, recipe)
        trainer = Trainer(recipe, run, device=self.device, dataset=self.dataset)
        outputs = [(run, self.judging(recipe, trainer))]
        if companion is not None:
            matched = self.plan.trial_recipe(companion)
            beside = RunDir.open(self.plan.trial_dir(companion), matched)
            beside.begin(matched, trainer.device)
            outputs.append((beside, self.judging(matched, trainer)))

        probes: list[Probes] = []

        def evaluate(step: int, model: nn.Module) -> None:
            if recipe.in_pixels:
                if not probes:  # not before, as the run's moments count once it has begun
                    probes.append(self.probes(recipe, run))
                losses = losses_by_level(recipe, model.eval(), probes[0], trainer.device)
                keep_losses(run, step, losses)
            for where, judge in outputs:
                if where is not run:
                    where.truncate_log_after(step - 1)  # an earlier attempt; the run drops its own
                judge(where, model, step)

        trainer.train(evaluate=evaluate, evaluate_at=self.plan.eval_steps, quiet=self.quiet)
        for where, _ in outputs:
            write_json(where.root / "finished.json", {"steps": recipe.steps})

    def judging(self, recipe: Recipe, trainer: Trainer) -> Judging:
        """What judges models of ``recipe``, with the law to start from where it needs one."""
        dataset, codec, device = trainer.dataset, trainer.codec, trainer.device
        law = init_noise_distribution(recipe, dataset, trainer.run, trainer.coupling, device, codec)
        if recipe.is_policy:
            return partial(judge_policy, PolicyEvaluator.of(recipe, dataset, device, law))
        generator = Generator(recipe, dataset, device, law=law, codec=codec)
        return partial(judge_all_budgets, generator, self.judge)

    def probes(self, recipe: Recipe, run: RunDir) -> Probes:
        """Noisy images to measure the loss on, of the run's own coupling."""
        coupling = make_coupling(recipe, self.dataset, run, torch.device("cpu"))
        return Probes.draw(recipe, self.dataset, coupling)

    def try_couplings(self) -> None:
        """Call every coupling once; ValueError names one that fails, before hours are spent."""
        recipe = self.plan.recipe
        rows = alike(self.dataset)[:TRIED]
        batch = recipe.as_seen(self.codec.encode(self.dataset.batch(rows)))
        data, cond, mask = batch.data, batch.cond, batch.mask
        for name in {cell.unmatched.coupling: None for cell in self.plan.trials}:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of a pool, which is the trainer's to give
                    coupling = trial_coupling(name, data, cond)
                    draw(
                        coupling, data, cond=cond, mask=mask, generator=torch.Generator(data.device)
                    )
            except Exception as error:
                raise ValueError(f"coupling '{name}' fails on the data: {error}") from error

    def ready(self) -> None:
        """Make the judge; raises, before hours are spent, if something that it needs is missing."""
        if not self.plan.recipe.is_policy:
            self.judge  # noqa: B018
            return
        judge = PolicyEvaluator.of(self.plan.recipe, self.dataset)
        if judge.evaluation.episodes:
            simulator_version()

    @property
    def dataset(self) -> DataSet:
        """The data of the recipe."""
        if self._dataset is None:
            self._dataset = load_data(self.plan.recipe, self.codec)
        return self._dataset

    @property
    def codec(self) -> Codec:
        """The codec of the recipe."""
        if self._codec is None:
            self._codec = load_codec(self.plan.recipe, pick_device(self.device))
        return self._codec

    @property
    def judge(self) -> ImageEvaluator:
        """The judge of the recipe, on the device that trains."""
        if self._judge is None:
            pictures = pictures_of(self.plan.recipe, self.dataset)
            self._judge = ImageEvaluator.of(self.plan.recipe, pictures, pick_device(self.device))
        return self._judge


def judge_all_budgets(
    generator: Generator, judge: ImageEvaluator, run: RunDir, model: nn.Module, step: int
) -> None:
    """Record quality at every budget of sampler steps, with a grid of the first images.

    The Frechet distance at every step; the slower metrics at the last.
    """
    recipe = generator.recipe
    for budget in recipe.evaluation.sampling_steps:
        sampler = with_steps(recipe.sampler, budget)
        metrics = METRICS if step == recipe.steps else ("frechet",)
        quality, nfe, images = judged(
            generator, judge, model, recipe.seed, sampler, metrics=metrics, keep=GRID_IMAGES
        )
        run.log("quality", step, budget=budget, nfe=nfe, **quality.as_dict())
        run.save_grid(images, f"{sampler.method}{budget}_step_{step:06d}", columns=8)


def judge_policy(judge: PolicyEvaluator, run: RunDir, model: nn.Module, step: int) -> None:
    """Record the error of actions at every budget, and the score of the headline one."""
    recipe = judge.recipe
    headline = headline_steps(recipe)
    for budget in recipe.evaluation.sampling_steps:
        due = step == recipe.steps or judge.evaluation.rollouts == "all"
        sampler = with_steps(recipe.sampler, budget)
        figures, done = judge(model, sampler, at_work=due and budget == headline)
        run.log("quality", step, budget=budget, **figures)
        if done is not None:
            done.save(rollouts_file(run, step))


def rollouts_file(run: RunDir, step: int) -> Path:
    """Where the rollouts at ``step`` are."""
    return run.root / "rollouts" / f"step_{step:06d}.npz"


def with_steps(sampler: SamplerConfig, budget: int) -> SamplerConfig:
    """The recipe's sampler in ``budget`` steps; Euler's for one that chooses its steps itself."""
    method = "euler" if sampler.method == "dopri5" else sampler.method
    return dataclasses.replace(sampler, method=method, steps=budget)


def headline_steps(recipe: Recipe) -> int:
    """The budget of the recipe's own sampler, or the one nearest to it (by ratio)."""
    wanted = recipe.sampler.steps
    return min(recipe.evaluation.sampling_steps, key=lambda b: max(b, wanted) / min(b, wanted))


def is_finished(plan: Plan, cell: Trial) -> bool:
    """Whether ``cell`` was trained to the end of the plan."""
    path = plan.trial_dir(cell) / "finished.json"
    return path.exists() and read_json(path)["steps"] >= plan.recipe.steps


def companion_of(plan: Plan, cell: Trial) -> Trial | None:
    """The matched cell that is judged along with the training of ``cell``.

    None if there is none, or it came into the plan when this training was under way already: then
    it trains by itself.
    """
    matched = plan.matched_trial(cell)
    if matched is None or is_finished(plan, matched):
        return None
    begun, beside = (RunDir(plan.trial_dir(c)).has_begun for c in (cell, matched))
    return matched if beside or not begun else None


def is_carried(plan: Plan, cell: Trial) -> bool:
    """Whether ``cell`` is judged along with the training of another that is not finished."""
    other = cell.unmatched
    if not cell.is_matched or other not in plan.trials or is_finished(plan, other):
        return False
    return companion_of(plan, other) == cell


def trial_coupling(name: str, data: Tensor, cond: dict[str, Tensor] | None) -> Coupling:
    """The coupling of that name, fitted to a handful of data."""

    def moments() -> Moments:
        labels = (cond or {}).get("label")
        return Moments.fit(data if labels is None else [(data, labels)])

    def law(_: Coupling) -> NoiseDistribution:
        return NoiseDistribution.standard(moments())

    return parse_coupling(name, moments, law)
