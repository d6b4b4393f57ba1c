"""``immiscible probe --data DATA --minutes 10``."""

import shlex
import sys
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from immiscible_diffusion.cli.data_options import DataOptions
from immiscible_diffusion.cli.options import Device, parse, run_path
from immiscible_diffusion.experiments.pilot.page import write_probe_page
from immiscible_diffusion.experiments.pilot.prepared import Prepared
from immiscible_diffusion.experiments.pilot.records import Store
from immiscible_diffusion.experiments.pilot.run import Probe, Settings
from immiscible_diffusion.experiments.pilot.summary import load, summary
from immiscible_diffusion.training.run_dir import environment
from immiscible_diffusion.utils.atomic_files import write_json
from immiscible_diffusion.utils.device import pick_device
from immiscible_diffusion.utils.progress import duration


@dataclass(frozen=True)
class Options(DataOptions):
    """Does pairing help on your data? Minutes, a small network, several seeds, and a control.

    Trains without pairing, with a coupling, and with its noises shuffled (the control), at equal
    steps, and ends in one sentence: helps (or costs) by so much, no effect above seed noise, or too
    little data or time to tell. The network is told the conditions named by --cond, and no other.
    No promise for large models. The same command goes on where a killed one was. Examples:

    immiscible probe --data digits --minutes 5

    immiscible probe --data latents.safetensors --coupling knn:k=4 --minutes 20

    immiscible probe --data windows.npz --array action --cond obs --mask valid --normalize

    Args:
        coupling: that is asked about: knn:k=16, knn:k=4,center=mean (or label, channel),
            assignment, gaussian_ot:eps=4, calibrated:ANY, or your own as "my_module:MyCoupling(k=3)".
            The default has the largest effect on digits that costs nothing with many sampling steps
            (docs/how-to-choose-a-coupling.md), if samples start from the law of its noise.
        minutes: in all.
        budget: numbers of Euler steps to sample with, repeated for each; 5 and 20 by default. Each
            more makes the intervals wider.
        out: folder; by default runs/probe/DATA.
        network: auto (a residual MLP on a CPU, a small U-Net for square images elsewhere), mlp or
            unet.
        normalize: shift and scale all data by one number each, to mean 0 and variance 1.
        matched: sample from the law of the coupling's noise, too, where it is not N(0, I).
        seed: the first; of the choice of --max-images as well.
        seeds: how many; by default what the minutes allow, 3 at least.
        steps: of every training; by default what the minutes allow.
        device: where to train.
        threads: of the processor; by default as torch chooses.
        dry_run: measure, say what the minutes would be spent on, and stop.
    """

    coupling: str = Settings.coupling
    minutes: float = Settings.minutes
    budget: tyro.conf.UseAppendAction[tuple[int, ...]] = ()
    out: Path | None = None
    network: Literal["auto", "mlp", "unet"] = "auto"
    normalize: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    matched: bool = True
    seed: int = 0
    seeds: int | None = None
    steps: int | None = None
    device: Device = "auto"
    threads: int | None = None
    dry_run: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False

    @property
    def settings(self) -> Settings:
        """What is asked."""
        return Settings(
            coupling=self.coupling.strip(),
            minutes=self.minutes,
            sampling_steps=self.budget or Settings.sampling_steps,
            network=self.network,
            seed=self.seed,
            seeds=self.seeds,
            steps=self.steps,
            matched=self.matched,
        )


def main(arguments: list[str]) -> int:
    """Probe, or say what that would take."""
    options = parse(Options, arguments, "probe")
    if options.threads is not None:
        if options.threads < 1:
            raise ValueError(f"threads must be at least 1, got {options.threads}")
        torch.set_num_threads(options.threads)
    settings, device = options.settings, pick_device(options.device)
    whole = options.load(options.seed)
    prepared = Prepared.of(whole, options.cond, normalize=options.normalize)
    out = run_path(options.out, "probe", Path(options.data.replace(":", "-")).stem)
    probe = Probe(prepared, settings, Store(out), device=device)
    if options.dry_run:
        return rehearsed(probe)
    busy = load()
    outcome = probe.run()
    about = environment(device) | {
        "command": shlex.join(["immiscible", "probe", *arguments]),
        "date": date.today().isoformat(),
        "load": busy,
        "threads": torch.get_num_threads(),
    }
    write_json(out / "probe.json", summary(probe, outcome, about))
    page = write_probe_page(out)
    sys.stdout.write(f"{outcome.verdict.sentence}\n\npage: {page}\n")
    return 0


def rehearsed(probe: Probe) -> int:
    """Say how the minutes would be spent."""
    few = probe.too_few()
    if few is not None:
        sys.stdout.write(f"{few.sentence}\n")
        return 0
    division, needed = probe.division(keep=False)
    bench = probe.bench
    note = probe.prepared.note and f"; {probe.prepared.note}"
    lines = [
        f"{len(probe.prepared):,} data of shape {probe.prepared.shape}{note}",
        f"{bench.network}, batches of {bench.network.batch_size}, on {bench.device}",
        f"trained: {', '.join(bench.couplings)}",
    ]
    if division is None:
        lines.append(f"too little time; about {needed} minutes would do")
    else:
        plan = asdict(division)
        lines.append(
            f"{plan['seeds']} seeds of {plan['steps']:,} steps each, judged at "
            f"{', '.join(map(str, plan['at']))}: about {duration(plan['seconds'])}"
        )
    sys.stdout.write("\n".join(lines) + "\n")
    return 0
