"""``immiscible analyze --data DATA --coupling A --coupling B``."""

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal, get_args

from immiscible_diffusion.analysis.config import AnalysisConfig
from immiscible_diffusion.analysis.miscibility import LEVELS
from immiscible_diffusion.analysis.noise_density import has_closed_form, take
from immiscible_diffusion.analysis.run import Setup, analyze, build_couplings
from immiscible_diffusion.analysis.time_estimate import PAGE, estimate_seconds, peak_memory, timed
from immiscible_diffusion.cli.data_options import DataOptions
from immiscible_diffusion.cli.options import Names, Switch, flat, parse, run_path, set_threads
from immiscible_diffusion.data.array_files import is_array_file
from immiscible_diffusion.data.in_memory import InMemoryData, random_rows
from immiscible_diffusion.diffusion.paths import EDMPath, FlowMatchingPath, VPPath
from immiscible_diffusion.diffusion.paths import Path as AnyPath
from immiscible_diffusion.reporting.analysis import write_analysis_page
from immiscible_diffusion.reporting.analysis.records import BASELINE, AnalysisRecord, write_analysis
from immiscible_diffusion.reporting.analysis.summary import summary_lines
from immiscible_diffusion.training.run_dir import environment
from immiscible_diffusion.utils.checks import PositiveInt
from immiscible_diffusion.utils.folder_lock import folder_lock
from immiscible_diffusion.utils.progress import Progress, duration
from immiscible_diffusion.utils.signals import Interrupted

DEFAULT_COUPLINGS = ("knn:k=16", "knn:k=16,center=mean", "shuffled:knn:k=16", "assignment")
MOST_TIMED = 4000  # samples that a dry run measures on
UNMASKED = ("shuffled:knn:k=16", "assignment")  # their estimates take no mask


