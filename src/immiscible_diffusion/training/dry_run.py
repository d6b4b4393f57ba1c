"""What a run would take: shown before any GPU is paid for."""

import json
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import torch

from immiscible_diffusion.couplings import check_coupling_name
from immiscible_diffusion.couplings.paired_loader import PairedBatches
from immiscible_diffusion.utils.progress import duration
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.run_dir import RunDir, hardware
from immiscible_diffusion.training.trainer import Trainer

TIMED_STEPS, TIMED_SECONDS = 20, 20.0


def dry_run(recipe: Recipe, device: str) -> str:
    """The recipe, its parameters, what is missing, and hours, memory and disk of a run.

    Times 20 real steps (after 3 that do not count; fewer if they are slow), in a folder that is
    removed.
    """
    check_coupling_name(recipe.coupling)  # a misspelt one is an error, not missing
    lines = [json.dumps(recipe.to_dict(), indent=2), f"hardware: {hardware()}"]
    with tempfile.TemporaryDirectory() as folder:
        try:
            trainer = Trainer(recipe, RunDir.open(folder, recipe), device=device)
        except (ValueError, ImportError) as error:
            return "\n".join([*lines, f"missing: {error}"])
        lines += [
            "missing: nothing",
            f"data: {trainer.dataset.name}, {len(trainer.dataset):,} of shape "
            f"{'x'.join(map(str, trainer.dataset.shape))}",
            f"parameters: {sum(p.numel() for p in trainer.bare.parameters()):,}",
            *_measured(trainer, recipe),
        ]
        trainer.run.begin(recipe)
        trainer.save()
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    return "\n".join([*lines, f"disk: {size / 2**20:,.0f} MiB, and the previews"])


def _measured(trainer: Trainer, recipe: Recipe) -> list[str]:
    with closing(trainer.pairs()) as pairs:
        _train(trainer, pairs, 3)
        trainer.meter.record()  # starts the clock anew
        steps = _train(trainer, pairs, TIMED_STEPS)
        taken = trainer.meter.record()
    seconds = taken["seconds_per_step"]
    return [
        f"time: {1000 * seconds:.1f} ms a step over {steps} steps, waiting for pairing "
        f"{taken['pairing_share']:.1%} of it (pairing takes {taken['pairing_ms']:.1f} ms, "
        f"{'in a thread' if recipe.prefetch else 'in the step'}); {recipe.steps:,} steps take "
        f"{duration(seconds * recipe.steps)} (without previews and validation)",
        f"memory: {_peak_memory(trainer.device) / 2**30:.2f} GiB at its peak",
    ]


def _train(trainer: Trainer, pairs: PairedBatches, most: int) -> int:
    """Up to ``most`` steps, fewer once ``TIMED_SECONDS`` are over; how many they were."""
    began = time.monotonic()
    for steps in range(1, most + 1):
        trainer.train_step(pairs)
        if time.monotonic() - began > TIMED_SECONDS:
            return steps
    return most


def _peak_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        import psutil  # comes with accelerate

        return float(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit
