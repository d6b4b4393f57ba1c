"""``immiscible describe COUPLING ...``: what to expect of couplings, without data."""

import argparse
import dataclasses
import json
import math
import sys
import textwrap
from collections.abc import Callable
from typing import Any, NoReturn

from immiscible_diffusion.cli.renamed import check_options
from immiscible_diffusion.couplings.describe import CouplingSummary, DataSpec, describe_coupling

WIDTH = 100
DESCRIPTION = """What to expect of couplings on data of a shape: no data, a second or two.

Pull of the noise along its sample, noise variance, distance reduction, information budget, and time
and memory on this machine. Needs torch alone; assignment needs scipy too. Examples:

  immiscible describe knn:k=64 --shape 16,128,128
  immiscible describe knn:k=2 knn:k=254 --shape 4,64,64 --rms 0.9 --data-count 20000
  immiscible describe assignment shuffled:knn:k=4 --shape 3,32,32 --rms 0.5 --batch 512 --json
"""


class Parser(argparse.ArgumentParser):
    """argparse, since tyro is not in every trainer's environment; bad input is a ValueError."""

    def error(self, message: str) -> NoReturn:
        """Raise ``message``."""
        raise ValueError(message)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options; ValueError for unknown ones, with the new name of one that was renamed."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser("immiscible describe", description=DESCRIPTION, formatter_class=raw, allow_abbrev=False)
    add = parser.add_argument
    add(
        "couplings",
        nargs="*",
        help="one or several, side by side: independent, knn:k=16, knn:k=16,center=mean (or label, channel), "
        "assignment, aligned:ANY, shuffled:ANY, projected(pool=4):ANY; others depend on the data",
    )
    add("--shape", default="", help="of one sample as the model sees it, without the batch, such as 3,32,32")
    add(
        "--rms",
        type=float,
        default=1.0,
        help="root mean square of the data, less their center for center=...; about 0.5 for images in [-1, 1], 1 for "
        "latents scaled to it (default: 1)",
    )
    add(
        *("--data-count", "--data_count"),
        type=int,
        help="samples in the data set, whose log N is what it takes to tell them apart",
    )
    add(
        "--batch",
        type=int,
        help="samples that assignment pairs together (default: 256), and the batch that is timed (default: what takes "
        "a moment)",
    )
    devices = ("auto", "cpu", "cuda", "mps")
    add("--device", choices=devices, default="auto", help="where to measure time and memory (default: auto)")
    add("--json", action="store_true", help="print JSON")
    options, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        check_options(unknown, "describe")
        raise ValueError(f"unknown option {unknown[0]}; immiscible describe --help lists all")
    return options


def main(arguments: list[str]) -> int:
    """Print a table, or JSON."""
    options = parse(arguments)
    count = options.data_count
    if not options.couplings:
        raise ValueError("which coupling? for example: immiscible describe knn:k=8 --shape 3,32,32")
    if count is not None and count < 2:
        raise ValueError(f"data-count must be at least 2, got {count}")
    words = options.shape.replace("x", ",").split(",")
    shape = tuple(int(size) for size in words if size.strip().isdecimal())
    if len(shape) < len(words) or min(shape) < 1:
        raise ValueError(
            f"give --shape, the sizes of one sample without the batch, such as --shape 3,32,32; got '{options.shape}'"
        )
    data = DataSpec(shape, options.rms, options.batch, options.device)
    summaries = [describe_coupling(name, data, allow_import=True) for name in options.couplings]
    text = as_json(summaries, data, count) if options.json else as_table(summaries, data, count)
    sys.stdout.write(text + "\n")
    return 0


def as_json(summaries: list[CouplingSummary], data: DataSpec, count: int | None) -> str:
    """For machines: figures as they are, null where there is none."""
    record = {
        "shape": data.shape,
        "dimension": data.dim,
        "rms": data.rms,
        "data_count": count,
        "log_data_count": None if count is None else math.log(count),
        "couplings": [dataclasses.asdict(summary) for summary in summaries],
    }
    # json writes NaN as a constant that it reads back through this hook.
    finite = json.loads(json.dumps(record), parse_constant=lambda _: None)
    return json.dumps(finite, indent=2)


def as_table(summaries: list[CouplingSummary], data: DataSpec, count: int | None) -> str:
    """For people: a column for every coupling, and below it what the figures mean."""
    table = [["", *(summary.name for summary in summaries)]]
    for title, part, name, spell in rows(count):
        values = [_value(summary, part, name) for summary in summaries]
        row = ["-" if value is None else spell(value) for value in values]
        if name == "information_budget":
            row = ["<= " * s.bounded + cell for s, cell in zip(summaries, row, strict=True)]
        table.append([title, *row])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in table]
    nats = "log N" if count is None else f"log {count:,} = {math.log(count):.3g}"
    meanings = [
        "Pull: mean of <noise, sample / |sample|>, in standard deviations of the noise.",
        "Noise variance: E |noise|^2 / D, the variance a dimension over data of mean zero.",
        "Distance reduction misleads across sizes: at the same pull it is many percent for actions "
        "and a fraction of one for video latents. Compare pull and budget.",
        f"Budget: KL(noise given its sample, N(0, I)), for KNN log k - 1 + 1/k whatever the data; "
        f"it takes {nats} nats to tell all samples apart.",
        "Time: the least of some calls on this machine, on a CPU by one thread.",
    ]
    notes = dict.fromkeys(note for summary in summaries for note in summary.notes)
    head = f"data {'x'.join(map(str, data.shape))}: D = {data.dim:,} numbers of rms {data.rms:g}"
    prose = [textwrap.fill(text, WIDTH) for text in [*meanings, *notes]]
    return "\n".join([head, "", *lines, "", *prose])


def _value(summary: CouplingSummary, part: str, name: str) -> Any:
    """What ``summary`` says, None where it is unknown or NaN."""
    record = getattr(summary, part) if part else summary
    value = None if record is None else getattr(record, name)
    return value if value == value else None


def rows(count: int | None) -> list[tuple[str, str, str, Callable[[Any], str]]]:
    """Rows of the table: title, part and field of a summary, and how its value is written."""

    def share(value: float) -> str:
        return "0 %" if value == 0 else f"{100 * value:.2g} %"

    def variance(value: float) -> str:
        """Enough digits to tell a variance from 1."""
        gap = math.floor(math.log10(max(abs(1 - value), 1e-9)))
        return "1" if value == 1 else f"{value:.{min(6, max(3, 1 - gap))}f}"

    nats = math.log(count or 2)
    table: list[tuple[str, str, str, Callable[[Any], str]]] = [
        ("noise stays N(0, I)", "", "preserves_marginal", lambda same: "yes" if same else "no"),
        ("pull along the sample", "expected", "pull", "{:.2f}".format),
        ("noise variance", "expected", "second_moment", variance),
        ("  about its mean given the sample", "expected", "variance", variance),
        ("distance reduction", "expected", "distance_reduction", share),
        ("information budget, nats", "", "information_budget", "{:.2f}".format),
        ("  share of log N", "", "information_budget", lambda budget: share(budget / nats)),
        ("time of a call, ms", "cost", "milliseconds", "{:.3g}".format),
        ("  samples in the call", "cost", "rows", str),
        ("  in units of torch.randn", "cost", "times_randn", "{:.3g}".format),
        ("memory, in units of the data", "cost", "memory", "{:.3g}".format),
    ]
    return [row for row in table if count is not None or "log N" not in row[0]]
