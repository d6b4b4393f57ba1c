"""Training whose step is one CUDA graph: kernels of a small network take longer to launch than to run."""

import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.couplings import PairedBatch
from immiscible_diffusion.diffusion.losses import RegressionLoss
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.trainer import Trainer

WARM_UP = 4  # steps before the graph is taken, undone afterwards


class GraphedTrainer(Trainer):
    """Trains images in one process, a part a step, from step 0; forward, backward and Adam are replayed.

    On a CPU the same operations run one by one. Dropout is drawn from torch's own generator, seeded once, and the
    network is compiled for all trainings of a process at once. ValueError for a recipe that needs more.
    """

    def __init__(self, recipe: Recipe, *args: Any, **options: Any) -> None:
        if recipe.gradient_accumulation_steps > 1 or not isinstance(recipe.loss, RegressionLoss):
            raise ValueError(f"a graphed step has one part and the loss of regression, not {recipe.loss}")
        self.precision = torch.bfloat16 if recipe.mixed_precision == "bf16" else None
        self.compiles = recipe.compile
        # Autocast of its own: accelerate's would have the network compiled once more for every training.
        super().__init__(replace(recipe, compile=False, mixed_precision="no"), *args, **options)
        self.recipe, self.adam = recipe, self.optimizer.optimizer
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: dict[str, Tensor] = {}
        torch.manual_seed(recipe.seed)

    def train_part(self, batch: PairedBatch) -> None:
        """Take the step of the one part."""
        t = self.recipe.noise_path.sample_time(len(batch.data), generator=batch.rng.time)
        inputs = {"data": batch.data, "noise": batch.noise, "t": t}
        inputs |= self.task.drop_conditions(batch.cond, batch.rng) or {}
        if not self.inputs:
            self.inputs = {name: value.clone() for name, value in inputs.items()}
            self.prepare()
        for name, value in inputs.items():
            self.inputs[name].copy_(value)
        if self.graph is None:
            self.compute()
        else:
            self.graph.replay()
        self.metrics.add(self.losses, t, batch.pairing_seconds, batch.loading_seconds)

    def compute(self) -> None:
        """Take the step on ``inputs``."""
        self.adam.zero_grad(set_to_none=True)
        data, noise, t = (self.inputs[name] for name in ("data", "noise", "t"))
        cond = {name: value for name, value in self.inputs.items() if name not in ("data", "noise", "t")} or None
        kind, enabled = self.device.type, self.precision is not None
        with torch.autocast(kind, self.precision, enabled=enabled, cache_enabled=False):
            self.losses = self.recipe.loss(self.model, self.recipe.noise_path, data, noise, t, cond)
        self.losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optim.max_grad_norm or torch.inf)
        self.adam.step()

    def prepare(self) -> None:
        """Take the graph, and leave weights and optimizer as they are before the first step."""
        if self.step:
            raise ValueError(f"a graphed training begins at step 0, not at {self.step} of a checkpoint")
        if self.device.type != "cuda":
            return
        if self.compiles:
            self.model.compile()
        for group in self.adam.param_groups:
            group |= {"lr": torch.tensor(group["lr"], device=self.device), "capturable": True}
        weights = [weight.detach().clone() for weight in self.model.parameters()]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self.compute()
        torch.cuda.current_stream().wait_stream(side)
        self.adam.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # another thread pairs meanwhile
                self.compute()
            self.graph = graph
        except RuntimeError as error:
            warnings.warn(f"no CUDA graph of the step, its operations are launched one by one: {error}", stacklevel=2)
        with torch.no_grad():
            for weight, before in zip(self.model.parameters(), weights, strict=True):
                weight.copy_(before)
            for state in self.adam.state.values():
                for value in state.values():
                    value.zero_()
