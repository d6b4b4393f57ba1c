"""``immiscible pilot --data DATA --minutes 10``."""

import os
import shlex
import sys
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Annotated

import torch
import tyro

from immiscible_diffusion.cli.data_options import DataOptions
from immiscible_diffusion.cli.options import Device, Switch, parse, run_path, set_threads
from immiscible_diffusion.experiments.pilot.data import Samples
from immiscible_diffusion.experiments.pilot.run import Pilot, Settings
from immiscible_diffusion.experiments.pilot.verdict import Verdict
from immiscible_diffusion.reporting.pilot import write_pilot_page
from immiscible_diffusion.training.run_dir import environment
from immiscible_diffusion.utils.atomic_files import write_json
from immiscible_diffusion.utils.checks import PositiveInt
from immiscible_diffusion.utils.device import pick_device
from immiscible_diffusion.utils.folder_lock import folder_lock
from immiscible_diffusion.utils.progress import duration


@dataclass(frozen=True)
class Options(DataOptions):
    """Does pairing help on your data? Minutes, a small network, several seeds, and a control.

    Trains without pairing, with a coupling, and with its noises shuffled (the control), at equal steps, and says
    whether it helps (or costs) by so much, how much of that is pairing and how much the changed noise distribution;
    or no effect above seed noise; or too little data or time to tell. The network is conditioned on what --cond
    names, and nothing else. No promise for large models. The same command resumes a killed one. Examples:

    immiscible pilot --data digits --minutes 5

    immiscible pilot --data latents.safetensors --coupling assignment --minutes 20

    immiscible pilot --data windows.npz --array action --cond obs --mask valid --normalize

    Args:
        settings: what is asked.
        normalize: shift and scale all data by one number each, to mean 0 and variance 1.
        out: folder; by default runs/pilot/DATA.
        device: where to train.
        threads: threads of the processor; by default as torch chooses.
        dry_run: measure, say what the minutes would be spent on, and stop.
    """

    settings: Annotated[Settings, tyro.conf.arg(name="")] = field(default_factory=Settings)
    normalize: Switch = False
    out: Path | None = None
    device: Device = "auto"
    threads: PositiveInt | None = None
    dry_run: Switch = False


def main(arguments: list[str]) -> int:
    """Run a pilot, or say what that would take."""
    options = parse(Options, arguments, "pilot")
    set_threads(options.threads)
    device, data = pick_device(options.device), options.load(options.settings.seed)
    samples = Samples.of(data, options.cond, normalize=options.normalize)
    out = run_path(options.out, "pilot", Path(options.data.replace(":", "-")).stem)
    pilot = Pilot(samples, options.settings, out, device)
    if options.dry_run:
        sys.stdout.write("\n".join(dry_run(pilot)) + "\n")
        return 0
    load = f"{os.getloadavg()[0]:.1f} processes" if hasattr(os, "getloadavg") else ""
    command = shlex.join(["immiscible", "pilot", *arguments])
    with folder_lock(out):
        outcome = pilot.run(command)
    record = pilot.record(outcome) | environment(device)
    record |= {
        "command": command,
        "date": date.today().isoformat(),
        "load": load and f"{load} on {os.cpu_count()} cores (mean of a minute)",
        "threads": torch.get_num_threads(),
    }
    write_json(out / "pilot.json", record)
    page = write_pilot_page(record, outcome.comparison, out)
    sys.stdout.write("\n".join([*outcome.verdict.sentences, "", f"page: {page}"]) + "\n")
    return 0


def dry_run(pilot: Pilot) -> list[str]:
    """Lines on how the minutes would be spent."""
    division = pilot.divide(dry_run=True)
    if isinstance(division, Verdict):
        return [*division.sentences]
    recipe, note = pilot.plan(division).recipe, pilot.samples.note
    return [
        f"{pilot.samples.count:,} samples of shape {pilot.samples.shape}{note and f'; {note}'}",
        f"{recipe.model}, batches of {recipe.batch_size}, on {pilot.device}",
        f"trained: {', '.join(name for name in pilot.couplings if 'matched:' not in name)}",
        f"{division.seeds} seeds of {division.steps:,} steps each, evaluated at "
        f"{', '.join(map(str, division.eval_steps))}: about {duration(division.seconds)}",
    ]
