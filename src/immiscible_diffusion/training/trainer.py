"""The one training loop."""

import copy
import math
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from immiscible_diffusion.couplings import Coupling, PairedBatch, PairedLoader
from immiscible_diffusion.data import DataSet, check_split
from immiscible_diffusion.models.trainable import copy_sharing_frozen, load_trainable_state, trainable_state
from immiscible_diffusion.training import sharding
from immiscible_diffusion.training.builders import build_run, make_accelerator
from immiscible_diffusion.training.dataloader import TrainDataLoader
from immiscible_diffusion.training.ema import EMA
from immiscible_diffusion.training.metrics_log import StepMetrics, bottleneck, loss_by_time
from immiscible_diffusion.training.optim import make_optimizer
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.training.throughput import device_peak, training_flops
from immiscible_diffusion.training.validation import validation_batches
from immiscible_diffusion.utils.device import TIMEOUT
from immiscible_diffusion.utils.folder_lock import folder_lock
from immiscible_diffusion.utils.progress import Progress
from immiscible_diffusion.utils.signals import Interrupted, InterruptGuard

STEPS_BETWEEN_QUESTIONS = 10  # of ranks to each other
Evaluate = Callable[[int, nn.Module], None]
"""Called with a step and the averaged model at the steps it was asked for."""


