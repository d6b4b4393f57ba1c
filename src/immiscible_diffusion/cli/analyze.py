"""``immiscible analyze --data DATA --coupling A --coupling B``."""

import shlex
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
import tyro

from immiscible_diffusion.analysis.config import Settings
from immiscible_diffusion.analysis.coupling_analysis import Work
from immiscible_diffusion.analysis.miscibility import LEVELS
from immiscible_diffusion.analysis.run import analyze, lined_up
from immiscible_diffusion.analysis.time_estimate import PAGE, peak_memory, rehearse, timed
from immiscible_diffusion.cli.data_options import DataOptions
from immiscible_diffusion.cli.options import parse, run_path
from immiscible_diffusion.data.array_files import is_array_file
from immiscible_diffusion.data.in_memory import InMemoryData
from immiscible_diffusion.diffusion.paths import EDMPath, FlowMatchingPath, VPPath
from immiscible_diffusion.diffusion.paths import Path as AnyPath
from immiscible_diffusion.reporting.analysis import write_analysis_page
from immiscible_diffusion.training.run_dir import environment
from immiscible_diffusion.utils.atomic_files import write_json
from immiscible_diffusion.utils.progress import Progress, duration
from immiscible_diffusion.utils.signals import Interrupted

BASELINE = "independent"
DEFAULT_COUPLINGS = ("knn:k=16", "knn:k=16,center=mean", "assignment")
UNMASKED = ("assignment",)  # its estimate takes no mask


@dataclass(frozen=True)
class PathOptions:
    """How data and noise are mixed.

    Args:
        kind: flow (straight paths), diffusion (variance-preserving steps) or sigma (EDM).
        schedule: of diffusion.
        prediction: of diffusion: what the network learns, and so whose variance is the loss.
        sigma_max: of sigma: the most noise.
    """

    kind: Literal["flow", "diffusion", "sigma"] = "flow"
    schedule: Literal["linear", "scaled_linear", "cosine"] = "linear"
    prediction: Literal["epsilon", "v", "data"] = "epsilon"
    sigma_max: float = 80.0

    def build(self) -> AnyPath:
        """The path."""
        if self.kind == "diffusion":
            return VPPath(schedule=self.schedule, prediction=self.prediction)
        return FlowMatchingPath() if self.kind == "flow" else EDMPath(sigma_max=self.sigma_max)

    def __str__(self) -> str:
        more = {
            "flow": "",
            "diffusion": f", schedule {self.schedule}, prediction {self.prediction}",
            "sigma": f", sigma_max {self.sigma_max:g}",
        }
        return self.kind + more[self.kind]


@dataclass(frozen=True)
class Options(DataOptions):
    """See how mixed data are at every noise level, and what couplings change. No training.

    Writes analysis.json and analysis.html, one page to look at. Exact where the coupling's density
    has a closed form (independent, knn, gaussian_ot, calibrated: any of these); estimated from pairs
    elsewhere (assignment), and marked so. The same command goes on where a killed one was;
    couplings may be added later. Examples:

    immiscible analyze --data digits --cond label --coupling knn:k=4 --coupling knn:k=64

    immiscible analyze --data photos --size 64 --max-images 10000 --flip --coupling knn:k=16

    immiscible analyze --data windows.npz --array action --cond obs --mask valid

    Args:
        coupling: a coupling, repeated for each: knn:k=16, knn:k=16,center=mean (or label, channel),
            assignment, gaussian_ot:eps=4, calibrated:ANY, shuffled:ANY, or your own as
            "my_module:MyCoupling(k=3)", exact if it has log_density(noise, data, cond=) -> [B].
            independent is always in. By default three (with a mask two: no assignment).
        out: folder; by default runs/analyze/DATA.
        path: how data and noise are mixed.
        levels: times above 0 and at most 1; 0 = data, 1 = noise.
        probes: noisy points at every level; errors fall as its root.
        pairs: of sample and noise that the law of the noise is measured on.
        bandwidth: of the kernel on continuous conditions, in their standard deviations; by default
            Scott's rule. Half and double of it are measured as well.
        batch_size: that couplings are called on; matters to assignment.
        show: data of which pictures are made.
        gaussian_fit: also the papers' Gaussian fit of the noise (50,000 D^2 operations).
        seed: of everything drawn, and of the choice of --max-images.
        threads: of the processor; by default as torch chooses.
        dry_run: say what would be done, how long it takes and how much memory, and stop.
    """

    coupling: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    out: Path | None = None
    path: PathOptions = field(default_factory=PathOptions)
    levels: tuple[float, ...] = LEVELS
    probes: int = 300
    pairs: int = 2000
    bandwidth: float | None = None
    batch_size: int = 256
    show: int = 4
    gaussian_fit: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    seed: int = 0
    threads: int | None = None
    dry_run: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False

    @property
    def couplings(self) -> tuple[str, ...]:
        """Those asked for, the baseline first."""
        usual = [name for name in DEFAULT_COUPLINGS if not (self.mask and name in UNMASKED)]
        named = [name.strip() for name in self.coupling or usual]
        if twice := [name for name in named if named.count(name) > 1]:
            raise ValueError(f"a coupling is named twice: {twice[0]}")
        return (BASELINE, *(name for name in named if name != BASELINE))

    @property
    def settings(self) -> Settings:
        """What is measured."""
        return Settings(
            path=self.path.build(),
            levels=self.levels,
            probes=self.probes,
            pairs=self.pairs,
            bandwidth=self.bandwidth,
            show=self.show,
            batch_size=self.batch_size,
            seed=self.seed,
            gaussian_fit=self.gaussian_fit,
        )


