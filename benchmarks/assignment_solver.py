"""Which solver for the linear assignment: scipy and lapx on the costs that images give.

    OMP_NUM_THREADS=1 python benchmarks/assignment_solver.py --markdown FILE

Solve only, one process, by turns. lapx (``pip install lapx``) is optional. Also the bar: scipy on
our cost at least 2.5 times faster than on the published cost matrix at B = 1024, D = 3072. Exits
with 1 when it is missed.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from coupling_cost import image_like, machine_line
from scipy.optimize import linear_sum_assignment

from immiscible_diffusion.couplings.costs import assignment_cost

SIZES = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
DIM, BAR = 3072, 2.5
Solve = Callable[[np.ndarray], Any]


def solvers() -> dict[str, Solve]:
    """Those that are installed."""
    found: dict[str, Solve] = {"scipy": linear_sum_assignment}
    try:
        import lap
    except ImportError:
        return found
    found["lapjv"] = lambda cost: lap.lapjv(cost, return_cost=False)
    if hasattr(lap, "lapjvs"):
        found["lapjvs"] = lambda cost: lap.lapjvs(cost, return_cost=False)
    return found


def costs(size: int) -> np.ndarray:
    """Our cost of image-like data and noise, float32 ``[size, size]``."""
    noise = torch.randn(size, DIM, generator=torch.Generator().manual_seed(1))
    return assignment_cost("inner", image_like(size, DIM), noise, None).numpy()


def published_cost(size: int) -> np.ndarray:
    """The published one: norms of differences in half precision, row by row to save memory."""
    noise = torch.randn(size, DIM, generator=torch.Generator().manual_seed(1))
    data, noise = (0.1 * image_like(size, DIM)).half(), (0.1 * noise).half()
    rows = [torch.linalg.vector_norm(row - noise, dim=1) for row in data]
    return torch.stack(rows).float().numpy()


def least_times(jobs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Least CPU seconds of each job, by turns."""
    best = dict.fromkeys(jobs, float("inf"))
    for _ in range(repeats):
        for name, job in jobs.items():
            began = time.process_time()
            job()
            best[name] = min(best[name], time.process_time() - began)
    return best


def repeats_for(size: int) -> int:
    """Many for the small, one for what takes a minute."""
    return max(1, min(20, 40_000 // size // max(1, size // 1024)))


def solver_table(sizes: list[int]) -> list[str]:
    """Rows of milliseconds; ratios are scipy over the other."""
    found = solvers()
    others = [name for name in found if name != "scipy"]
    lines = [
        "| n | scipy, ms | " + " | ".join(f"{name}, ms | scipy / {name}" for name in others) + " |",
        "|--:|--:|" + "--:|--:|" * len(others),
    ]
    for size in sizes:
        cost = costs(size)
        jobs = {name: (lambda solve=solve, cost=cost: solve(cost)) for name, solve in found.items()}
        took = least_times(jobs, repeats_for(size))
        cells = [f"{1e3 * took[name]:.2f} | {took['scipy'] / took[name]:.2f}" for name in others]
        lines.append(f"| {size} | {1e3 * took['scipy']:.2f} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    return lines


def bar(repeats: int = 5) -> tuple[list[str], bool]:
    """The bar: our cost against the published one, both solved by scipy."""
    ours, theirs = costs(1024), published_cost(1024)
    took = least_times(
        {"ours": lambda: linear_sum_assignment(ours), "published": lambda: linear_sum_assignment(theirs)}, repeats
    )
    ratio = took["published"] / took["ours"]
    verdict = "PASS" if ratio >= BAR else "FAIL"
    line = (
        f"scipy, n = 1024, D = {DIM}, image-like data, solve only: published cost "
        f"{1e3 * took['published']:.0f} ms, ours {1e3 * took['ours']:.0f} ms, ratio {ratio:.1f} "
        f"(bar {BAR}): {verdict}"
    )
    return [line], ratio >= BAR


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--markdown", type=Path, help="write the table here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines, passed = bar()
    print(lines[0], flush=True)
    table = solver_table(arguments.sizes)
    text = "\n".join([*lines, "", *table, "", f"CPU time of one thread, least of repeats. {machine_line()}."])
    if arguments.markdown:
        arguments.markdown.write_text(text + "\n")
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
