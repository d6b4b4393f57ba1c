"""What a run would take: shown before any GPU is paid for."""

import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from immiscible_diffusion.couplings import PairedBatch, check_coupling_name
from immiscible_diffusion.data import DataSet
from immiscible_diffusion.training.builders import check_trackers
from immiscible_diffusion.training.metrics_log import StepMetrics, bottleneck
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.run_dir import RunDir, hardware
from immiscible_diffusion.training.throughput import card_peak
from immiscible_diffusion.training.trainer import Trainer
from immiscible_diffusion.utils.device import peak_memory
from immiscible_diffusion.utils.progress import duration

WARMUP_STEPS, TIMED_STEPS, TIMED_SECONDS = 3, 20, 20.0
STEP_SECONDS, STEP_BYTES = 5.0, 2**31  # at most for a step on a CPU, of fewer samples if need be
CARD, SHARE = "H100", 0.15  # what a run elsewhere is estimated for; 64 channels reached a tenth (docs/results)
FEW = 2  # samples of the first micro-batch


def dry_run(recipe: Recipe, device: str, write: Callable[[str], None], dataset: DataSet | None = None) -> float | None:
    """Write the recipe, what is missing, parameters, and hours, memory and disk of a run, line by line.

    ``dataset`` replaces the data that the recipe names.

    Times 20 real steps (after 3 that do not count; fewer if they are slow) in a folder that is removed. On a CPU these
    are of so few samples that one takes 5 seconds and 2 GiB at most, and what a whole one takes is scaled from them.
    Plans of semidiscrete couplings are not fitted.

    Returns the seconds of all steps, None if something is missing.
    """
    # A misspelled one is an error, not missing.
    check_coupling_name(recipe.coupling, allow_import=True)
    write(json.dumps(recipe.to_dict(), indent=2))
    write(f"hardware: {hardware()}")
    with tempfile.TemporaryDirectory() as folder:
        try:
            trainer = Trainer(recipe, RunDir.open(folder, recipe), device=device, dataset=dataset, fit_plans=False)
        except (ValueError, ImportError, OSError) as error:
            for line in missing(recipe, error):
                write(f"missing: {line}")
            return None
        data, model = trainer.task.dataset, trainer.run.model
        write("missing: nothing")
        write(f"data: {data.name}, {len(data):,} of shape {'x'.join(map(str, data.shape))}")
        write(f"parameters: {sum(p.numel() for p in model.parameters()):,}")
        whole, flops = trainer.loader.batch_size, trainer.flops
        size, sample_bytes = (whole, 0.0) if trainer.device.type != "cpu" else _affordable(trainer)
        trainer.loader = replace(trainer.loader, batch_size=size)
        with trainer.paired_loader() as loader:
            batches = iter(loader)
            _train(trainer, batches, WARMUP_STEPS)
            trainer.metrics = StepMetrics(trainer.device)
            steps = _train(trainer, batches, TIMED_STEPS)
            times = trainer.metrics.times()
        scale, scaled = whole / size, f", scaled from {size} samples of {whole}" if size < whole else ""
        seconds = times["seconds_per_step"] * scale
        write(
            f"time: {1000 * seconds:.1f} ms a step over {steps} steps{scaled}, waiting for pairing "
            f"{times['pairing_share']:.1%} of it (pairing takes {times['pairing_ms'] * scale:.1f} ms, "
            f"{'in a thread' if recipe.prefetch else 'in the step'}); {recipe.steps:,} steps take "
            f"{duration(seconds * recipe.steps)} (without previews, validation, fits of plans and tables of noise)"
        )
        if note := bottleneck(times):
            write(f"{note}; --num_workers loads in more processes")
        share = "no share of its peak, as the card is not known"
        if trainer.peak is not None:
            share = f"{flops / seconds / trainer.peak:.0%} of the {trainer.peak / 1e12:,.0f} TFLOP/s of the card"
        elsewhere = duration(recipe.steps * flops / (SHARE * (card_peak(CARD, recipe.mixed_precision) or 1)))
        write(
            f"speed: {1 / seconds:.3g} steps/s, {flops / 1e12:.3g} TFLOP each: {share}; "
            f"at {SHARE:.0%} of the peak of an {CARD} all steps take {elsewhere}"
        )
        memory = peak_memory(trainer.device) + (whole - size) * sample_bytes
        write(f"memory: {memory / 2**30:.2f} GiB at its peak{scaled}")
        trainer.run_dir.begin(recipe)
        trainer.save()
        trainer.finish_save()
        disk = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        write(f"disk: {disk / 2**20:,.0f} MiB, and the previews")
    return seconds * recipe.steps


def missing(recipe: Recipe, error: Exception) -> list[str]:
    """Return all that a recipe lacks, where ``error`` is the first that was met."""
    lacking = [str(error)]
    for check in (lambda: check_trackers(recipe.trackers), *recipe.task.parts().values()):
        try:
            check()
        except (ValueError, ImportError, OSError) as other:
            lacking.append(str(other))
    return list(dict.fromkeys(lacking))


class _SavedTensors:
    """Counts the bytes that forward passes keep for their backward passes, weights aside."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.held: dict[int, int] = {}
        self.backward, self.most = False, 0

    def pack(self, tensor: Tensor) -> Tensor:
        if self.backward:  # a new micro-batch, whose memory is that of the last
            self.held, self.backward = {}, False
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.weights:
            self.held[storage.data_ptr()] = storage.nbytes()
        return tensor

    def unpack(self, tensor: Tensor) -> Tensor:
        self.backward, self.most = True, max(self.most, sum(self.held.values()))
        return tensor


def _affordable(trainer: Trainer) -> tuple[int, float]:
    """Return the batch size of a step that takes few seconds and little memory, and the bytes of a sample more."""
    whole, parts, saved = trainer.loader.batch_size, math.prod(trainer.parts), _SavedTensors(trainer.run.model)
    few = min(whole, FEW * parts)
    trainer.loader = replace(trainer.loader, batch_size=few)
    with trainer.paired_loader() as loader:
        batches = iter(loader)
        with saved_tensors_hooks(saved.pack, saved.unpack):
            trainer.train_step(batches)
        began = time.monotonic()
        trainer.train_step(batches)
        seconds = time.monotonic() - began
    share = min(STEP_SECONDS / seconds, STEP_BYTES / max(1, saved.most))
    return max(few, min(whole, int(few * share) // parts * parts)), saved.most / few


def _train(trainer: Trainer, batches: Iterator[PairedBatch], most: int) -> int:
    """Take up to ``most`` steps, fewer once ``TIMED_SECONDS`` are over; return how many."""
    began = time.monotonic()
    for steps in range(1, most + 1):
        trainer.train_step(batches)
        if time.monotonic() - began > TIMED_SECONDS:
            return steps
    return most
