"""What one assignment over several processes takes and moves, and a model of it for many.

    OMP_NUM_THREADS=1 python benchmarks/across_ranks.py --markdown FILE

Measured: gloo processes on this machine, least wall time of the slowest rank over the repeats, and the bytes that
ranks send. Modeled: rank 0 solves N = ranks x rows in c N^e seconds, fitted to solves here, receives data and
noise of all other ranks and sends noise back over one link. A node has 8 ranks.
"""

import argparse
import os
import sys
import tempfile
import time
from math import log
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from coupling_cost import image_like, machine

from immiscible_diffusion import LinearAssignment
from immiscible_diffusion.couplings import distributed
from immiscible_diffusion.couplings.costs import assignment_cost

PER_NODE, PART = 8, 1024


def rank_main(rank: int, world: int, rows: int, dim: int, repeats: int, folder: str) -> None:
    """Pair ``rows`` data of this rank with those of the others, and of its node of two; rank 0 saves the figures."""
    torch.set_num_threads(1)
    os.environ["GROUP_RANK"] = str(rank // 2)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{world}", rank=rank, world_size=world)
    sent, send = [0], distributed._send

    def counted(tensor: torch.Tensor, *place: Any) -> None:
        sent[0] += tensor.nbytes
        send(tensor, *place)

    distributed._send = counted
    data, figures = image_like(world * rows, dim)[rank::world], {}
    for across in (True, "node"):
        coupling, best = LinearAssignment(across_ranks=across), float("inf")
        for repeat in range(repeats + 1):  # the first makes the group
            dist.barrier()
            began, sent[0] = time.perf_counter(), 0
            coupling(data, generator=torch.Generator().manual_seed(repeat * world + rank))
            seconds, moved = torch.tensor([time.perf_counter() - began]), torch.tensor([sent[0]])
            dist.all_reduce(seconds, dist.ReduceOp.MAX)
            dist.all_reduce(moved)
            best = min(best, float(seconds)) if repeat else best
        figures[across] = (best, int(moved))
    if rank == 0:
        torch.save(figures, f"{folder}/{world}.pt")
    dist.destroy_process_group()


def solve_seconds(rows: int, dim: int, repeats: int) -> float:
    """Least CPU time of a cost matrix and its assignment, in one process."""
    from scipy.optimize import linear_sum_assignment

    data, noise, best = image_like(rows, dim), torch.randn(rows, dim), float("inf")
    for _ in range(repeats):
        began = time.process_time()
        linear_sum_assignment(assignment_cost("inner", data, noise, None).numpy())
        best = min(best, time.process_time() - began)
    return best


def duration(seconds: float) -> str:
    return f"{1000 * seconds:,.0f} ms" if seconds < 10 else f"{seconds:,.0f} s"


def size(count: float) -> str:
    return f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=128, help="of a rank (128)")
    parser.add_argument("--dim", type=int, default=3072, help="of a sample, three times a square (3072)")
    parser.add_argument("--gbit", type=float, default=25.0, help="of rank 0's link, for the model (25)")
    parser.add_argument("--sizes", type=int, nargs=2, default=(1024, 4096), help="of the solves that are fitted")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--markdown", type=Path, help="write the tables here")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows, dim = options.rows, options.dim
    lines = ["| ranks, measured | pair together | time | bytes sent |", "|--:|---|--:|--:|"]
    with tempfile.TemporaryDirectory() as folder:
        for world in (2, 4):
            given = (world, rows, dim, options.repeats, folder)
            torch.multiprocessing.spawn(rank_main, given, nprocs=world)
            for across, (seconds, moved) in torch.load(f"{folder}/{world}.pt").items():
                together = "all" if across is True else "nodes of 2"
                lines.append(f"| {world} | {together} | {duration(seconds)} | {size(moved)} |")
    small, large = options.sizes
    times = [solve_seconds(count, dim, 2) for count in (small, large)]
    exponent = log(times[1] / times[0]) / log(large / small)
    lines += ["", "| ranks, modeled | pair together | rows | solve | cost matrix | through rank 0 | its link |"]
    lines.append("|--:|---|--:|--:|--:|--:|--:|")
    for world, together in ((PER_NODE, PER_NODE), (64, 64), (1024, 1024), (1024, PER_NODE)):
        count, moved = together * rows, (together - 1) * rows * (12 * dim + 1)
        solve, matrix = times[0] * (count / small) ** exponent, 12 * count**2  # float32, and scipy's float64
        name = "all" if together == world else f"nodes of {PER_NODE}"
        link = moved * 8e-9 / options.gbit if together > PER_NODE else 0.0
        lines.append(
            f"| {world:,} | {name} | {count:,} | {duration(solve)} | {size(matrix)} | {size(moved)} "
            f"| {duration(link) if link else 'within the machine'} |"
        )
        if count > PART:
            parts = count / PART * times[0] * (PART / small) ** exponent
            lines.append(
                f"| {world:,} | {name}, max_size={PART} | {count:,} | {duration(parts)} | {size(12 * PART**2)} "
                f"| {size(moved)} | {duration(link)} |"
            )
    where = ", ".join(f"{key} {value}" for key, value in machine(options.repeats).items())
    lines += ["", f"{rows} x {dim} float32 a rank; solve c N^{exponent:.2f}; link {options.gbit:g} Gbit/s. {where}."]
    print("\n".join(lines))
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
