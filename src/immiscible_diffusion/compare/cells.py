"""One cell of a comparison: train it, judging it at the steps and budgets of the plan."""

from dataclasses import dataclass

import torch
from torch import nn

from immiscible_diffusion.compare.plan import Cell, Plan
from immiscible_diffusion.coupling import coupling_from_name
from immiscible_diffusion.data import DataSet, load_images
from immiscible_diffusion.files import read_json, write_json
from immiscible_diffusion.generate import Generator
from immiscible_diffusion.judge import Judge, judged
from immiscible_diffusion.metric import METRICS
from immiscible_diffusion.moments import Moments
from immiscible_diffusion.recipe import Recipe
from immiscible_diffusion.runfolder import RunFolder
from immiscible_diffusion.sampler import Sampler
from immiscible_diffusion.trained import pick_device
from immiscible_diffusion.trainer import Trainer

GRID_IMAGES = 32


@dataclass
class CellRunner:
    """Runs cells of a plan; data and judge are made once and serve all cells of a process."""

    plan: Plan
    device: str = "auto"
    quiet: bool = True
    _dataset: DataSet | None = None
    _judge: Judge | None = None

    def __call__(self, cell: Cell) -> None:
        """Train ``cell`` from where it stands to the end.

        Raises:
            Interrupted: on a signal, after writing a checkpoint.
        """
        recipe, folder = self.plan.cell_recipe(cell), self.plan.cell_folder(cell)
        run = RunFolder.open(folder, recipe)
        if is_finished(self.plan, cell):
            return
        trainer = Trainer(recipe, run, device=self.device, dataset=self.dataset)
        generator = Generator(recipe, self.dataset, trainer.device)

        def evaluate(step: int, model: nn.Module) -> None:
            judge_all_budgets(run, generator, self.judge, model, step)

        trainer.train(evaluate=evaluate, evaluate_at=self.plan.eval_steps, quiet=self.quiet)
        write_json(folder / "finished.json", {"steps": recipe.steps})

    def try_couplings(self) -> None:
        """Call every coupling once; ValueError names one that fails, before hours are spent."""
        batch = self.dataset.batch(torch.arange(min(4, len(self.dataset))))
        cond = batch.cond if self.plan.recipe.conditional else None
        for name in self.plan.couplings:
            coupling = coupling_from_name(name, lambda: Moments.fit(batch.data))
            try:
                coupling(batch.data, cond=cond, generator=torch.Generator())
            except Exception as error:
                raise ValueError(f"coupling '{name}' fails on the data: {error}") from error

    @property
    def dataset(self) -> DataSet:
        """The data of the recipe."""
        if self._dataset is None:
            self._dataset = load_images(self.plan.recipe.data)
        return self._dataset

    @property
    def judge(self) -> Judge:
        """The judge of the recipe, on the device that trains."""
        if self._judge is None:
            self._judge = Judge.of(self.plan.recipe, self.dataset, pick_device(self.device))
        return self._judge


def judge_all_budgets(
    run: RunFolder, generator: Generator, judge: Judge, model: nn.Module, step: int
) -> None:
    """Record quality at every budget of Euler steps, with a grid of the first images.

    The Frechet distance at every step; the slower metrics at the last.
    """
    recipe = generator.recipe
    for budget in recipe.evaluation.budgets:
        sampler = Sampler("euler", budget)
        metrics = METRICS if step == recipe.steps else ("frechet",)
        quality, nfe, images = judged(
            generator, judge, model, recipe.seed, sampler, metrics=metrics, keep=GRID_IMAGES
        )
        run.log("quality", step, budget=budget, nfe=nfe, **quality.as_dict())
        run.save_grid(images, f"euler{budget}_step_{step:06d}", columns=8)


def headline_budget(recipe: Recipe) -> int:
    """The budget of the recipe's own sampler, or the one nearest to it (by ratio)."""
    wanted = recipe.sampler.steps
    return min(recipe.evaluation.budgets, key=lambda b: max(b, wanted) / min(b, wanted))


def is_finished(plan: Plan, cell: Cell) -> bool:
    """Whether ``cell`` was trained to the end of the plan."""
    path = plan.cell_folder(cell) / "finished.json"
    return path.exists() and read_json(path)["steps"] >= plan.recipe.steps