@dataclass(frozen=True)
class PathOptions:
    """How data and noise are mixed.

    Args:
        kind: flow (straight paths), diffusion (variance-preserving steps) or sigma (EDM).
        schedule: schedule of diffusion.
        prediction: what the network of diffusion learns, and so whose variance is the loss.
        sigma_max: the most noise of sigma.
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


@dataclass(frozen=True)
class Options(DataOptions):
    """See how mixed data are at every noise level, and what couplings change. No training.

    Writes analysis.json and analysis.html, one page to look at. Exact where the coupling's density has a closed form
    (independent, knn, gaussian_ot, calibrated: any of these); estimated from pairs elsewhere (assignment), and marked
    so. The same command resumes one that was interrupted; couplings may be added later. Examples:

    immiscible analyze --data digits --cond label --coupling knn:k=4 --coupling knn:k=64

    immiscible analyze --data photos --size 64 --max-images 10000 --flip --coupling knn:k=16

    immiscible analyze --data windows.npz --array action --cond obs --mask valid

    Args:
        coupling: the couplings: knn:k=16, knn:k=16,center=mean (or label, channel), assignment,
            gaussian_ot:eps=4, calibrated:ANY, shuffled:ANY, or your own as "my_module:MyCoupling(k=3)", exact if it
            has log_density(noise, data, cond=) -> [B]. independent is always included. By default knn:k=16,
            centered too, its shuffled control, and assignment (with a mask none that needs an estimate).
        out: folder; by default runs/analyze/DATA.
        path: how data and noise are mixed.
        levels: times above 0 and at most 1; 0 = data, 1 = noise.
        probes: noisy points at every level; errors fall as its root.
        pairs: number of pairs of sample and noise that the noise is measured on.
        bandwidth: width of the kernel on continuous conditions, in their standard deviations; by default Scott's rule.
            Half and double of it are measured as well.
        batch_size: samples that couplings are called on; matters to assignment.
        thumbnails: samples whose noisy points and predictions are drawn.
        gaussian_fit: also the papers' Gaussian fit of the noise (50,000 D^2 operations).
        seed: seed of everything drawn, and of the choice of --max-images.
        threads: threads of the processor; by default as torch chooses.
        dry_run: print what would be done, how long it takes and how much memory, and stop.
    """

    coupling: Names = ()
    out: Path | None = None
    path: PathOptions = field(default_factory=PathOptions)
    levels: tuple[float, ...] = LEVELS
    probes: int = 300
    pairs: int = 2000
    bandwidth: float | None = None
    batch_size: int = 256
    thumbnails: int = 4
    gaussian_fit: Switch = False
    seed: int = 0
    threads: PositiveInt | None = None
    dry_run: Switch = False

    @property
    def couplings(self) -> tuple[str, ...]:
        """Those asked for, the baseline first."""
        default = [name for name in DEFAULT_COUPLINGS if not (self.mask and name in UNMASKED)]
        names = flat(self.coupling, "--coupling") or default
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"a coupling is named twice: {twice[0]}")
        return (BASELINE, *(name for name in names if name != BASELINE))

    @property
    def config(self) -> AnalysisConfig:
        """What is measured."""
        names = (one.name for one in fields(AnalysisConfig) if one.name != "path")
        options = {name: getattr(self, name) for name in names}
        return AnalysisConfig(path=self.path.build(), **options)


def main(arguments: list[str]) -> int:
    """Analyze, or print what that would take."""
    options = parse(Options, arguments, "analyze")
    set_threads(options.threads)
    if options.place in get_args(PathOptions.__annotations__["kind"]):
        raise ValueError(
            f"--path is where a named data set lies; how data and noise are mixed is --path.kind {options.place}"
        )
    _ = options.config, options.couplings  # checked before the data are read: it costs no time
    data = options.load(options.seed)
    name = Path(data.name).stem if is_array_file(data.name) else data.name.replace("/", "-")
    out = run_path(options.out, "analyze", name)
    if options.dry_run:
        for line in dry_run(data, options, out):
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
        return 0
    try:
        with folder_lock(out):
            record = run(data, options, out)
    except KeyboardInterrupt:
        message = f"stopped; what is finished is in {out}: the same command resumes it"
        raise Interrupted(signal.SIGINT, message) from None
    machine = {name: environment()[name] for name in ("hardware", "versions")}
    command = shlex.join(["immiscible", "analyze", *arguments])
    write_analysis(replace(record, command=command, **machine), out)
    lines = [*summary_lines(record), "", f"page: {write_analysis_page(out)}"]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def run(data: InMemoryData, options: Options, out: Path) -> AnalysisRecord:
    """The analysis, with a progress bar."""
    bars: list[Progress] = []
    with ExitStack() as stack:

        def progress(done: int, total: int) -> None:
            if not bars:
                bar = Progress(total, 0, f"analyzing {data.name}", unit="point")
                bars.append(stack.enter_context(bar))
            bars[0].update(done)

        return analyze(
            data, options.couplings, conditioned_on=options.cond, config=options.config, folder=out, progress=progress
        )


def dry_run(data: InMemoryData, options: Options, out: Path) -> Iterator[str]:
    """Yield what would be done, then its time and memory from a small piece of it, as soon as a line is known."""
    config = options.config
    setup = Setup.of(data, options.cond, config, out)
    shape = "x".join(map(str, setup.data.shape[1:]))
    yield f"data: {data.name}, {len(data):,} of shape {shape}{data.note and f' ({data.note})'}"
    yield f"path: {config.path}"
    yield f"levels: {', '.join(f'{t:g}' for t in config.levels)}, {config.probes} points each"
    for condition in setup.conditions:
        yield f"condition: {condition.text}"
    yield f"folder: {out}"
    scale, about = max(1.0, len(data) / MOST_TIMED), "about"
    if scale > 1:  # times grow with the samples, at most in proportion
        few = take(setup.images, random_rows(len(data), MOST_TIMED, config.seed))
        about, setup = "at most about", Setup.of(replace(data, batch=few), options.cond, config, None)
    total, subjects = timed(lambda: build_couplings(setup, options.couplings))
    total = scale * total + PAGE
    for subject in subjects:
        seconds = scale * estimate_seconds(subject)
        total += seconds
        kind = "closed form" if has_closed_form(subject.coupling) else "estimated from pairs"
        yield f"{subject.name}: {about} {duration(seconds)} ({kind})"
    yield f"time: {about} {duration(total)} in all with the page; more where other jobs come between"
    yield f"memory: about {peak_memory() / 2**30:.1f} GiB"
