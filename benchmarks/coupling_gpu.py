"""KNN, also as one Triton kernel, and linear assignment on a GPU, beside the times that the papers print.

    python benchmarks/coupling_gpu.py                # k = 8 and 64 on 4 x 32 x 32 latents
    python benchmarks/coupling_gpu.py --k 4 --shape 3,32,32
    python benchmarks/coupling_gpu.py --device cpu --batches 4 --repeats 2    # does it run?

Milliseconds of a batch: median over the repeats, by CUDA events, after a warm-up that does not
count; plain, under ``torch.compile`` and replayed as a CUDA graph (both with ``generator=None``).

The papers' times (arXiv 2505.18521: KNN and assignment at B = 128, 256, 512, 1024) come without
the shape of the data, k, or whether drawing the noise counts; the processor is an A6000 or an
A5000. So they are a landmark, not a bar. Our times include drawing. 4 x 32 x 32 is the latent of
256-pixel images, the papers' Stable Diffusion, where they use k = 64.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch
from coupling_cost import published_knn
from torch import Tensor

import immiscible_diffusion
from immiscible_diffusion import KNN, Independent, LinearAssignment
from immiscible_diffusion.couplings import knn

Draw = Callable[[Tensor], Tensor]
BATCHES = (128, 256, 512, 1024)
PAPER_KNN = dict(zip(BATCHES, (0.2, 0.2, 0.3, 0.7), strict=True))
PAPER_ASSIGNMENT = dict(zip(BATCHES, (5.4, 6.7, 8.8, 22.8), strict=True))
WARM_UP = 5


@dataclass(frozen=True)
class Row:
    """Milliseconds of a batch; None where that way does not apply."""

    what: str
    batch: int
    plain: float
    compiled: float | None
    graph: float | None
    paper: float | None


def milliseconds(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time of ``call``."""
    for _ in range(WARM_UP):
        call()
    if device.type != "cuda":
        return median(_clocked(call) for _ in range(repeats))
    torch.cuda.synchronize()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return median(times)


def _clocked(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - began)


def compiled(draw: Draw, backend: str) -> Draw:
    """``draw``, all of it compiled."""
    torch._dynamo.reset()
    return torch.compile(lambda data: draw(data), fullgraph=True, backend=backend)


def captured(draw: Draw, data: Tensor) -> Callable[[], None]:
    """``draw(data)`` as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            draw(data)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        draw(data)
    return graph.replay


def measure(what: str, draw: Draw, data: Tensor, paper: float | None, options: argparse.Namespace) -> Row:
    """One row; assignment, which waits for the device, only plain."""
    device, waits = data.device, isinstance(draw, LinearAssignment)
    plain = milliseconds(lambda: draw(data), device, options.repeats)
    fast = graph = None
    if not waits and options.backend != "none":
        faster = compiled(draw, options.backend)
        fast = milliseconds(lambda: faster(data), device, options.repeats)
    if not waits and device.type == "cuda":
        graph = milliseconds(captured(draw, data), device, options.repeats)
    return Row(what, len(data), plain, fast, graph, paper)


def rows(options: argparse.Namespace, device: torch.device) -> list[Row]:
    """All rows; published KNN, which draws all candidates, where memory allows."""
    found = []
    for batch in options.batches:
        data = torch.randn(batch, *options.shape, device=device)
        found.append(measure("randn", Independent(), data, None, options))
        for k in options.k:
            found.append(measure(f"KNN k={k}", KNN(k), data, PAPER_KNN.get(batch), options))
            with patch.object(knn, "_kernel_for", lambda data: None):
                found.append(measure(f"KNN k={k}, its operations", KNN(k), data, None, options))
            published = published_on_device(k)
            with suppress(torch.cuda.OutOfMemoryError):
                took = milliseconds(lambda: published(data), device, options.repeats)  # noqa: B023
                found.append(Row(f"published KNN k={k}", batch, took, None, None, None))
        paper = PAPER_ASSIGNMENT.get(batch)
        found.append(measure("assignment", LinearAssignment(), data, paper, options))
        found.append(measure("greedy assignment", LinearAssignment(solver="greedy"), data, None, options))
    return found


def published_on_device(k: int) -> Draw:
    """``published_knn`` with its noise drawn where the data are."""
    draw = published_knn(k)

    def on_device(data: Tensor) -> Tensor:
        with torch.device(data.device):
            return draw(data.flatten(1))

    return on_device


def markdown(found: list[Row]) -> str:
    """The table."""
    lines = ["| what | B | plain, ms | compiled | CUDA graph | the papers' |", "|---|--:|--:|--:|--:|--:|"]
    for row in found:
        times = ("-" if t is None else f"{t:.3f}" for t in (row.plain, row.compiled, row.graph))
        paper = "" if row.paper is None else f"{row.paper:g}"
        lines.append(f"| {row.what} | {row.batch} | {' | '.join(times)} | {paper} |")
    return "\n".join(lines)


def sizes(text: str) -> tuple[int, ...]:
    """``"4,32,32"`` as numbers."""
    return tuple(int(size) for size in text.split(","))


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=sizes, default=(4, 32, 32), help="of a sample (4,32,32)")
    parser.add_argument("--batches", type=sizes, default=BATCHES, help="(128,256,512,1024)")
    parser.add_argument("--k", type=sizes, default=(8, 64), help="candidates (8,64)")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--backend", default="inductor", help="of torch.compile, or none")
    parser.add_argument("--json", type=Path, help="write the measurements here")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parsed(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here; --device cpu runs the same on the CPU", file=sys.stderr)
        return 2
    device = torch.device(options.device)
    torch.manual_seed(0)
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "CPU"
    where = {
        "date": date.today().isoformat(),
        "device": name,
        "torch": torch.__version__,
        "immiscible-diffusion": immiscible_diffusion.__version__,
        "shape": "x".join(map(str, options.shape)),
        "repeats": str(options.repeats),
    }
    found = rows(options, device)
    print(markdown(found) + "\n\n" + ", ".join(f"{key} {value}" for key, value in where.items()))
    if options.json:
        record = {"machine": where, "rows": [asdict(row) for row in found]}
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