class Trainer:
    """Everything a run of ``recipe`` consists of, ready to train.

    Files go to ``run_dir``; ``device`` is auto, cpu, cuda or mps; ``dataset`` replaces the data that the recipe names.
    ``fit_plans`` is as ``Run`` has it.
    """

    def __init__(
        self,
        recipe: Recipe,
        run_dir: RunDir,
        *,
        device: str = "auto",
        dataset: DataSet | None = None,
        fit_plans: bool = True,
    ) -> None:
        self.recipe, self.run_dir = recipe, run_dir
        self.accelerator = make_accelerator(recipe, device, run_dir)
        self.device: torch.device = self.accelerator.device
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        micro_batches, batch_size = recipe.gradient_accumulation_steps, recipe.batch_size
        if not run_dir.checkpoint.exists():  # which says how a step is divided
            check_split(batch_size, world * micro_batches)
        self.parts = [world, micro_batches]  # of the first start of the run: they decide what is drawn
        self.run = build_run(recipe, run_dir, self.device, dataset, fit_plans=fit_plans)
        self.task = self.run.task
        self.task.check_before_training()
        self.loader = TrainDataLoader(
            self.task.dataset, batch_size, recipe.seed, self.device, rank, world, micro_batches, recipe.num_workers
        )
        self.validation, self.validation_split = validation_batches(self.task)
        self.is_sharded = self.accelerator.distributed_type.value == "FSDP"
        # Sharded weights are moved shard by shard: all of them may be too many for one device.
        model = self.run.model if self.is_sharded else self.run.model.to(self.device)
        if recipe.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer, self.lr_schedule = make_optimizer(recipe.optim, model, recipe.steps)
        # From here on moments may be written: nothing is left behind if another part is refused.
        self.run.fit_preconditioning(world)
        if self.is_sharded:
            form = sharding.hollow(model)
            self.model, self.optimizer = sharding.prepare(self.accelerator, model, optimizer)
        else:
            form = copy_sharing_frozen(model)
            self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.ema = EMA(recipe.ema, model, form)
        if recipe.compile:  # not by accelerate, which takes this from the first run of a process
            torch._dynamo.reset()  # it compiles the code of a network for eight trainings at most, then no more
            self.model.compile()
            if not self.is_sharded:  # where every average is a new copy
                self.ema.model.compile()
        self.coupling: Coupling = self.run.coupling
        self.pipeline = self.run.pipeline()
        self.step, self.saved_step = 0, -1
        # What ``save`` leaves to ``finish_save``: shards that a thread writes, and the state that belongs to them.
        self.saving: tuple[Future[Any] | None, dict[str, Any]] | None = None
        self.saving_group = torch.distributed.new_group(backend="gloo", timeout=TIMEOUT) if self.is_sharded else None
        self.metrics = StepMetrics(self.device)

    # -- the loop ---------------------------------------------------------------------------------

    def train(
        self,
        *,
        until: int | None = None,
        evaluate: Evaluate | None = None,
        evaluate_at: tuple[int, ...] = (),
        resume_from: int | None = None,
        quiet: bool = False,
    ) -> None:
        """Train from the checkpoint, if there is one, to step ``until`` (the recipe's last).

        ``resume_from`` goes back to the kept checkpoint of that step first.

        Raises Interrupted on Ctrl-C, SIGTERM or SIGUSR1, after writing a checkpoint; ValueError if another process
        trains in the folder.
        """
        recipe, until = self.recipe, until or self.recipe.steps
        with folder_lock(self.run_dir.root) if self.is_main else nullcontext():
            self.begin(resume_from)
            if self.step and self.is_main and not quiet:
                sys.stderr.write(f"resumes from step {self.step}: {self.loader}\n")
            name, stopped = f"{recipe.name} {recipe.coupling}", False
            bar = Progress(until, self.step, name, quiet=quiet or not self.is_main)
            try:
                with self.paired_loader() as loader, bar, InterruptGuard() as guard:
                    batches = iter(loader)
                    while self.step < until and not stopped:
                        self.train_step(batches)
                        self.after_step(bar, evaluate, evaluate_at)
                        stopped, is_written = self.ask_ranks(guard)
                        if is_written:
                            self.finish_save()
                    if self.saved_step != self.step:
                        self.save()
                    self.finish_save()
            except BaseException:
                try:
                    self.finish_save()
                except (OSError, RuntimeError) as error:  # must not hide the first
                    warnings.warn(f"the last checkpoint was not completed: {error}", stacklevel=2)
                raise
            if self.step >= recipe.steps and self.is_main:
                self.task.publish(self.run_dir)
            # A rank that exits first would make the launcher kill rank 0 while it saves.
            self.accelerator.wait_for_everyone()
            self.accelerator.end_training()
            if self.accelerator.num_processes > 1:
                # Meshes keep the groups, and threads of gloo that still free tensors abort once Python ends (PyTorch
                # issue 190489). Nothing says when they are done; they take microseconds.
                time.sleep(0.5)
            if stopped:
                raise Interrupted(
                    guard.received or signal.SIGTERM,
                    f"stopped at step {self.step} of {recipe.steps}; the checkpoint is in "
                    f"{self.run_dir.root}{os.sep}; the same command resumes from there",
                )

    def begin(self, resume_from: int | None = None) -> None:
        """Go back to the checkpoint if there is one, and write what is about to run."""
        if resume_from is not None and self.is_main:
            self.run_dir.go_back_to(resume_from)
        self.accelerator.wait_for_everyone()  # rank 0 may have replaced the checkpoint just now
        if (state := self.run_dir.load_checkpoint()) is not None:
            self.load_state_dict(state)
        self.accelerator.wait_for_everyone()  # nothing is overwritten if a rank refuses the checkpoint
        if self.is_main:
            self.run_dir.begin(self.recipe, self.device, self.accelerator.num_processes, self.step)
            self.run_dir.remove_shards_but(self.step)
            if self.recipe.trackers:
                config = {"recipe": self.recipe.name, "coupling": self.recipe.coupling}
                self.accelerator.init_trackers("immiscible-diffusion", config=config)
            self.task.save_files(self.run_dir)
            self.run_dir.truncate_log_after(self.step)
        self.accelerator.wait_for_everyone()
        self.metrics = StepMetrics(self.device)

    def paired_loader(self) -> PairedLoader:
        """Return the parts of this rank from the present step on, with their noise."""
        return PairedLoader(
            self.loader,
            self.coupling,
            self.task.encode,
            streams=self.loader.streams,
            device=self.device,
            ahead=self.recipe.prefetch,
            start=self.step * self.loader.parts_per_step,
        )

    def train_part(self, batch: PairedBatch) -> None:
        """Train on a part: what it needs is drawn as a whole, and trained on in this rank's pieces of it."""
        recipe, task, accelerator = self.recipe, self.task, self.accelerator
        path, model, optimizer, loss_fn = recipe.noise_path, self.model, self.optimizer, recipe.loss
        step, steps = self.step, recipe.steps
        t = path.sample_time(len(batch.data), generator=batch.rng.time)
        cond = task.drop_conditions(batch.cond, batch.rng)
        pieces = self.loader.micro_batches(batch, t, cond)
        for batch, t, cond in pieces:
            with accelerator.accumulate(model):
                torch.manual_seed(batch.rng.dropout)
                losses = loss_fn(model, path, batch.data, batch.noise, t, cond, batch.mask, progress=step / steps)
                accelerator.backward(losses.mean())
                if recipe.optim.max_grad_norm and accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), recipe.optim.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
                self.metrics.add(losses, t, batch.pairing_seconds, batch.loading_seconds)

    def train_step(self, batches: Iterator[PairedBatch]) -> None:
        """Take one optimizer step, at the last piece of the last part."""
        ema, model = self.ema, self.model
        for _ in range(self.loader.parts_per_step):
            with self.metrics.waiting():
                batch = next(batches)  # its noise = coupling(data), one batch ahead
            self.train_part(batch)
        self.lr_schedule.step()
        ema.update(model)
        self.step += 1
        self.metrics.steps += 1

    # -- now and then -----------------------------------------------------------------------------

    def after_step(self, bar: Progress, evaluate: Evaluate | None, evaluate_at: tuple[int, ...]) -> None:
        """Log, validate, preview, evaluate and checkpoint, where this step is due for it."""
        recipe, step = self.recipe, self.step
        if self.is_due(recipe.log_every, step):
            self.log(bar)
        else:
            bar.update(step)
        began = time.perf_counter()
        if self.is_due(recipe.validate_every, step):
            self.validate()
        if self.is_due(recipe.preview_every, step):
            model = self.ema.model
            if self.is_main:
                images = self.task.preview(self.pipeline, model)
                self.run_dir.save_grid(images, f"step_{step:06d}", self.task.preview_columns)
        if evaluate is not None and step in evaluate_at:
            model = self.ema.model
            if self.is_main:
                evaluate(step, model)
        if self.is_due(recipe.checkpoint_every, step):
            self.save()
        self.metrics.began += time.perf_counter() - began  # the log's times are of training alone

    def is_due(self, every: int, step: int) -> bool:
        """Whether ``step`` is one of ``every`` so many, or the last; never if 0."""
        return every > 0 and (step % every == 0 or step == self.recipe.steps)

    def log(self, bar: Progress) -> None:
        """Write a line to metrics.jsonl and to the trackers, and begin new sums."""
        sums = self.accelerator.reduce(self.metrics.by_time, "sum")
        times = self.metrics.times()
        record = {"loss": self.finite_loss(), **loss_by_time(sums), **times}
        record["lr"] = float(self.lr_schedule.get_last_lr()[0])
        shown = {"loss": record["loss"], "pairing": record["pairing_share"]}
        if self.peak is not None:
            record["peak_share"] = shown["of_peak"] = self.flops / record["seconds_per_step"] / self.peak
        self.metrics = StepMetrics(self.device)
        self.record("train", **record)
        bar.update(self.step, bottleneck(times), **shown)

    @property
    def peak(self) -> float | None:
        """FLOP/s that the device is capable of, in the precision of the recipe; None of one not known."""
        return device_peak(self.device, self.recipe.mixed_precision)

    @cached_property
    def flops(self) -> float:
        """Floating-point operations of a step on this device, with the network evaluated once."""
        batch, path = self.validation[0], self.recipe.noise_path
        cond = batch.cond and {name: value[:1] for name, value in batch.cond.items()}
        one = training_flops(self.ema.form, batch.data[:1], path.network_time(batch.t[:1]), cond)
        return one * self.loader.batch_size / self.accelerator.num_processes

    def finite_loss(self) -> float:
        """Return the mean loss over the ranks since the last log; ValueError if not finite."""
        loss = float(self.accelerator.reduce(torch.stack(self.metrics.losses).mean(), "mean"))
        if not math.isfinite(loss):
            raise ValueError(f"the loss is not a number at step {self.step}; lower optim.lr, or check the data")
        return loss

    def validate(self) -> None:
        """Record the loss of the averaged model on fixed independent noise and times."""
        model, path = self.ema.model, self.recipe.noise_path
        loss_fn = self.recipe.loss.without_augmentation()
        if self.is_main:
            with torch.no_grad():
                losses = [loss_fn(model, path, *batch) for batch in self.validation]
            self.record("validation", loss=float(torch.cat(losses).mean()), split=self.validation_split)

    def record(self, kind: str, **values: Any) -> None:
        """Write a record, on the main process."""
        if self.is_main:
            self.run_dir.log(kind, self.step, **values)
            numbers = {f"{kind}/{k}": v for k, v in values.items() if isinstance(v, float)}
            self.accelerator.log(numbers, step=self.step)

    # -- stop and go ------------------------------------------------------------------------------

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return bool(self.accelerator.is_main_process)

    def save(self) -> None:
        """Write the averaged weights and the checkpoint; of shards, begin to: ``finish_save`` completes it."""
        self.finish_save()
        if self.metrics.losses:
            self.finite_loss()  # a checkpoint that is not finite could never be resumed
        from accelerate.utils import gather_object

        state = self.state_dict() | {"data": gather_object([self.task.dataset.state_dict()])}  # data of all ranks
        averaged, model, written = self.ema.model, self.ema.whole_model(), None
        if self.is_sharded:
            own = self.run.model, self.optimizer, self.ema.weights
            written = sharding.save(self.run_dir.shards(self.step), *own, self.saving_group)
            state = copy.deepcopy(state) if self.is_main else {"step": self.step}  # training continues
        if self.is_main:
            self.run_dir.save_weights(averaged, self.step)
            self.task.export(self.run_dir, model, averaged, self.ema.numbers, self.step)
        self.saving = written, state  # not before the weights, which belong to it
        if not self.is_sharded:
            self.finish_save()
        self.saved_step = self.step

    def finish_save(self) -> None:
        """Wait for the shards that are being written, if any, then replace the checkpoint by the one that names them.

        OSError if a rank could not write its shards; the checkpoint before is as it was.
        """
        if self.saving is None:
            return
        (written, state), self.saving = self.saving, None
        step, limit = state["step"], self.recipe.checkpoints_total_limit
        if written is not None:
            sharding.wait(written, self.run_dir.shards(step))
        if self.is_main:
            self.run_dir.save_checkpoint(state)
            if limit != 1 and self.is_due(self.recipe.checkpoint_every, step):
                self.run_dir.keep_checkpoint(step, limit)
            self.run_dir.remove_shards_but(step)

    def state_dict(self) -> dict[str, Any]:
        """Return what a step changes, of a model trained in part that part; randomness is keyed.

        Without what is sharded, which is written beside it.
        """
        scaler = self.accelerator.scaler
        buffers = dict(self.run.model.named_buffers())
        state: dict[str, Any] = {"is_sharded": True, "ema": self.ema.numbers, "buffers": buffers}
        if not self.is_sharded:
            state = {"model": trainable_state(self.run.model), "optimizer": self.optimizer.state_dict()}
            state["ema"] = self.ema.state_dict()
        return state | {
            "step": self.step,
            "scaling": self.recipe.scaling.factor,
            "parts": self.parts,
            "lr_schedule": self.lr_schedule.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to the state of a checkpoint; ValueError if it is of another recipe."""
        self._keep_parts(state.get("parts", self.parts))
        factor = self.recipe.scaling.factor
        try:
            if state["scaling"] != factor:
                raise ValueError(f"scaling.factor was {state['scaling']}, the recipe has {factor}")
            if (was_sharded := "is_sharded" in state) or self.is_sharded:
                own = self.run.model, self.optimizer, self.ema.weights
                if was_sharded:
                    self.run.model.load_state_dict(state["buffers"], strict=False)
                    sharding.load(self.run_dir.shards(state["step"]), *own)
                    self.saved_step = state["step"]  # shards that a checkpoint names are not written again
                else:
                    sharding.split(state, *own)
                state["ema"]["shadow_params"] = list(self.ema.weights.values())
            else:
                load_trainable_state(self.run.model, state["model"])
                self.optimizer.load_state_dict(state["optimizer"])
            self.lr_schedule.load_state_dict(state["lr_schedule"])
            self.ema.load_state_dict(state["ema"], self.run.model)
            if state["scaler"] is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            for of_rank in state.get("data", ()):
                self.task.dataset.load_state_dict(of_rank)
            self.step = state["step"]
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self.run_dir.checkpoint} is not a checkpoint of this recipe ({error}); choose "
                f"another --out, or remove it to start from step 0"
            ) from error

    def _keep_parts(self, parts: list[int]) -> None:
        """Draw and pair the ``parts`` of a checkpoint on these ranks, and warn of what changes all the same.

        ValueError if the coupling pairs several micro-batches of a rank, or those of all ranks, and these are others.
        """
        was, now = (" x ".join(map(str, numbers)) for numbers in (parts, self.parts))
        if (self.coupling.pool_size > 1 or self.coupling.across_ranks) and was != now:
            raise ValueError(
                f"this run was trained by {was} processes x gradient_accumulation_steps, and here are {now}: the "
                f"coupling pairs several micro-batches at once, and would pair others; keep both"
            )
        loader = self.loader = replace(self.loader, parts=math.prod(parts))
        self.accelerator.gradient_accumulation_steps = loader.parts_per_step * loader.num_pieces
        changed = ", ".join(loader.changes(self.run.model, self.recipe.loss))
        if was != now and self.is_main and changed:
            text = f"processes x micro-batches were {was} and are {now}: all is drawn as before but {changed}"
            warnings.warn(text, stacklevel=2)
        self.parts = parts

    def ask_ranks(self, guard: InterruptGuard) -> tuple[bool, bool]:
        """Return whether any rank received a signal, and whether all have written the shards of a save.

        All must stop, and meet an error of that save, at the same step, so ranks ask each other; every few steps, as
        it stalls.
        """
        if not self.is_sharded and self.accelerator.num_processes == 1:
            return guard.received is not None, True
        if self.step % STEPS_BETWEEN_QUESTIONS:
            return False, False
        written = self.saving and self.saving[0]
        is_writing = written is not None and not written.done()
        own = torch.tensor([[guard.received or 0, is_writing]], device=self.device)
        received, is_writing = self.accelerator.gather(own).amax(0).tolist()
        guard.received = guard.received or received or None  # it may have come while asking
        return received > 0, not is_writing
