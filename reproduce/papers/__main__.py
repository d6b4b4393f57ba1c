"""``python -m reproduce.papers --data cifar10``: what the papers measured, beside their figures."""

import json
import shlex
import sys
import time
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import tyro

from immiscible_diffusion.analysis.couplings import CouplingBuilder
from immiscible_diffusion.analysis.sample_pairs import BATCH_SIZE
from immiscible_diffusion.cli.data_options import DataOptions
from immiscible_diffusion.utils.atomic_files import write_json, write_text
from reproduce.papers.measurements import PARTS, PaperMeasurements
from reproduce.papers.table import Section, published_table
from reproduce.papers.trained_models import run_paper_tests

COUPLINGS = ("independent", "assignment", "knn:k=4", "knn:k=8", "knn:k=16", "knn:k=64")


@dataclass(frozen=True)
class Options(DataOptions):
    """Measure what the papers measured on their pairings, and on trained models.

    Writes papers.json, papers.md (figures beside published ones, and whether they agree within
    their errors) and images. CIFAR-10 takes about 15 minutes and 2 GB on one thread. Examples:

    python -m reproduce.papers --data cifar10 --path FOLDER --run runs/independent --out OUT

    python -m reproduce.papers --run runs/independent --run runs/knn16

    Args:
        max_images: so many samples, chosen at random by the seed.
        coupling: a coupling, repeated for each, as of ``immiscible analyze``; by default those of
            the papers.
        parts: distance (reduction), deviation (that would give the published reductions), clusters
            (distances), map (of clusters), fit (Gaussian, 50,000 D^2 operations).
        run: a trained run folder to test, repeated for each; without --data only runs are tested.
        out: folder of the report.
        device: of the runs: auto, cpu, cuda or mps.
        allow_code: import the coupling that a run's recipe names, if it is not one of ours.
        seed: of everything drawn.
        tiny: few points, to see that it runs.
    """

    max_images: int | None = 10_000
    coupling: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    parts: tuple[str, ...] = PARTS
    run: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    out: Path = Path("runs/papers")
    device: str = "auto"
    allow_code: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    seed: int = 0
    tiny: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = tyro.cli(Options, args=arguments, prog="python -m reproduce.papers")
    try:
        if not options.data and not options.run:
            raise ValueError("what is to be measured? give --data, --run, or both")
        about, sections = measure(options)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    about["command"] = shlex.join(["python", "-m", "reproduce.papers", *arguments])
    write_json(options.out / "papers.json", about | {"sections": [s.to_json() for s in sections]})
    head = f"# What the papers measured\n\n    {about['command']}\n\n{json.dumps(about['data'])}\n"
    table = f"## Beside what was published\n\n{published_table(sections)}\n"
    text = "\n".join([head, table, *(section.to_markdown() for section in sections)])
    write_text(options.out / "papers.md", text)
    print(f"{table}\nreport: {options.out / 'papers.md'}")
    return 0


def measure(options: Options) -> tuple[dict[str, Any], list[Section]]:
    """What was measured, and its sections, printed as they come."""
    versions = {name: version(name) for name in ("immiscible-diffusion", "torch")}
    about: dict[str, Any] = {"date": date.today().isoformat(), "versions": versions, "data": {}}
    generators = []
    if options.data:
        whole = options.load(options.seed)
        data, cond = whole.batch.data, whole.batch.cond
        if whole.batch.mask is not None:
            raise ValueError("the papers' measurements take no mask; leave out --mask")
        about["data"] = {"name": whole.name, "note": whole.note, "shape": list(data.shape)}
        builder = CouplingBuilder(whole.batch, BATCH_SIZE, options.seed, by_label=bool(cond))
        couplings = {name: builder.build(name) for name in options.coupling or COUPLINGS}
        job = PaperMeasurements(data, couplings, cond, options.seed, options.out)
        if options.tiny:
            job = replace(job, batch_sizes=(16,), count=64, images=4, points=50, fit_count=8000)
        generators.append(job.sections(options.parts))
    for run in options.run:
        tests = run_paper_tests(
            run, device=options.device, folder=options.out, seed=options.seed, allow_code=options.allow_code
        )
        generators.append(tests)
    sections, start = [], time.monotonic()
    for section in (each for generator in generators for each in generator):
        sections.append(section)
        sys.stderr.write(f"{time.monotonic() - start:5.0f} s  {section.title}\n")
    return about, sections


if __name__ == "__main__":
    sys.exit(main())
