"""``immiscible explain COUPLING ...``: what to expect of couplings, without data."""

import dataclasses
import json
import math
import sys
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import tyro

from immiscible_diffusion.cli.options import Device, parse
from immiscible_diffusion.couplings.describe import Circumstances, Explained, explain

WIDTH = 100


@dataclass(frozen=True)
class Options:
    """What to expect of couplings on data of a shape: no data, a second or two.

    Pull of the noise along its sample, noise variance, distance reduction, information budget, and
    time and memory on this machine. Examples:

    immiscible explain knn:k=64 --shape 16,128,128

    immiscible explain knn:k=2 knn:k=254 --shape 4,64,64 --rms 0.9 --data-count 20000

    immiscible explain assignment shuffled:knn:k=4 --shape 3,32,32 --rms 0.5 --batch 512 --json

    Args:
        couplings: one or several, side by side: independent, knn:k=16, knn:k=16,center=mean (or
            label, channel), assignment, shuffled:ANY. Of others it says that they depend on data.
        shape: of one sample as the model sees it, without the batch, such as 3,32,32.
        rms: root mean square of the data, less their center for center=...; about 0.5 for images
            in [-1, 1], 1 for latents scaled to it.
        data_count: data in the set: puts the budget beside log N, what it takes to tell them apart.
        batch: data that assignment sees together (by default 256), and the batch that is timed (by
            default what takes a moment).
        device: where to measure time and memory.
        json: print JSON.
    """

    couplings: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    shape: str = ""
    rms: float = 1.0
    data_count: int | None = None
    batch: int | None = None
    device: Device = "auto"
    json: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False


def main(arguments: list[str]) -> int:
    """Print a table, or JSON."""
    options = parse(Options, arguments, "explain")
    if not options.couplings:
        raise ValueError("which coupling? for example: immiscible explain knn:k=8 --shape 3,32,32")
    if options.data_count is not None and options.data_count < 2:
        raise ValueError(f"data-count must be at least 2, got {options.data_count}")
    where = Circumstances(sizes(options.shape), options.rms, options.batch, options.device)
    explained = [explain(name, where) for name in options.couplings]
    said = as_json if options.json else as_table
    sys.stdout.write(said(explained, where, options.data_count) + "\n")
    return 0


def sizes(text: str) -> tuple[int, ...]:
    """``"3,32,32"`` or ``"3x32x32"`` as numbers."""
    try:
        shape = tuple(int(size) for size in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise ValueError(
            f"shape must be the sizes of one sample, without the batch, such as --shape 3,32,32, "
            f"got '{text}'"
        )
    return shape


def as_json(explained: Iterable[Explained], where: Circumstances, count: int | None) -> str:
    """For machines: figures as they are, null where there is none."""
    record = {
        "shape": where.shape,
        "dimension": where.dim,
        "rms": where.rms,
        "data_count": count,
        "log_data_count": None if count is None else math.log(count),
        "couplings": [dataclasses.asdict(one) for one in explained],
    }
    return json.dumps(_without_nan(record), indent=2)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def as_table(explained: list[Explained], where: Circumstances, count: int | None) -> str:
    """For people: a column for each coupling, and what the rows mean."""
    rows = [
        [title, *(said(one) for one in explained)]
        for title, said in [("", lambda one: one.name), *figures(count)]
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]
    size = "x".join(map(str, where.shape))
    head = f"data {size}: D = {where.dim:,} numbers of rms {where.rms:g}"
    notes = dict.fromkeys(note for one in explained for note in one.notes)
    prose = [textwrap.fill(text, WIDTH) for text in [*meanings(count), *notes]]
    return "\n".join([head, "", *lines, "", *prose])


def figures(count: int | None) -> list[tuple[str, Callable[[Explained], str]]]:
    """Rows of the table: title, and what stands there of a coupling."""
    rows: list[tuple[str, Callable[[Explained], str]]] = [
        (
            "noise stays N(0, I)",
            lambda one: {True: "yes", False: "no", None: "-"}[one.preserves_marginal],
        ),
        ("pull along the sample", lambda one: _of(one.expected, "pull", _plain)),
        ("noise variance", lambda one: _of(one.expected, "second_moment", _fine)),
        ("  about its mean given the sample", lambda one: _of(one.expected, "variance", _fine)),
        ("distance reduction", lambda one: _of(one.expected, "distance_reduction", _percent)),
        ("information budget, nats", lambda one: _at_most(one) + _of(one, "budget", _plain)),
    ]
    if count is not None:
        nats = math.log(count)
        share = partial(_of, name="budget", spell=lambda budget: _percent(budget / nats))
        rows.append(("  share of log N", lambda one: _at_most(one) + share(one)))
    return [
        *rows,
        ("time of a call, ms", lambda one: _of(one.expense, "milliseconds", _short)),
        ("  data in the call", lambda one: _of(one.expense, "rows", str)),
        ("  in units of torch.randn", lambda one: _of(one.expense, "times_randn", _short)),
        ("memory, in units of the data", lambda one: _of(one.expense, "memory", _short)),
    ]


def meanings(count: int | None) -> list[str]:
    """What the rows mean."""
    apart = "log N" if count is None else f"log {count:,} = {math.log(count):.3g}"
    return [
        "Pull: mean of <noise, sample / |sample|>, in standard deviations of the noise.",
        "Noise variance: E |noise|^2 / D, the variance a dimension over data of mean zero.",
        "Distance reduction misleads across sizes: at the same pull it is many percent for actions "
        "and a fraction of one for video latents. Compare pull and budget.",
        f"Budget: KL(noise given its sample, N(0, I)), for KNN log k - 1 + 1/k whatever the data; "
        f"it takes {apart} nats to tell all data apart.",
        "Time: the least of some calls on this machine, on a CPU by one thread.",
    ]


def _of(record: Any, name: str, spell: Callable[[Any], str]) -> str:
    value = None if record is None else getattr(record, name)
    return (
        "-" if value is None or (isinstance(value, float) and math.isnan(value)) else spell(value)
    )


def _at_most(one: Explained) -> str:
    return "<= " if one.bounded else ""


def _plain(value: float) -> str:
    return f"{value:.2f}"


def _fine(value: float) -> str:
    """Enough digits to tell a variance from 1."""
    return "1" if value == 1 else f"{value:.{min(6, max(3, 1 - _magnitude(1 - value)))}f}"


def _magnitude(value: float) -> int:
    return math.floor(math.log10(max(abs(value), 1e-9)))


def _percent(share: float) -> str:
    return "0 %" if share == 0 else f"{100 * share:.2g} %"


def _short(value: float) -> str:
    return f"{value:.3g}"
