"""What a run would take: shown before any GPU is paid for."""

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from immiscible_diffusion.couplings import PairedBatch, check_coupling_name
from immiscible_diffusion.training.metrics_log import StepMetrics
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.run_dir import RunDir, hardware
from immiscible_diffusion.training.trainer import Trainer
from immiscible_diffusion.utils.device import peak_memory
from immiscible_diffusion.utils.progress import duration

WARMUP_STEPS, TIMED_STEPS, TIMED_SECONDS = 3, 20, 20.0


def dry_run(recipe: Recipe, device: str) -> str:
    """Return the recipe, its parameters, what is missing, and hours, memory and disk of a run.

    Times 20 real steps (after 3 that do not count; fewer if they are slow), in a folder that is removed.
    """
    # A misspelled one is an error, not missing.
    check_coupling_name(recipe.coupling, allow_import=True)
    lines = [json.dumps(recipe.to_dict(), indent=2), f"hardware: {hardware()}"]
    with tempfile.TemporaryDirectory() as folder:
        try:
            trainer = Trainer(recipe, RunDir.open(folder, recipe), device=device)
        except (ValueError, ImportError) as error:
            return "\n".join([*lines, f"missing: {error}"])
        dataset, model = trainer.task.dataset, trainer.run.model
        with trainer.paired_loader() as loader:
            batches = iter(loader)
            _train(trainer, batches, WARMUP_STEPS)
            trainer.metrics = StepMetrics(trainer.device)
            steps = _train(trainer, batches, TIMED_STEPS)
            times = trainer.metrics.times()
        trainer.run_dir.begin(recipe)
        trainer.save()
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    seconds = times["seconds_per_step"]
    lines += [
        "missing: nothing",
        f"data: {dataset.name}, {len(dataset):,} of shape {'x'.join(map(str, dataset.shape))}",
        f"parameters: {sum(p.numel() for p in model.parameters()):,}",
        f"time: {1000 * seconds:.1f} ms a step over {steps} steps, waiting for pairing {times['pairing_share']:.1%} "
        f"of it (pairing takes {times['pairing_ms']:.1f} ms, {'in a thread' if recipe.prefetch else 'in the step'}); "
        f"{recipe.steps:,} steps take {duration(seconds * recipe.steps)} (without previews and validation)",
        f"memory: {peak_memory(trainer.device) / 2**30:.2f} GiB at its peak",
        f"disk: {size / 2**20:,.0f} MiB, and the previews",
    ]
    return "\n".join(lines)


def _train(trainer: Trainer, batches: Iterator[PairedBatch], most: int) -> int:
    """Take up to ``most`` steps, fewer once ``TIMED_SECONDS`` are over; return how many."""
    began = time.monotonic()
    for steps in range(1, most + 1):
        trainer.train_step(batches)
        if time.monotonic() - began > TIMED_SECONDS:
            return steps
    return most
