"""The one training loop."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import torch
from torch import nn

from immiscible_diffusion.applications.stable_diffusion.export import check_before, publish, push
from immiscible_diffusion.couplings import Coupling
from immiscible_diffusion.couplings.paired_loader import PairedBatch, PairedBatches
from immiscible_diffusion.data import check_split
from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.diffusion.losses import Loss
from immiscible_diffusion.diffusion.pipeline import Generator
from immiscible_diffusion.training.builders import (
    init_noise_distribution,
    make_accelerator,
    make_coupling,
    make_model,
)
from immiscible_diffusion.training.checkpoint import loaded, stopped_at, taken_up, trainer_state
from immiscible_diffusion.training.codec import Codec
from immiscible_diffusion.training.dataloader import Feed
from immiscible_diffusion.training.load import load_codec, load_data, with_tokens
from immiscible_diffusion.training.metrics_log import StepMetrics, Timed, loss_by_time
from immiscible_diffusion.training.optim import EMA, make_optimizer
from immiscible_diffusion.training.progress import Progress
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.training.validation import Validation
from immiscible_diffusion.utils.signals import InterruptGuard

PREVIEW_IMAGES = 64
A_PROMPT = 4  # images in a preview
LISTEN_EVERY = 10
Evaluate = Callable[[int, nn.Module], None]
"""Called with a step and the averaged model at the steps it was asked for."""


class Trainer:
    """Everything a run consists of, ready to train.

    Args:
        recipe: the experiment.
        run: where its files go.
        device: auto, cpu, cuda or mps.
        dataset: data already loaded; otherwise the recipe's are.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: RunDir,
        *,
        device: str = "auto",
        dataset: DataSet | None = None,
    ) -> None:
        self.recipe, self.run = recipe, run
        self.accelerator = make_accelerator(recipe, device, run)
        self.device: torch.device = self.accelerator.device
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        check_split(recipe.batch_size, world * recipe.gradient_accumulation_steps)
        check_before(recipe)
        self.codec: Codec = load_codec(recipe, self.device)
        data = load_data(recipe, self.codec) if dataset is None else dataset
        self.dataset: DataSet = with_tokens(data, recipe, self.codec)
        self.feed = Feed(recipe, self.dataset, self.device, rank, world, self.codec)
        self.loss_fn: Loss = recipe.loss
        self.validation = Validation.of(recipe, self.dataset, self.device, self.codec)
        self.bare = make_model(recipe, self.dataset, self.codec).to(self.device)
        self.average = EMA(recipe.optim, self.bare)
        optimizer, self.warmup = make_optimizer(recipe.optim, self.bare, recipe.steps)
        self.model, self.optim = self.accelerator.prepare(self.bare, optimizer)
        # Last, as it may write the moments: nothing is left behind if another part is refused.
        of = (recipe, self.dataset, run)
        self.coupling: Coupling = make_coupling(*of, self.device, self.codec)
        self.law = init_noise_distribution(*of, self.coupling, self.device, self.codec)
        self.step, self.saved = 0, -1
        self.meter = StepMetrics(self.device)

    # -- the loop ---------------------------------------------------------------------------------

    def train(
        self,
        *,
        until: int | None = None,
        evaluate: Evaluate | None = None,
        evaluate_at: tuple[int, ...] = (),
        quiet: bool = False,
    ) -> None:
        """Train from the checkpoint, if there is one, to step ``until`` (the recipe's last).

        Raises:
            Interrupted: on Ctrl-C, SIGTERM or SIGUSR1, after writing a checkpoint.
        """
        recipe, until = self.recipe, until or self.recipe.steps
        if self.is_main:
            self.run.begin(recipe, self.device, self.accelerator.num_processes)
            self.start_trackers()
            if self.run.ranges.exists():
                self.dataset.check_normalization(self.run.ranges)
            self.dataset.save_normalization(self.run.ranges)
        self.accelerator.wait_for_everyone()
        self.resume()
        name = f"{recipe.name} {recipe.coupling}"
        show = Progress(until, self.step, name, quiet=quiet or not self.is_main)
        stopped = False
        with closing(self.pairs()) as pairs, show, InterruptGuard() as guard:
            while self.step < until and not stopped:
                self.train_step(pairs)
                self.after_step(show, evaluate, evaluate_at)
                stopped = self.stop_asked(guard)
            if self.saved != self.step:
                self.save()
        if self.recipe.push_to_hub and self.step >= self.recipe.steps and self.is_main:
            push(self.run.root, self.recipe.push_to_hub)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        if stopped:
            raise stopped_at(guard, self.step, self.recipe.steps, self.run.root)

    def train_step(self, pairs: Iterator[PairedBatch]) -> None:
        """One optimizer step: ``accumulation`` micro-batches."""
        path, model = self.recipe.noise_path, self.model
        progress = self.step / self.recipe.steps
        for micro in range(self.recipe.gradient_accumulation_steps):
            rng = self.feed.streams(self.step * self.recipe.gradient_accumulation_steps + micro)
            with self.accelerator.accumulate(model):
                with self.meter.waiting():
                    batch = next(pairs)
                data, noise, cond = batch  # noise = coupling(data, cond=cond), ahead
                cond = self.feed.seen(cond, rng)
                t = path.sample_time(len(data), generator=rng.time)
                torch.manual_seed(rng.dropout)
                losses = self.loss_fn(
                    model, path, data, noise, t, cond, batch.mask, progress=progress
                )
                self.accelerator.backward(losses.mean())
                if self.recipe.optim.clip and self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(model.parameters(), self.recipe.optim.clip)
                self.optim.step()
                self.optim.zero_grad()
                self.meter.add(losses, t)
        self.warmup.step()
        self.average.update(self.bare)
        self.step += 1
        self.meter.steps += 1

    def pairs(self) -> PairedBatches:
        """The paired micro-batches of this rank from the present step on; close it in the end."""
        return self.feed.pairs(self.step, Timed(self.coupling, self.meter))

    # -- now and then -----------------------------------------------------------------------------

    def after_step(
        self, show: Progress, evaluate: Evaluate | None, evaluate_at: tuple[int, ...]
    ) -> None:
        """Log, validate, preview, evaluate and checkpoint, where this step is due for it."""
        recipe, step = self.recipe, self.step
        last = step == recipe.steps
        if step % recipe.log_every == 0 or last:
            self.log(show)
        else:
            show.update(step)
        began = time.perf_counter()
        if step % recipe.validate_every == 0 or last:
            self.validate()
        if recipe.preview_every and (step % recipe.preview_every == 0 or last):
            self.preview()
        if evaluate is not None and step in evaluate_at and self.is_main:
            evaluate(step, self.average.current())
        if step % recipe.checkpoint_every == 0 or last:
            self.save()
        self.meter.began += time.perf_counter() - began  # the log's times are of training alone

    def log(self, show: Progress) -> None:
        """A line in metrics.jsonl and in the trackers."""
        sums = self.accelerator.reduce(self.meter.sums_by_time(), "sum")
        record = {"loss": self.finite_loss(), **loss_by_time(sums), **self.meter.record()}
        record["lr"] = self.warmup.get_last_lr()[0]
        self.record("train", **record)
        show.update(self.step, loss=record["loss"], pairing=record["pairing_share"])

    def finite_loss(self) -> float:
        """Mean loss over the ranks since the last record; ValueError if it is not a number."""
        loss = float(self.accelerator.reduce(self.meter.mean_loss(), "mean"))
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss is not a number at step {self.step}; lower optimizer.lr, or check "
                f"the data"
            )
        return loss

    def validate(self) -> None:
        """Loss of the averaged model on fixed independent noise and times."""
        model, path = self.average.current(), self.recipe.noise_path
        loss_fn = self.loss_fn.without_augmentation()  # at progress 1, the same at every step
        with torch.no_grad():
            parts = [loss_fn(model, path, *part) for part in self.validation.parts()]
        self.record("validation", loss=float(torch.cat(parts).mean()), split=self.validation.split)

    def start_trackers(self) -> None:
        """Open TensorBoard and W&B, where asked for."""
        if self.recipe.trackers:
            config = {"recipe": self.recipe.name, "coupling": self.recipe.coupling}
            self.accelerator.init_trackers("immiscible-diffusion", config=config)

    def record(self, kind: str, **values: Any) -> None:
        """Write a record, on the main process."""
        if self.is_main:
            self.run.log(kind, self.step, **values)
            numbers = {f"{kind}/{k}": v for k, v in values.items() if isinstance(v, float)}
            self.accelerator.log(numbers, step=self.step)

    def preview(self) -> None:
        """A grid of samples from the same noise every time."""
        if not self.is_main:
            return
        recipe, prompts = self.recipe, self.recipe.prompts
        generator = Generator(
            recipe, self.dataset, self.device, law=self.law, codec=self.codec, prompts=prompts
        )
        count = A_PROMPT * len(prompts) if prompts else PREVIEW_IMAGES
        made = generator(self.average.current(), count, seed=recipe.seed)
        images = torch.cat([data for data, _ in made])
        self.run.save_grid(images, f"step_{self.step:06d}", len(prompts) or None)

    # -- stop and go ------------------------------------------------------------------------------

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return bool(self.accelerator.is_main_process)

    def save(self) -> None:
        """Write the checkpoint and the averaged weights.

        All ranks wait: one that ended sooner would have its launcher stop the one that writes.
        """
        if self.meter.loss:
            self.finite_loss()  # a checkpoint that is not finite could never be resumed
        if self.is_main:
            averaged, names = self.average.current(), self.average.names
            self.run.save_weights(averaged, self.step, names)
            self.run.save_checkpoint(self.state_dict())
            publish(self.recipe, self.run, self.codec, self.bare, self.average, self.step)
        self.saved = self.step
        self.accelerator.wait_for_everyone()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a step changes; randomness is keyed and needs no state."""
        return trainer_state(self)

    def resume(self) -> None:
        """Go back to the checkpoint, or to step 0 where there is none."""
        state = self.run.load_checkpoint()
        if state is not None:
            loaded(self, state)
        if self.is_main:
            self.run.truncate_log_after(self.step)
        self.meter = StepMetrics(self.device)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what ``state_dict`` gave; ValueError if it was of data scaled otherwise."""
        taken_up(self, state)

    def stop_asked(self, guard: InterruptGuard) -> bool:
        """Whether any rank was told to stop.

        All must stop at the same step, so ranks ask around; every few steps, as asking stalls.
        """
        if self.accelerator.num_processes > 1:
            if self.step % LISTEN_EVERY:
                return False
            mine = torch.tensor([guard.received or 0], device=self.device)
            heard = int(self.accelerator.gather(mine).max())
            guard.received = guard.received or heard or None  # it may have come while asking
            return heard > 0
        return guard.received is not None
