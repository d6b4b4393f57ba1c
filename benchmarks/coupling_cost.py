"""What pairing costs: time and memory of the couplings against the published algorithms.

    OMP_NUM_THREADS=1 python benchmarks/coupling_cost.py --json FILE --markdown FILE

One process, one thread, repeats interleaved, so that a change in the machine's load meets every
contender. Exits with 1 when a bar is missed.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from statistics import median

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import immiscible_diffusion
from immiscible_diffusion import KNN, Aligned, LinearAssignment

Draw = Callable[[Tensor], Tensor]
CALL_ELEMENTS = 500_000  # of data that a repeat works on, so that small batches are called often


def randn(data: Tensor) -> Tensor:
    """No pairing: the unit of the ratios."""
    return torch.randn(data.shape, dtype=data.dtype)


def published_knn(k: int, dtype: torch.dtype = torch.float16) -> Draw:
    """KNN as arXiv 2505.18521 describes it: k candidates, differences, norms, the least."""

    def draw(data: Tensor) -> Tensor:
        noise = torch.randn(len(data), k, *data.shape[1:])
        distance = torch.linalg.vector_norm(data[:, None].to(dtype) - noise.to(dtype), dim=2)
        nearest = distance.argmin(dim=1)
        return noise.gather(1, nearest[:, None, None].expand(-1, 1, data.shape[1]))[:, 0]

    return draw


def published_assignment(data: Tensor) -> Tensor:
    """Assignment as arXiv 2406.12303 describes it: all differences in half precision, norms."""
    noise = torch.randn(data.shape)
    difference = (0.1 * data).half()[:, None] - (0.1 * noise).half()[None]
    distance = torch.linalg.vector_norm(difference, dim=2)
    del difference
    _, column = linear_sum_assignment(distance.float().numpy())
    return noise[torch.as_tensor(column)]


def cdist_assignment(data: Tensor) -> Tensor:
    """Assignment as lucidrains' denoising-diffusion-pytorch has it: distances in single precision."""
    noise = torch.randn(data.shape)
    _, column = linear_sum_assignment(torch.cdist(data, noise).cpu())
    return noise[torch.from_numpy(column)]


def image_like(count: int, dim: int) -> Tensor:
    """``[count, dim]``: smooth random fields of 3 channels, amplitude 1/f, rms 0.5 each."""
    side = round((dim / 3) ** 0.5)
    if 3 * side * side != dim:
        raise ValueError(f"dim must be three times a square, got {dim}")
    generator = torch.Generator().manual_seed(0)
    frequency = torch.fft.fftfreq(side) * side
    radius = torch.hypot(frequency[:, None], frequency[None]).clamp_min(1)
    white = torch.randn(count, 3, side, side, generator=generator)
    field = torch.fft.ifft2(torch.fft.fft2(white) / radius).real.flatten(1)
    return 0.5 * field / field.square().mean(dim=1, keepdim=True).sqrt()


@dataclass(frozen=True)
class Case:
    """One line of the table: ``slow`` over ``fast`` in CPU time, and the bar it must meet."""

    title: str
    batch: int
    dim: int
    slow: Draw
    fast: Draw
    ours: Draw
    at_least: float | None = None
    at_most: float | None = None

    def passes(self, ratio: float) -> bool:
        """Whether ``ratio`` meets the bar (always, where there is none)."""
        above = self.at_least is None or ratio >= self.at_least
        return above and (self.at_most is None or ratio <= self.at_most)

    @property
    def bar(self) -> str:
        """The bar in words."""
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return f"<= {self.at_most:g}" if self.at_most is not None else ""


@dataclass(frozen=True)
class Row:
    """What was measured of a case. Times are medians of the repeats."""

    title: str
    batch: int
    dim: int
    slow_cpu_ms: float
    fast_cpu_ms: float
    slow_wall_ms: float
    fast_wall_ms: float
    ratio: float
    bar: str
    passed: bool
    slow_floats: float
    fast_floats: float


def cases() -> list[Case]:
    """The bars, and the same against single precision for comparison."""
    return [
        _faster("KNN k=4 vs published", 1024, 3072, published_knn(4), KNN(4), 6),
        _faster("KNN k=4 vs published, float32", 1024, 3072, published_knn(4, torch.float32), KNN(4)),
        _faster("KNN k=64 vs published", 128, 4096, published_knn(64), KNN(64), 60),
        _faster("KNN k=64 vs published, float32", 128, 4096, published_knn(64, torch.float32), KNN(64)),
        *(
            _price(f"KNN k={k} vs randn", batch, dim, KNN(k), at_most)
            for batch, dim, bars in ((1024, 3072, (1.25, 1.4)), (128, 4096, (1.5, 1.7)), (1, 65_536, (1.5, 1.7)))
            for k, at_most in zip((8, 64), bars, strict=True)
        ),
        _faster("aligned assignment vs assignment", 256, 3072, Aligned(LinearAssignment()), LinearAssignment()),
        _faster("assignment vs published", 256, 3072, published_assignment, LinearAssignment(), 12),
        *(
            _faster("assignment vs cdist", batch, 3072, cdist_assignment, LinearAssignment(), 1)
            for batch in (16, 64, 256)
        ),
    ]


