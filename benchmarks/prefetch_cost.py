"""What pairing adds to a training step when a thread does it ahead of time.

    OMP_NUM_THREADS=1 python benchmarks/prefetch_cost.py --json FILE --markdown FILE

One process; every round takes one step of every arm, in random order, so that a change in the
machine's load meets them all. A step is at least 200 ms long, and either a network of plain layers
on one torch thread of this processor, where the pairing thread needs a core of its own, or asleep,
as a host is while its device works. Exits with 1 when the bar is missed: assignment, prefetched,
lengthens the step by less than 2 % against independent noise, prefetched too.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from coupling_cost import image_like, machine
from torch import Tensor, nn

from immiscible_diffusion import Independent, LinearAssignment
from immiscible_diffusion.couplings.paired_loader import PairedBatch, PairedLoader

DIM, STEP_SECONDS, BAR = 3072, 0.2, 0.02
REFERENCE = "independent, prefetched"
ARMS = {
    REFERENCE: (Independent(), 1),
    "assignment, prefetched": (LinearAssignment(), 1),
    "independent, in the step": (Independent(), 0),
    "assignment, in the step": (LinearAssignment(), 0),
}


@dataclass(frozen=True)
class Row:
    """An arm at a batch size: the step, the wait within it, and what it is longer, with interval.

    ``longer`` is the median over the rounds of this arm's step over the reference's, less 1;
    ``low`` and ``high`` bound it at 95 % (bootstrap over the rounds).
    """

    arm: str
    where: str
    batch: int
    step_ms: float
    waiting_ms: float
    longer: float
    low: float
    high: float
    bar: str
    passed: bool


class Training:
    """A network and its optimizer; a step takes what ``seconds`` say, or longer."""

    def __init__(self, batch: int, seconds: float) -> None:
        self.width, self.depth = 1024, 0
        example = PairedBatch(torch.randn(batch, DIM), torch.randn(batch, DIM))
        taken = 0.0
        while taken < seconds:
            self.depth += 1
            self._build()
            self.step(example)
            taken = min(self._timed(example) for _ in range(5))

    def _build(self) -> None:
        width, hidden = self.width, []
        for _ in range(self.depth):
            hidden += [nn.Linear(width, width), nn.SiLU()]
        self.net = nn.Sequential(nn.Linear(DIM, width), nn.SiLU(), *hidden, nn.Linear(width, DIM))
        self.optim = torch.optim.Adam(self.net.parameters())

    def _timed(self, paired: PairedBatch) -> float:
        began = time.perf_counter()
        self.step(paired)
        return time.perf_counter() - began

    def step(self, paired: PairedBatch) -> None:
        """Flow matching at random times."""
        data, noise, _ = paired
        t = torch.rand(len(data), 1)
        loss = (self.net((1 - t) * data + t * noise) - (noise - data)).square().mean()
        self.optim.zero_grad()
        loss.backward()
        self.optim.step()


class Elsewhere:
    """A step on a device, which the host waits for."""

    def __init__(self, batch: int, seconds: float) -> None:
        self.seconds = seconds

    def step(self, paired: PairedBatch) -> None:
        """Wait."""
        time.sleep(self.seconds)


STEPS = {"here": Training, "on a device": Elsewhere}


def endless(data: Tensor, batch: int) -> Iterator[Tensor]:
    """Random batches of ``data``."""
    generator = torch.Generator().manual_seed(0)
    while True:
        yield data[torch.randint(len(data), (batch,), generator=generator)]


def measure(where: str, batch: int, rounds: int) -> list[Row]:
    """Steps and waits of all arms at one batch size."""
    data, training = image_like(4 * batch, DIM), STEPS[where](batch, STEP_SECONDS)
    steps: dict[str, list[float]] = {arm: [] for arm in ARMS}
    waits: dict[str, list[float]] = {arm: [] for arm in ARMS}
    with ExitStack() as stack:
        made = {
            arm: stack.enter_context(closing(iter(PairedLoader(endless(data, batch), coupling, seed=1, ahead=ahead))))
            for arm, (coupling, ahead) in ARMS.items()
        }
        for source in made.values():
            training.step(next(source))
        for _ in range(rounds):
            for arm in random.sample(list(ARMS), len(ARMS)):
                began = time.perf_counter()
                paired = next(made[arm])
                waits[arm].append(time.perf_counter() - began)
                training.step(paired)
                steps[arm].append(time.perf_counter() - began)
                time.sleep(0.02)  # lets a thread end that is not done yet, so that none is helped
    return [row(arm, where, batch, steps, waits[arm]) for arm in ARMS]


def row(arm: str, where: str, batch: int, steps: dict[str, list[float]], waits: list[float]) -> Row:
    """What was measured of an arm."""
    ratios = [mine / other for mine, other in zip(steps[arm], steps[REFERENCE], strict=True)]
    draws = sorted(median(random.choices(ratios, k=len(ratios))) - 1 for _ in range(2000))
    longer, bar = median(ratios) - 1, "< 2 %" if arm == "assignment, prefetched" else ""
    return Row(
        arm,
        where,
        batch,
        1e3 * median(steps[arm]),
        1e3 * median(waits),
        longer,
        draws[50],
        draws[-51],
        bar,
        not bar or longer < BAR,
    )


def markdown(rows: list[Row], where: dict[str, str]) -> str:
    """The table of ``rows``, and where they were measured."""
    lines = [
        "| noise | step | B | step, ms | of it waiting, ms | longer | 95 % | bar | |",
        "|---|---|--:|--:|--:|--:|---|---|---|",
    ]
    for r in rows:
        verdict = ("PASS" if r.passed else "FAIL") if r.bar else ""
        lines.append(
            f"| {r.arm} | {r.where} | {r.batch} | {r.step_ms:.1f} | {r.waiting_ms:.2f} | "
            f"{r.longer:+.1%} | {r.low:+.1%} to {r.high:+.1%} | {r.bar} | {verdict} |"
        )
    place = ", ".join(f"{name} {value}" for name, value in where.items())
    note = f"D = {DIM}. Medians over rounds of one step per arm; longer: than {REFERENCE}. {place}."
    return "\n".join([*lines, "", note])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60, help="steps of every arm (60)")
    parser.add_argument("--batch", type=int, nargs="+", default=[256, 512], help="(256 512)")
    parser.add_argument("--json", type=Path, help="write the measurements here")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error(f"--rounds must be at least 2, got {arguments.rounds}")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    rows = [row for where in STEPS for batch in arguments.batch for row in measure(where, batch, arguments.rounds)]
    where = machine(arguments.rounds)
    table = markdown(rows, where)
    print(table)
    if arguments.json:
        record = {"machine": where, "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")
    if arguments.markdown:
        arguments.markdown.write_text(table + "\n")
    return int(not all(row.passed for row in rows))


if __name__ == "__main__":
    sys.exit(main())