def main(arguments: list[str]) -> int:
    """Analyze, or say what that would take."""
    options = parse(Options, arguments, "analyze")
    if options.threads is not None:
        if options.threads < 1:
            raise ValueError(f"threads must be at least 1, got {options.threads}")
        torch.set_num_threads(options.threads)
    if options.place in get_args(PathOptions.__annotations__["kind"]):
        raise ValueError(
            f"--path is where a named data set lies; how data and noise are mixed is "
            f"--path.kind {options.place}"
        )
    settings, couplings = options.settings, options.couplings
    whole = options.load(options.seed)
    called = Path(whole.name).stem if is_array_file(whole.name) else whole.name.replace("/", "-")
    out = run_path(options.out, "analyze", called)
    if options.dry_run:
        return rehearsed(whole, options, out)
    try:
        values = measured(whole, couplings, options.cond, settings, out)
    except KeyboardInterrupt:
        message = f"stopped; what is finished is kept in {out}: the same command goes on"
        raise Interrupted(signal.SIGINT, message) from None
    about = environment() | {"command": shlex.join(["immiscible", "analyze", *arguments])}
    kept = {name: about[name] for name in ("command", "hardware", "versions")}
    write_json(out / "analysis.json", values | kept)
    page = write_analysis_page(out)
    advice = values["advice"]
    said = [values["given_summary"], *advice["facts"], *advice["sentences"], "", f"page: {page}"]
    sys.stdout.write("\n".join(said[not said[0] :]) + "\n")
    return 0


def measured(
    whole: InMemoryData,
    couplings: tuple[str, ...],
    given: tuple[str, ...],
    settings: Settings,
    out: Path,
) -> dict[str, Any]:
    """The analysis, with a progress bar."""
    bar: Progress | None = None

    def told(done: int, points: int) -> None:
        nonlocal bar
        if bar is None:
            bar = Progress(points, 0, f"analysing {whole.name}", unit="point").__enter__()
        bar.update(done)

    try:
        return analyze(whole, couplings, given=given, settings=settings, folder=out, progress=told)
    finally:
        if bar is not None:
            bar.__exit__(None, None, None)


def rehearsed(whole: InMemoryData, options: Options, out: Path) -> int:
    """Say what would be done, from a small piece of it."""
    settings = options.settings
    work = Work.of(whole, options.cond, settings, out)
    shape = "x".join(map(str, work.data.shape[1:]))
    lines = [
        f"data: {whole.name}, {len(whole):,} of shape {shape}{whole.note and f' ({whole.note})'}",
        f"path: {options.path}",
        f"levels: {', '.join(f'{t:g}' for t in settings.levels)}, {settings.probes} points each",
    ]
    lines += [f"given: {one.text}" for one in work.given]
    making, subjects = timed(lambda: lined_up(work, options.couplings))
    total = making + PAGE
    for subject in subjects:
        expected = rehearse(subject)
        total += expected.seconds
        kind = "estimated from pairs" if expected.estimate else "closed form"
        lines.append(f"{subject.name}: about {duration(expected.seconds)} ({kind})")
    lines.append(
        f"time: about {duration(total)} in all with the page; more where other jobs come in between"
    )
    lines.append(f"memory: about {peak_memory() / 2**30:.1f} GiB")
    lines.append(f"folder: {out}")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0