def _faster(title: str, batch: int, dim: int, other: Draw, ours: Draw, at_least: float | None = None) -> Case:
    return Case(title, batch, dim, slow=other, fast=ours, ours=ours, at_least=at_least)


def _price(title: str, batch: int, dim: int, ours: Draw, at_most: float) -> Case:
    return Case(title, batch, dim, slow=ours, fast=randn, ours=ours, at_most=at_most)


def measure(case: Case, repeats: int) -> Row:
    """Time both sides of ``case`` by turns, then their memory."""
    # 4096 = 64 x 64 of one channel would do as well: only the assignment looks at the values.
    data = image_like(case.batch, case.dim) if case.dim == 3072 else _flat(case.batch, case.dim)
    sides = (case.slow, case.fast)
    calls = max(1, CALL_ELEMENTS // data.numel())
    times: list[list[tuple[float, float]]] = [[], []]
    for side in sides:
        side(data)  # first call: lazy imports, page faults
    for _ in range(repeats):
        for side, record in zip(sides, times, strict=True):
            record.append(_timed(side, data, calls))
    (slow_cpu, slow_wall), (fast_cpu, fast_wall) = (
        [1e3 * median(column) for column in zip(*record, strict=True)] for record in times
    )
    ratio = slow_cpu / fast_cpu
    slow_floats, fast_floats = (extra_floats(side, data) for side in sides)
    return Row(
        case.title,
        case.batch,
        case.dim,
        slow_cpu,
        fast_cpu,
        slow_wall,
        fast_wall,
        ratio,
        case.bar,
        case.passes(ratio),
        slow_floats,
        fast_floats,
    )


def _flat(batch: int, dim: int) -> Tensor:
    return 0.5 * torch.randn(batch, dim, generator=torch.Generator().manual_seed(0))


def _timed(draw: Draw, data: Tensor, calls: int) -> tuple[float, float]:
    """Seconds of a call: of CPU (of all threads of this process, hidden ones too), and of the clock."""
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(calls):
        draw(data)
    return (time.process_time() - cpu) / calls, (time.perf_counter() - wall) / calls


def extra_floats(draw: Draw, data: Tensor) -> float:
    """Most memory torch held at a time in ``draw(data)``, in units of the data; result included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        draw(data)
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    live = peak = 0
    for _, change in changes:
        live += change
        peak = max(peak, live)
    return peak / data.nbytes


def markdown(rows: list[Row], machine: dict[str, str]) -> str:
    """The table of ``rows``, and where they were measured."""
    lines = [
        "| what | B | D | slower side, ms | faster side, ms | ratio | bar | | memory / data, slower | faster |",
        "|---|--:|--:|--:|--:|--:|---|---|--:|--:|",
    ]
    for row in rows:
        verdict = ("PASS" if row.passed else "FAIL") if row.bar else ""
        lines.append(
            f"| {row.title} | {row.batch} | {row.dim} | {row.slow_cpu_ms:.2f} | "
            f"{row.fast_cpu_ms:.2f} | {row.ratio:.2f} | {row.bar} | {verdict} | "
            f"{row.slow_floats:.2f} | {row.fast_floats:.2f} |"
        )
    where = ", ".join(f"{name} {value}" for name, value in machine.items())
    return "\n".join([*lines, "", f"CPU milliseconds of one thread, medians. {where}."])


def machine_line() -> str:
    """The same in a line, for scripts whose repeats differ by row."""
    return ", ".join(f"{name} {value}" for name, value in machine(0).items() if name != "repeats")


def machine(repeats: int) -> dict[str, str]:
    """Where and how this was measured."""
    return {
        "date": date.today().isoformat(),
        "processor": _processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "immiscible-diffusion": immiscible_diffusion.__version__,
        "threads": str(torch.get_num_threads()),
        "repeats": str(repeats),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (info.read_text().splitlines() if info.is_file() else [])
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor() or "unknown"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15, help="interleaved repeats (15)")
    parser.add_argument("--json", type=Path, help="write the measurements here")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {arguments.repeats}")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = [measure(case, arguments.repeats) for case in cases()]
    where = machine(arguments.repeats)
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
